"""Rows with the edits that they are served under."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from trephine.app.live_edits import LiveEdits
from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.generation import Row, ScoredRow
from trephine.domain.interventions import Intervention
from trephine.rpc.wire.live_edits import interventions_of, uses_from_wire
from trephine.v1 import generation_service_pb2 as pb

RowT = TypeVar("RowT", Row, ScoredRow)
Stack = tuple[EditInUse, ...]


async def stacks_of(
    live: LiveEdits, model: str, rows: Iterable[pb.GenerationRow | pb.ScoreRow]
) -> tuple[Stack, ...]:
    """Find the edits of every row: those that it names, else its model's, unless it wants none.

    Raises:
        TrephineError: Naming the field, `rows[2].edits[0].edit`.
    """
    return tuple(
        [
            await live.stack(
                model,
                uses_from_wire(row.edits, f"rows[{place}].edits"),
                plain=row.without_edits,
                field=f"rows[{place}].edits",
            )
            for place, row in enumerate(rows)
        ]
    )


def served(rows: Sequence[RowT], stacks: Sequence[Stack]) -> tuple[RowT, ...]:
    """Put the interventions of edits in front of each row's own."""
    return tuple(_served(row, stack) for row, stack in zip(rows, stacks, strict=True))


def _served(row: RowT, stack: Stack) -> RowT:
    edits: tuple[Intervention, ...] = interventions_of(stack)
    return replace(row, interventions=(*edits, *row.interventions), from_edits=len(edits))
