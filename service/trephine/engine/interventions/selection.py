"""Which columns of a forward pass a selector touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trephine.domain.errors import PositionOutOfRangeError, TokenOutOfRangeError
from trephine.domain.interventions import Phase, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One row's part of one forward pass: `ids` at positions `first, first + 1, ...`."""

    row: int
    ids: Sequence[int]
    first: int
    """Absolute position of the first id."""
    offset: int
    """Column of the first id; columns before it are padding."""
    n_prompt: int
    """Positions from here on belong to the generation phase."""


def selected_positions(selector: Selector, span: Span) -> list[int]:
    """Return the absolute positions of a span that a selector touches, ascending."""
    wanted = None if selector.positions is None else _absolute(selector.positions, span.n_prompt)
    unwanted = _absolute(selector.exclude_positions, span.n_prompt)
    return [
        position
        for position, token in enumerate(span.ids, start=span.first)
        if (wanted is None or position in wanted)
        and (selector.tokens is None or token in selector.tokens)
        and _phase(position, span) in selector.phases
        and position not in unwanted
        and token not in selector.exclude_tokens
    ]


def check_selector(selector: Selector, *, n_prompt: int, n_positions: int, d_vocab: int) -> None:
    """Refuse positions and tokens that a row can never have. Exclusions may name more than there is.

    Args:
        selector: What is asked for.
        n_prompt: Prompt tokens of the row.
        n_positions: Positions that the row has, tokens still to be generated included.
        d_vocab: Size of the vocabulary.

    Raises:
        PositionOutOfRangeError: If a position does not exist.
        TokenOutOfRangeError: If a token id does not exist.
    """
    for position in selector.positions or ():
        if not -n_prompt <= position < n_positions:
            raise PositionOutOfRangeError(
                f"position {position} does not exist: the row has positions 0 to {n_positions - 1}, "
                f"and -1 to -{n_prompt} count from the end of its prompt",
                field="selector.positions",
                position=position,
                n_positions=n_positions,
            )
    for token in (*(selector.tokens or ()), *selector.exclude_tokens):
        if not 0 <= token < d_vocab:
            raise TokenOutOfRangeError(
                f"token id {token} is outside the vocabulary (0 to {d_vocab - 1})",
                field="selector.tokens",
                token=token,
                d_vocab=d_vocab,
            )


def _absolute(positions: Sequence[int], n_prompt: int) -> frozenset[int]:
    return frozenset(p + n_prompt if p < 0 else p for p in positions)


def _phase(position: int, span: Span) -> Phase:
    return Phase.PROMPT if position < span.n_prompt else Phase.GENERATION
