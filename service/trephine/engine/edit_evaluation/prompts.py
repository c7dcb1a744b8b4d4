"""Prompts that could do what an edit does: given ones, and solved examples out of the target sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from trephine.domain.edit_evaluation import PromptingOptions
from trephine.domain.errors import TrephineError
from trephine.engine.edit_evaluation.reading import Arm, Ids
from trephine.engine.edit_evaluation.units import TextUnit, Unit, UnitSet
from trephine.engine.models.hosted import HostedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt; examples leave out the unit that is asked."""

    label: str
    in_front: Callable[[UnitSet | None, int], Ids]
    """Tokens in front of a unit of a target set, or of anything else (None)."""

    def arm(self, units: UnitSet | None) -> Arm:
        """Put it in front of the units of a set."""
        return Arm(prefix=partial(self.in_front, units))

    @property
    def tokens(self) -> int:
        """Its length in front of other texts."""
        return len(self.in_front(None, 0))


def prompts(
    hosted: HostedModel,
    targets: Sequence[UnitSet],
    options: PromptingOptions,
    *,
    upwards: bool,
    longest: int,
    seed: int,
) -> tuple[Prompt, ...]:
    """List the prompts that fit in front of everything.

    Args:
        hosted: The model.
        targets: Target sets; examples are taken out of them.
        options: Which prompts.
        upwards: Whether the edit raises the behaviour; else examples show another choice than the answer.
        longest: Tokens of the longest row that a prompt must fit in front of.
        seed: Of the order of examples.

    Raises:
        EmptyPromptError: If a given prompt has no token.
        PromptTooLongError: If a given prompt does not fit.
    """
    found = [_given(hosted, text, number, longest) for number, text in enumerate(options.prompts)]
    newline = tuple(hosted.encode("\n"))
    for shots in options.shots:
        prompt = _examples(targets, shots, newline, upwards=upwards, seed=seed)
        fits = max(len(prompt.in_front(one, 0)) for one in (None, *targets)) + longest
        enough = all(len(one.units) > shots for one in targets)
        if enough and fits <= hosted.info.context_length:
            found.append(prompt)
    return tuple(found)


def _given(hosted: HostedModel, text: str, number: int, longest: int) -> Prompt:
    try:
        ids = tuple(hosted.encode(text, room=longest))
    except TrephineError as error:
        raise error.with_field(f"prompting.prompts[{number}]") from None
    return Prompt(label=f"given {number + 1}", in_front=lambda _units, _number: ids)


def _examples(targets: Sequence[UnitSet], shots: int, newline: Ids, *, upwards: bool, seed: int) -> Prompt:
    def in_front(units: UnitSet | None, number: int) -> Ids:
        of = targets[0] if units is None else units
        order = torch.randperm(len(of.units), generator=torch.Generator().manual_seed(seed)).tolist()
        if units is not None:  # those that follow the unit that is asked, which itself is left out
            order = [*order[order.index(number) + 1 :], *order[: order.index(number)]]
        shown = [(*_solved(of.units[place], upwards=upwards), *newline) for place in order[:shots]]
        return tuple(token for one in shown for token in one)

    return Prompt(label=f"{shots} example{'s' if shots > 1 else ''}", in_front=in_front)


def _solved(unit: Unit, *, upwards: bool) -> Ids:
    if isinstance(unit, TextUnit):
        return unit.ids
    shown = unit.answer if upwards else (unit.answer + 1) % len(unit.choices)
    return (*unit.prompt, *unit.choices[shown])
