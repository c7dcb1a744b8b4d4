"""Labelled texts of a confounded task, and what makes them useless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trephine.domain.errors import (
    AttributeConfoundedError,
    InvalidRequestError,
    SplitLeakageError,
    TooFewItemsError,
)
from trephine.domain.spurious_groups import require_apart
from trephine.domain.spurious_repeats import as_written, distinct

FEWEST_TEXTS = 8
"""Of every label in the ambiguous set, and of every value among the attribute's examples: with fewer nothing
can be estimated."""
FEWEST_JUDGED = 8
"""Texts of a group, twins, or texts of a label in an environment, below which no feature is judged."""
FEWEST_GIVEN = 10
"""The same where no validation split is given: a fifth is held out, and features are judged on the others."""
EXAMPLES = "attribute_texts"
"""The field of the attribute's examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """A text of the task."""

    text: str
    label: str
    attribute: str | None = None
    """The spurious attribute, where it is known."""
    twin: str | None = None
    """The same text with the other attribute and the same label: a counterfactual edit."""
    environment: str | None = None
    """Where it comes from: the task holds in every environment, a shortcut need not."""
    pair: str | None = None
    """The comparison that it stands in, with one text of the other label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeText:
    """An example of the spurious attribute; of whatever label, or none."""

    text: str
    attribute: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Two words, or several together, that an edit exchanges, in either direction and with their capitals."""

    first: str
    second: str

    def __post_init__(self) -> None:
        if not (self.first.strip() and self.second.strip()) or self.first.strip() == self.second.strip():
            raise InvalidRequestError(
                f"a swap exchanges one word for another, got {self.first!r} and {self.second!r}",
                field="swaps",
            )


Splits = Mapping[str, Sequence[LabelledText]]
"""`training`, `validation` and `test`."""


def labels_of(splits: Splits, named: Sequence[str] | None = None) -> tuple[str, str]:
    """Return the two labels of the ambiguous set, sorted; or in the order in which they are named.

    Raises:
        InvalidRequestError: If there are not two, or others are named, or another split has others.
        TooFewItemsError: If a label has too few texts, or none in another split that is given.
    """
    counts = Counter(label for label, _ in {(one.label, as_written(one.text)) for one in splits["training"]})
    require_apart(counts, "labels", "training")
    if len(counts) != 2:
        raise InvalidRequestError(
            f"the ambiguous set has {len(counts)} label(s), {', '.join(sorted(counts)) or 'none'}; a "
            f"decision is between two: {_two_labels(len(counts))}",
            field="training",
        )
    for label, count in counts.items():
        if count < FEWEST_TEXTS:
            raise TooFewItemsError(
                f"the label {label} has {count} different texts in the ambiguous set; it needs at least "
                f"{FEWEST_TEXTS}",
                field="training",
                needed=FEWEST_TEXTS,
                got=count,
            )
    for name, split in splits.items():
        for number, one in enumerate(split):
            if one.label not in counts:
                raise InvalidRequestError(
                    f"{name} text {number} has the label {one.label!r}; the ambiguous set has none of it, "
                    f"but {' and '.join(map(repr, sorted(counts)))}",
                    field=f"{name}[{number}].label",
                )
        _require_both(name, split, sorted(counts))
    first, second = sorted(counts) if named is None else _as_named(named, sorted(counts))
    return first, second


def _require_both(name: str, split: Sequence[LabelledText], labels: Sequence[str]) -> None:
    """Refuse a split of one label: who always says that label is right on all of it."""
    for label in set(labels) - {one.label for one in split} if split else ():
        raise TooFewItemsError(
            f"the {name} split has no text of {label}: its accuracy would be that of always saying the other "
            "label. Add texts of it, best as many as of the other, or leave the split out",
            field=name,
            needed=1,
            got=0,
        )


def _two_labels(found: int) -> str:
    if found > 2:
        return "leave out the others, or name one against the rest"
    return f"add texts of {'another label' if found else 'two labels'}, at least {FEWEST_TEXTS} of each"


def _as_named(named: Sequence[str], labels: list[str]) -> list[str]:
    if sorted(named) != labels:
        raise InvalidRequestError(
            f"label tokens are of {', '.join(named) or 'none'}; the labels are {', '.join(labels)}",
            field="decision.tokens",
        )
    return list(named)


def check_twins(splits: Splits) -> None:
    """Refuse a twin that is its text: it says that the attribute changes nothing.

    Raises:
        InvalidRequestError: Naming the text.
    """
    for name, split in splits.items():
        for number, one in enumerate(split):
            if one.twin is not None and one.twin.strip() == one.text.strip():
                raise InvalidRequestError(
                    f"{name} text {number} and its twin are the same: {one.text[:60]!r}. A twin is the text "
                    "with the other attribute; leave it out of a text in which nothing is to be edited",
                    field=f"{name}[{number}].twin",
                )


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where a text stands, as itself or as a twin."""

    split: str
    number: int
    label: str | None
    attribute: str | None
    """None of a twin."""
    twin: bool

    def __str__(self) -> str:
        name = "attribute example" if self.split == EXAMPLES else f"{self.split} text"
        return f"{'the twin of ' if self.twin else ''}{name} {self.number}"

    @property
    def field(self) -> str:
        """As errors name it."""
        return f"{self.split}[{self.number}].{'twin' if self.twin else 'text'}"


def check_leakage(splits: Splits, examples: Sequence[AttributeText] = ()) -> None:
    """Refuse a text that two splits, or a split and the examples, share, as itself or as a twin.

    A twin is its text but for a word: who has trained on the one has seen the other; a text that is another
    one but for how it is written (`as_written`) is a copy of it. Within a split the same text, or its twin,
    may stand again, but not with another label or attribute.

    Raises:
        SplitLeakageError: Naming the text and both places.
    """
    seen: dict[str, _Standing] = {}
    written: dict[str, tuple[_Standing, str]] = {}
    for text, here in (*_standing(splits), *_examples_standing(examples)):
        known = seen.setdefault(text.strip(), here)
        wrong = _shared_or_contradicted(known, here)
        if wrong:
            raise SplitLeakageError(
                f"{here} is {known}{wrong[0]}: {text[:60]!r}. {wrong[1]}",
                field=here.field,
            )
        if known.attribute is None:
            seen[text.strip()] = here
        other, spelled = written.setdefault(as_written(text), (here, text))
        if other.split != here.split:
            raise SplitLeakageError(
                f"{here} is {other} but for spaces, invisible characters or how letters are composed: "
                f"{text[:60]!a} and {spelled[:60]!a}. {_SHARED}",
                field=here.field,
            )


_SHARED = (
    "Figures on texts that were trained on, or on their twins, say nothing; drop duplicates before "
    "splitting, and keep a text and its twins together"
)
_CONTRADICTED = "One of the two is wrong; correct it, or leave both out"


def _shared_or_contradicted(known: _Standing, here: _Standing) -> tuple[str, str] | None:
    """Say what is wrong with a text that stands in two places, and what to do; None: nothing is."""
    if known.split != here.split:
        return "", _SHARED
    if known.label != here.label:
        return " with another label", _CONTRADICTED
    if None not in (known.attribute, here.attribute) and known.attribute != here.attribute:
        return " with another attribute", _CONTRADICTED
    return None


def _standing(splits: Splits) -> Iterator[tuple[str, _Standing]]:
    for name, split in splits.items():
        for number, one in enumerate(split):
            yield one.text, _Standing(name, number, one.label, one.attribute, twin=False)
            if one.twin is not None:
                yield one.twin, _Standing(name, number, one.label, None, twin=True)


def _examples_standing(examples: Sequence[AttributeText]) -> Iterator[tuple[str, _Standing]]:
    for number, one in enumerate(examples):
        yield one.text, _Standing(EXAMPLES, number, None, one.attribute, twin=False)


def check_told_apart(training: Sequence[LabelledText], validation: Sequence[LabelledText] = ()) -> None:
    """Refuse an attribute that is the label wherever it is known, or almost, with nothing to tell them apart.

    Twins and environments count in training, of which a fifth will be held out if there is no validation
    split; groups count wherever they are.

    Raises:
        AttributeConfoundedError: Saying what data would help.
    """
    if validation:
        _require_told_apart(distinct(training), distinct(validation), FEWEST_JUDGED, "")
    else:
        _require_told_apart(distinct(training), (), FEWEST_GIVEN, ", a fifth being held out")


def check_left_apart(training: Sequence[LabelledText], held_out: Sequence[LabelledText]) -> None:
    """Do the same once a fifth is held out: with a text stay its duplicates, so that it may have been more.

    Raises:
        AttributeConfoundedError: Saying what data would help.
    """
    out = " once a fifth is held out, with duplicates and pairs; a validation split leaves all of them"
    _require_told_apart(training, held_out, FEWEST_JUDGED, out)


def _require_told_apart(
    training: Sequence[LabelledText], others: Sequence[LabelledText], needed: int, out: str
) -> None:
    groups = Counter((one.label, one.attribute) for one in (*training, *others) if one.attribute is not None)
    twins = sum(one.twin is not None for one in training)
    environments = len(_judged_environments(training, needed))
    judged = sum(count >= FEWEST_JUDGED for count in groups.values()) == 4
    if judged or twins >= needed or environments >= 2 or len({label for label, _ in groups}) < 2:
        return
    raise AttributeConfoundedError(
        f"{_confounded(groups)} tell a feature of the one from a feature of the other. Any of these helps: "
        f"texts of the other two groups, in training or validation, at least {FEWEST_JUDGED} of every group; "
        f"`attribute_texts`, which may have any label or none; at least {needed} twins in training (there "
        f"are {twins}), or a lexicon of swaps that makes so many; two environments or more, with {needed} "
        f"texts of either label in each (there are {environments}){out}",
        field="training.attribute",
    )


def _confounded(groups: Counter[tuple[str, str]]) -> str:
    """Say how the attribute goes with the label, and that it cannot, or can hardly, be told from it."""
    labels, values = (sorted(set(names)) for names in zip(*groups, strict=True))
    if len(groups) == len(values) == 2:
        held = "; ".join(f"{label}: {value}" for label, value in sorted(groups))
        return f"the attribute is the label in every text that has one ({held}), so that nothing can"
    held = ", ".join(f"{label}/{value}: {groups[label, value]}" for label in labels for value in values)
    return f"label and attribute come apart in too few texts ({held}) to"


def _judged_environments(texts: Sequence[LabelledText], needed: int) -> list[str]:
    """List the environments with so many texts of every label that there is."""
    labels = {one.label for one in texts}
    counts = Counter((one.environment, one.label) for one in texts)
    named = sorted({one.environment for one in texts if one.environment is not None})
    return [name for name in named if min(counts[name, label] for label in labels) >= needed]


def check_attributes(splits: Splits, examples: Sequence[AttributeText]) -> None:
    """Refuse an attribute that does not have two values, if it is known at all, and examples of one alone.

    Raises:
        InvalidRequestError: If there are more values than two, or one.
        TooFewItemsError: If a value has fewer than `FEWEST_TEXTS` different examples, where there are any.
    """
    found = {one.attribute for split in splits.values() for one in split} - {None}
    found |= {one.attribute for one in examples}
    require_apart((str(one) for one in found), "values of the attribute", "attribute")
    if len(found) not in (0, 2):
        raise InvalidRequestError(
            f"the attribute has {len(found)} value(s), {', '.join(sorted(map(str, found)))}; two are needed",
            field="attribute",
        )
    counts = Counter(value for value, _ in {(one.attribute, as_written(one.text)) for one in examples})
    for value in sorted(map(str, found)) if examples else ():
        if counts[value] < FEWEST_TEXTS:
            raise TooFewItemsError(
                f"the attribute's examples have {counts[value] or 'no'} different text(s) of {value}; they "
                f"need at least {FEWEST_TEXTS} of either value. Add some, or leave the examples out",
                field=EXAMPLES,
                needed=FEWEST_TEXTS,
                got=counts[value],
            )
