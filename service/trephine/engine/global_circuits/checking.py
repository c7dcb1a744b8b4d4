"""What can be said of a global circuit before the model is run."""

from __future__ import annotations

from collections.abc import Generator

from trephine.domain.commands import Progress
from trephine.domain.global_circuits import CheckedGlobalCircuit, CheckGlobalCircuit
from trephine.engine.global_circuits.discovery import prepared
from trephine.engine.global_circuits.texts import count_read
from trephine.engine.models.session import Handler, Session


def check_global_circuit(
    session: Session, command: CheckGlobalCircuit
) -> Generator[Progress | None, None, CheckedGlobalCircuit]:
    """Refuse what `discover_global_circuit` would refuse before its first pass, without running the model.

    Raises:
        TrephineError: Naming the text, the feature or the option that cannot be used.
    """
    study = prepared(session.require_model(), command.command)
    yield None
    return CheckedGlobalCircuit(
        features=study.space.count,
        layers=study.space.layers,
        training_tokens=count_read(study.training),
        held_out_tokens=count_read(study.held_out),
    )


HANDLERS: dict[type, Handler] = {CheckGlobalCircuit: check_global_circuit}
