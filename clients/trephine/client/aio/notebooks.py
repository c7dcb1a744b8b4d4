"""What notebooks show of a handle, for which they ask without awaiting. By hand, as its sync twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trephine.client.views import circuit_html

if TYPE_CHECKING:
    from trephine.client.aio.circuit_queries import AsyncStoredCircuit
    from trephine.client.aio.evaluation import AsyncEvaluation


def circuit_view(circuit: AsyncStoredCircuit) -> str:
    """The circuit's head figures. Its features would have to be asked for: `await circuit.nodes()`."""
    return circuit_html(circuit.info, ())


def evaluation_view(evaluation: AsyncEvaluation) -> str | None:
    """None: a notebook shows the `repr`. Its page would have to be asked for: `await evaluation.html()`."""
    return None
