"""Texts and items as token ids, checked before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from trephine.domain.edit_evaluation import ChoiceItem, EvaluationSet, SetRole, require_enough
from trephine.domain.errors import InvalidRequestError, TrephineError
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.retain import RetainText

_FEWEST_TOKENS = 3
"""Positions from 1 on are measured, and one of them must predict a token."""


@dataclass(frozen=True, slots=True)
class TextUnit:
    """A text."""

    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ItemUnit:
    """A prompt and its choices, split apart so that the border stays where it was put."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int

    @property
    def tokens(self) -> int:
        """Tokens of all rows that it takes."""
        if self.is_single:
            return len(self.prompt)
        return sum(len(self.prompt) + len(choice) for choice in self.choices)

    @property
    def is_single(self) -> bool:
        """True if every choice is one token: one row then answers for all."""
        return all(len(choice) == 1 for choice in self.choices)


Unit = TextUnit | ItemUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSet:
    """An encoded set."""

    name: str
    role: SetRole
    units: tuple[Unit, ...]
    sha256: str
    repeated: int = 0
    """Texts or items that were given beside these and are the same tokens as one of them."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(unit.tokens for unit in self.units)


def encode_set(hosted: HostedModel, given: EvaluationSet, *, field: str) -> UnitSet:
    """Split a set into tokens; what becomes the same tokens counts once: a repeat narrows no interval.

    Raises:
        EmptyPromptError: If a text, prompt or choice has no token.
        PromptTooLongError: If one does not fit into the context.
        TooFewItemsError: If too few of them differ.
        InvalidRequestError: If a text is too short to measure, or choices of an item begin alike.
    """
    units: list[Unit] = []
    for index, text in enumerate(given.texts):
        units.append(_text(hosted, text, f"{field}.texts[{index}]"))
    for index, item in enumerate(given.items):
        units.append(_item(hosted, item, f"{field}.items[{index}]"))
    distinct = tuple(dict.fromkeys(units))
    require_enough(given.name, len(distinct), kind="texts or items that differ as tokens")
    return UnitSet(
        name=given.name,
        role=given.role,
        units=distinct,
        sha256=_digest(given),
        repeated=len(units) - len(distinct),
    )


def retain_set(retain: RetainText) -> UnitSet:
    """Make a set of the windows of a retain text."""
    require_enough(retain.name, len(retain.windows))
    units = tuple(TextUnit(window) for window in retain.windows if len(window) >= _FEWEST_TOKENS)
    return UnitSet(name=retain.name, role=SetRole.RETAIN, units=units, sha256=retain.sha256)


def _text(hosted: HostedModel, text: str, field: str) -> TextUnit:
    ids = _encode(hosted, text, field)
    if len(ids) < _FEWEST_TOKENS:
        raise InvalidRequestError(
            f"{field} has {len(ids)} tokens; at least {_FEWEST_TOKENS} are needed, position 0 is left out",
            field=field,
        )
    return TextUnit(ids)


def _item(hosted: HostedModel, item: ChoiceItem, field: str) -> ItemUnit:
    prompt = _encode(hosted, item.prompt, f"{field}.prompt")
    choices = tuple(
        _encode(hosted, choice, f"{field}.choices[{number}]", room=len(prompt))
        for number, choice in enumerate(item.choices)
    )
    if len(set(choices)) < len(choices):
        raise InvalidRequestError(f"{field} offers the same choice twice", field=f"{field}.choices")
    return ItemUnit(prompt, choices, item.answer)


def _encode(hosted: HostedModel, text: str, field: str, *, room: int = 0) -> tuple[int, ...]:
    try:
        return tuple(hosted.encode(text, room=room))
    except TrephineError as error:
        raise error.with_field(field) from None


def _digest(given: EvaluationSet) -> str:
    parts: list[Sequence[str]] = [given.texts]
    parts += [(item.prompt, *item.choices, str(item.answer)) for item in given.items]
    joined = "\x1e".join("\x1f".join(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()
