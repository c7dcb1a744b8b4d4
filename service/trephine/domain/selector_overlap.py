"""Where two selectors can touch the same position of the same text."""

from __future__ import annotations

from collections.abc import Iterable

from trephine.domain.interventions import Phase, Selector


def overlap(first: Selector, second: Selector) -> str | None:
    """Describe where both can act; None if they never do.

    What cannot be told before a text is there counts as an overlap: position 3 may be position -1.
    """
    phases = [phase for phase in Phase if phase in first.phases and phase in second.phases]
    if not phases:
        return None
    positions = _both(first.positions, second.positions)
    tokens = _both(first.tokens, second.tokens)
    if positions is not None:
        maybe = _mixed(first.positions or (), second.positions or ())
        left = set(positions) - {*first.exclude_positions, *second.exclude_positions}
        if not left and not maybe:
            return None
        positions = tuple(sorted(left)) or tuple(
            sorted({*(first.positions or ()), *(second.positions or ())})
        )
    if tokens is not None:
        tokens = tuple(sorted(set(tokens) - {*first.exclude_tokens, *second.exclude_tokens}))
        if not tokens:
            return None
    return _described(positions, tokens, phases)


def _both(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """What both include; None stands for everything."""
    if first is None or second is None:
        return first if second is None else second
    return tuple(sorted(set(first) & set(second)))


def _mixed(first: Iterable[int], second: Iterable[int]) -> bool:
    """True if one counts from the beginning where the other counts from the end of the prompt."""
    ours, theirs = {p < 0 for p in first}, {p < 0 for p in second}
    return bool(ours and theirs) and len(ours | theirs) > 1


def _described(positions: tuple[int, ...] | None, tokens: tuple[int, ...] | None, phases: list[Phase]) -> str:
    where = "every position" if positions is None else f"positions {', '.join(map(str, positions))}"
    if tokens is not None:
        held = f"tokens {', '.join(map(str, tokens))}"
        where = f"every position with {held}" if positions is None else f"{where} if they hold {held}"
    return where if len(phases) == len(Phase) else f"{where} of the {phases[0].value}"
