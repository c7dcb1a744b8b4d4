"""What can be said of a dataset circuit before the model is run."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import (
    CheckDatasetCircuit,
    CheckedDatasetCircuit,
    ContextTokens,
    DiscoverDatasetCircuit,
)
from trephine.engine.dataset_circuits.contexts import Context, patch_of, read_splits
from trephine.engine.dataset_circuits.space import NodeSpace, node_space
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session


def check_dataset_circuit(
    session: Session, command: CheckDatasetCircuit
) -> Generator[Progress | None, None, CheckedDatasetCircuit]:
    """Refuse what `discover_dataset_circuit` would refuse, without running the model.

    Raises:
        TrephineError: Naming the context and column that cannot be used, or the option.
    """
    hosted, wanted = session.require_model(), command.command
    training, held_out = read_splits(hosted, wanted)
    yield None
    space = space_of(hosted, wanted, training)
    twins = [context.twin for context in training if context.twin is not None]
    lengths, others = _lengths(training), _lengths(held_out)
    return CheckedDatasetCircuit(
        candidates=space.count,
        patch=patch_of(wanted, training),
        tokens=ContextTokens(
            longest=max(*lengths, *others),
            longest_training=max(lengths),
            training=sum(len(context.ids) for context in training),
            twins=sum(map(len, twins)),
            held_out=sum(len(context.ids) for context in held_out),
        ),
    )


def _lengths(contexts: Sequence[Context]) -> list[int]:
    """Return how many tokens contexts have, and their twins."""
    return [len(ids) for one in contexts for ids in (one.ids, one.twin) if ids is not None]


def space_of(hosted: HostedModel, command: DiscoverDatasetCircuit, training: Sequence[Context]) -> NodeSpace:
    """Lay out the nodes that are asked for; errors are those of `node_space`."""
    return node_space(
        hosted,
        (command.replacement, *command.beside),
        command.layers,
        command.positions,
        len(training[0].ids),
        command.error_term,
    )


HANDLERS: dict[type, Handler] = {CheckDatasetCircuit: check_dataset_circuit}
