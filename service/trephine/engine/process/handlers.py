"""Everything the engine can carry out, merged from the modules that do it. Importing this imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trephine.engine.admission import evaluation as replacement_evaluation
from trephine.engine.admission import loading as replacement_loading
from trephine.engine.dataset_circuits import checking as dataset_circuit_checks
from trephine.engine.dataset_circuits import discovery as dataset_circuits
from trephine.engine.edit_evaluation import evaluate as edit_evaluation
from trephine.engine.edits import directions, effects, proposals
from trephine.engine.exports import classifier, export, planning
from trephine.engine.features import handlers as features
from trephine.engine.fitting import command as fitting
from trephine.engine.global_circuits import checking as global_circuit_checks
from trephine.engine.global_circuits import discovery as global_circuits
from trephine.engine.graphs import discover as discovery
from trephine.engine.models import loading, session, text
from trephine.engine.models.session import Handler
from trephine.engine.runs import activations, generation, scoring
from trephine.engine.spurious import checking as spurious_checks
from trephine.engine.spurious import removal as spurious_removal
from trephine.engine.tracing import edges, tracing
from trephine.engine.verification import verify as circuit_verification


def merge(parts: Iterable[Mapping[type, Handler]]) -> dict[type, Handler]:
    """Merge tables of handlers.

    Raises:
        TypeError: If two modules serve the same command.
    """
    merged: dict[type, Handler] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise TypeError(f"two modules serve {', '.join(command.__name__ for command in twice)}")
        merged.update(part)
    return merged


HANDLERS = merge(
    module.HANDLERS
    for module in (
        session,
        loading,
        text,
        generation,
        scoring,
        activations,
        effects,
        proposals,
        edit_evaluation,
        discovery,
        edges,
        tracing,
        circuit_verification,
        dataset_circuit_checks,
        dataset_circuits,
        global_circuit_checks,
        global_circuits,
        spurious_checks,
        spurious_removal,
        directions,
        planning,
        export,
        classifier,
        features,
        replacement_loading,
        replacement_evaluation,
        fitting,
    )
)
