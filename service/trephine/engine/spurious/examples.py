"""Labelled texts as token ids, with twins, samples and a held-out part of the ambiguous set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import (
    EmptyGroupError,
    InvalidRequestError,
    PromptTooLongError,
    TooFewItemsError,
    TrephineError,
)
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_repeats import as_written, distinct, first_rows, first_texts, left_out
from trephine.domain.spurious_sizes import ONE_HELD_OUT_OF
from trephine.domain.spurious_texts import (
    FEWEST_JUDGED,
    LabelledText,
    check_leakage,
    check_left_apart,
    check_told_apart,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.spurious.pooling import Ids
from trephine.engine.spurious.reading import reader_of, refuse_shared, require_same_reading
from trephine.engine.spurious.swaps import Swapper, lexicon_of, with_twins

MAX_TOKENS = 512
"""Of one text: attention of a pack is kept as one square."""
UNKNOWN = -1
AMBIGUOUS_SET = "the ambiguous set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A text ready to run."""

    text: str
    ids: Ids
    label: int
    """0 or 1; -1 where it has none."""
    attribute: int
    """0 or 1 in the order of the attributes; -1 where it is unknown."""
    twin: Ids | None
    environment: str | None
    pair: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """All texts of a request."""

    labels: tuple[str, str]
    attributes: tuple[str, ...]
    """None, or two: the first goes with the first label in the ambiguous set."""
    told_by: str
    """What says so, in words: `AMBIGUOUS_SET`, or something else; empty: nothing has yet."""
    pairing: float
    """P(second attribute | second label) less P(second attribute | first label), in the ambiguous set; 1
    where the attribute is unknown there."""
    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    """Ambiguous texts that nothing is trained on, or the validation split."""
    test: tuple[Example, ...]
    attribute: tuple[Example, ...]
    """Examples of the attribute, without labels."""
    repeated: tuple[str, ...] = ()
    """How many rows were left out for saying what another one says, in words, per split."""


def column(examples: Sequence[Example], read: Callable[[Example], int]) -> Tensor:
    """Return one number per example, int64 `(n,)`."""
    return torch.tensor([read(one) for one in examples], dtype=torch.long)


def labels(examples: Sequence[Example]) -> Tensor:
    """Labels, int64 `(n,)`."""
    return column(examples, lambda one: one.label)


def attributes(examples: Sequence[Example]) -> Tensor:
    """Attributes, int64 `(n,)`; -1 where unknown."""
    return column(examples, lambda one: one.attribute)


def in_groups(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return the texts whose attribute is known, if these are of all four groups; none otherwise."""
    known = tuple(one for one in examples if one.attribute != UNKNOWN)
    return known if len({(one.label, one.attribute) for one in known}) == 4 else ()


def read_data(hosted: HostedModel, command: RemoveSpuriousFeatures) -> Data:
    """Tokenize everything, make twins, order the attribute by its pairing, hold out a validation part.

    Raises:
        InvalidRequestError: If a text has one token, or no twin could be made.
        SplitLeakageError: If a twin that the lexicon makes, or the same tokens, stand in another split.
        TooFewItemsError: If no text of a label can be held out without its duplicates or twins.
        PromptTooLongError: If a text is too long.
        EmptyGroupError: If validation or test lacks a group although the attribute is known there.
        AttributeConfoundedError: If too little is left to tell the attribute from the label.
        HeadNotStockError: If a given head's folder reads texts otherwise, or cannot be read.
    """
    reader = _Reader(hosted, command)
    check_leakage(reader.splits, command.attribute_texts)
    training = reader.split("training")
    require_same_reading(hosted, command.decision, [one.text for one in training])
    validation = reader.split("validation")
    held_out = validation
    if not validation:
        training, held_out = hold_out(training, command.seed)
        _require_held_out(command.labels, held_out)
    data = Data(
        labels=command.labels,
        attributes=reader.attributes,
        told_by=reader.told_by,
        pairing=_pairing(training),
        training=training,
        held_out=held_out,
        test=reader.split("test"),
        attribute=reader.unlabelled(),
        repeated=reader.repeated(),
    )
    if command.swaps or command.attribute_name:
        _require_twins(data)
        if not command.attribute_texts:
            check_told_apart(reader.splits["training"], reader.splits["validation"])
    if not (command.validation or command.attribute_texts):
        check_left_apart(_given(data, data.training), _given(data, data.held_out))
    for name, split in (("validation", validation), ("test", data.test)):
        _require_groups(data, name, split)
    return data


def _given(data: Data, examples: Sequence[Example]) -> list[LabelledText]:
    """Turn examples back into texts, a twin into any other text: only that there is one counts."""
    return [
        LabelledText(
            text=one.text,
            label=data.labels[one.label],
            attribute=None if one.attribute == UNKNOWN else data.attributes[one.attribute],
            twin=None if one.twin is None else "",
            environment=one.environment,
        )
        for one in examples
    ]


class _Reader:
    def __init__(self, hosted: HostedModel, command: RemoveSpuriousFeatures) -> None:
        self._hosted, self._command, self._labels = hosted, command, command.labels
        lexicon = lexicon_of(command.attribute_name, command.swaps)
        self.splits = with_twins(command.splits, Swapper(lexicon) if lexicon else None)
        self.attributes, self.told_by = attribute_order(command)
        self._number = {name: number for number, name in enumerate(self.attributes)}
        self._places: dict[Ids, str] = {}
        self._read = reader_of(hosted, command.decision)

    def split(self, name: str) -> tuple[Example, ...]:
        rows = self.splits[name]
        return tuple(self._example(f"{name}[{number}]", rows[number]) for number in first_rows(rows))

    def repeated(self) -> tuple[str, ...]:
        examples = self._command.attribute_texts
        found = [(f"{name} texts", len(rows), len(first_rows(rows))) for name, rows in self.splits.items()]
        found.append(("examples of the attribute", len(examples), len(first_texts(examples))))
        return tuple(said for split in found for said in left_out(*split))

    def unlabelled(self) -> tuple[Example, ...]:
        return tuple(
            Example(
                text=one.text,
                ids=self._encode(one.text, f"attribute_texts[{number}].text"),
                label=UNKNOWN,
                attribute=self._number[one.attribute],
                twin=None,
                environment=None,
            )
            for number, one in first_texts(self._command.attribute_texts)
        )

    def _example(self, place: str, one: LabelledText) -> Example:
        return Example(
            text=one.text,
            ids=self._encode(one.text, f"{place}.text"),
            label=self._labels.index(one.label),
            attribute=UNKNOWN if one.attribute is None else self._number[one.attribute],
            twin=None if one.twin is None else self._encode(one.twin, f"{place}.twin"),
            environment=one.environment,
            pair=one.pair,
        )

    def _encode(self, text: str, field: str) -> Ids:
        try:
            ids = self._read(text)
        except TrephineError as error:
            raise error.with_field(field) from None
        if len(ids) < 2:
            raise InvalidRequestError(
                f"{field}: {text!r} has one token, and position 0 is an attention sink; it needs two",
                field=field,
            )
        if len(ids) > MAX_TOKENS:
            raise PromptTooLongError(
                f"{field} has {len(ids)} tokens; a text has at most {MAX_TOKENS} here: shorten it",
                field=field,
                tokens=len(ids),
                room=0,
                limit=MAX_TOKENS,
            )
        refuse_shared(self._places, ids, field)
        return ids


def attribute_order(command: RemoveSpuriousFeatures) -> tuple[tuple[str, ...], str]:
    """Return the attribute's two values, if it is known at all, the one of the first label first.

    The ambiguous set says which that is, or an ambiguous validation split.

    Returns:
        The values, and what says so (see `Data.told_by`); where nothing does, the one that appears first goes
        with the label that does, since names say nothing.
    """
    known = [one.attribute for split in command.splits.values() for one in split if one.attribute is not None]
    names = tuple(dict.fromkeys([*known, *(one.attribute for one in command.attribute_texts)]))
    if not names:
        return (), ""
    leaning, told_by = _leaning(command, command.training, names[1]), AMBIGUOUS_SET
    if not leaning:
        leaning, told_by = _leaning(command, command.validation, names[1]), "the ambiguous validation split"
        if abs(leaning) < 1:
            return (names if command.training[0].label == command.labels[0] else names[::-1]), ""
    return (names if leaning > 0 else names[::-1]), told_by


def _leaning(command: RemoveSpuriousFeatures, texts: Sequence[LabelledText], value: str) -> float:
    """Return by how much more often the second label's texts have a value; 1/2 stands for what is unknown."""
    rates, texts = [], distinct(texts)
    for label in command.labels:
        known = [one.attribute == value for one in texts if one.label == label and one.attribute is not None]
        rates.append(sum(known) / len(known) if known else 0.5)
    return rates[1] - rates[0]


def _pairing(training: Sequence[Example]) -> float:
    rates = []
    for label in (0, 1):
        known = [one.attribute for one in training if one.label == label and one.attribute != UNKNOWN]
        if not known:
            return 1.0
        rates.append(sum(known) / len(known))
    return rates[1] - rates[0]


def sample(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Draw at most `count`, as many of every group (label and attribute) as there are, in their order."""
    return tuple(examples[number] for number in sample_places(examples, count, seed))


def sample_places(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """Return where the texts of `sample` stand, ascending."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, one in enumerate(examples):
        groups.setdefault((one.label, one.attribute), []).append(number)
    generator, chosen = torch.Generator().manual_seed(seed), list[int]()
    # Of groups of one size the one that appears first: what they are called draws nothing.
    for left, members in enumerate(sorted(groups.values(), key=len)):
        share = (count - len(chosen)) // (len(groups) - left)
        chosen += _drawn(members, share, generator)
    return sorted(chosen)


def sample_pairs(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Draw at most `count` texts as whole pairs, in their order; each text is in a pair.

    As many of every group of the texts whose label appears first.
    """
    of_one_label = [one for one in examples if one.label == examples[0].label]
    drawn = {one.pair for one in sample(of_one_label, count // 2, seed)}
    return tuple(one for one in examples if one.pair in drawn)


def hold_out(examples: Sequence[Example], seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off a fifth of every group; a text, its duplicates, its twins and its pair stay on one side.

    So of those that have a twin, and of every environment: of ten no more than two, so that eight are left
    to judge by. The side is drawn for all that stay together, so that it may be a few more than a fifth.
    """
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for together in alike(examples):
        first = examples[together[0]]
        groups.setdefault((first.label, first.attribute), []).append(together)
    generator, out = torch.Generator().manual_seed(seed), set[int]()
    for members in groups.values():
        order = torch.randperm(len(members), generator=generator)[: len(members) - 1].tolist()
        before, seen = len(out), 0
        for stratum in _strata(examples, members):
            seen += sum(len(members[place]) for place in stratum)
            for place in [one for one in order if one in stratum]:
                if len(out) < before + seen // ONE_HELD_OUT_OF:
                    out |= set(members[place])
    kept = tuple(one for number, one in enumerate(examples) if number not in out)
    return kept, tuple(examples[number] for number in sorted(out))


def _strata(examples: Sequence[Example], members: Sequence[Sequence[int]]) -> list[set[int]]:
    """Part members by whether one has a twin, those first, and by their environment as these appear."""
    strata: dict[tuple[bool, str | None], set[int]] = {}
    for place, together in enumerate(members):
        untwinned = all(examples[number].twin is None for number in together)
        strata.setdefault((untwinned, examples[together[0]].environment), set()).add(place)
    return [strata[key] for key in sorted(strata, key=lambda key: key[0])]


def alike(examples: Sequence[Example]) -> list[list[int]]:
    """Return places of texts that are joined by a text, a twin or a pair that they share, in their order."""
    joined: dict[int, list[int]] = {}
    shared, holder = list(map(_shared, examples)), dict[Ids | str | tuple[str], int]()
    for number, keys in enumerate(shared):
        met = sorted({holder[key] for key in keys if key in holder})
        mine = [place for first in met for place in joined.pop(first)]
        joined[number] = [*mine, number]
        for place in joined[number]:
            holder |= dict.fromkeys(shared[place], number)
    return sorted(map(sorted, joined.values()))


def _shared(one: Example) -> list[Ids | str | tuple[str]]:
    """What two texts that must not be parted have in common; copies need not have the same tokens."""
    return [key for key in (one.ids, (as_written(one.text),), one.twin, one.pair) if key is not None]


def _drawn(members: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(members), generator=generator)[:count].tolist()
    return [members[place] for place in order]


def _require_held_out(names: tuple[str, str], held_out: Sequence[Example]) -> None:
    for label, name in enumerate(names):
        if not any(one.label == label for one in held_out):
            raise TooFewItemsError(
                f"no text of {name} can be held out of the ambiguous set: a fifth of every group is, and a "
                "text stays with its duplicates, its twins and its pair. Give more different texts, or a "
                "validation split",
                field="training",
                needed=1,
                got=0,
            )


def _require_twins(data: Data) -> None:
    """Refuse a lexicon that does nothing, or too little where nothing else tells the attribute."""
    twins = sum(one.twin is not None for one in data.training)
    if not twins:
        raise InvalidRequestError(
            "no word of the lexicon occurs in any ambiguous text that is not held out, so that there is no "
            "counterfactual; give `swaps` that fit, or attribute_texts",
            field="swaps",
        )
    ambiguous = (*data.training, *data.held_out)
    told = any(one.attribute != UNKNOWN or one.environment is not None for one in ambiguous)
    if twins < FEWEST_JUDGED and not (told or data.attribute):
        raise TooFewItemsError(
            f"words of the lexicon occur in {twins} of {len(data.training)} ambiguous texts that are not "
            f"held out, and no feature is judged by fewer than {FEWEST_JUDGED}; give `swaps` that fit, more "
            "texts, or attribute_texts",
            field="swaps",
            needed=FEWEST_JUDGED,
            got=twins,
        )


def _require_groups(data: Data, name: str, split: Sequence[Example]) -> None:
    """Refuse a split in which the attribute is known and a group is empty: its worst group would be a guess.

    Texts without an attribute are in no group, and fill none. A validation split of the ambiguous kind, with
    its two groups alone, is one nevertheless.
    """
    counts = Counter((one.label, one.attribute) for one in split if one.attribute != UNKNOWN)
    if not counts:
        return
    missing = [(y, a) for y in (0, 1) for a in (0, 1) if not counts[y, a]]
    ambiguous = name == "validation" and missing == [(0, 1), (1, 0)]
    if missing and not ambiguous:
        words = ", ".join(f"{data.labels[y]}/{data.attributes[a]}" for y, a in missing)
        raise EmptyGroupError(
            f"the {name} split has no text of {words}; a worst group needs all four. Add some, or leave the "
            "attribute of this split out",
            field=name,
        )
