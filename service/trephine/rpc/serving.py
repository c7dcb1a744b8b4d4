"""Rows with the edits that they are served under."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from trephine.app.edits.live_edits import LiveEdits
from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.errors import TrephineError
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


@asynccontextmanager
async def located() -> AsyncIterator[None]:
    """Name the field of an engine's refusal as the client wrote it: `rows[2].interventions[0].selector`."""
    try:
        yield
    except TrephineError as error:
        row, field = error.context.get("row"), str(error.context.get("field", ""))
        index = error.context.get("intervention")
        if row is not None and "intervention_of_edits" in error.context:
            error.context["field"] = f"rows[{row}].edits"
        elif row is not None and index is not None:
            inside = field.removeprefix(f"interventions[{index}]").lstrip(".")
            error.context["field"] = f"rows[{row}].interventions[{index}].{inside}".rstrip(".")
        raise


def served(rows: Sequence[RowT], stacks: Sequence[Stack]) -> tuple[RowT, ...]:
    """Put the interventions of edits in front of each row's own."""
    return tuple(_served(row, stack) for row, stack in zip(rows, stacks, strict=True))


def _served(row: RowT, stack: Stack) -> RowT:
    edits: tuple[Intervention, ...] = interventions_of(stack)
    return replace(row, interventions=(*edits, *row.interventions), from_edits=len(edits))
