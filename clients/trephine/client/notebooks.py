"""What notebooks show of a handle, for which they ask without awaiting. By hand, as its twin in `aio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trephine.client.types import NodeKind
from trephine.client.views import circuit_html

if TYPE_CHECKING:
    from trephine.client.circuit_queries import StoredCircuit
    from trephine.client.evaluation import Evaluation

_SHOWN_NODES = 20


def circuit_view(circuit: StoredCircuit) -> str:
    """The circuit's head figures and its strongest features, which the server is asked for."""
    return circuit_html(circuit.info, circuit.nodes(kind=NodeKind.FEATURE)[:_SHOWN_NODES])


def evaluation_view(evaluation: Evaluation) -> str | None:
    """The evaluation's page, which the server is asked for."""
    return evaluation.html()
