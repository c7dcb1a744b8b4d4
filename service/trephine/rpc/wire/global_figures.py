"""What was measured of global circuits."""

from __future__ import annotations

from trephine.domain import global_figures as domain
from trephine.rpc.wire.common import figure_to_wire
from trephine.rpc.wire.fields import clean
from trephine.rpc.wire.standings import STANDINGS
from trephine.v1 import global_circuits_pb2 as pb

WEIGHTINGS = {
    domain.EdgeWeighting.TWERA: pb.EDGE_WEIGHTING_TWERA,
    domain.EdgeWeighting.ERA: pb.EDGE_WEIGHTING_ERA,
}
_BASELINES = {
    domain.GlobalBaseline.VIRTUAL: pb.GLOBAL_BASELINE_VIRTUAL,
    domain.GlobalBaseline.VIRTUAL_ACTIVATION: pb.GLOBAL_BASELINE_VIRTUAL_ACTIVATION,
    domain.GlobalBaseline.PERMUTED: pb.GLOBAL_BASELINE_PERMUTED,
}
_MEASURED = {
    domain.Measured.SOURCE: pb.MEASURED_TOKENS_SOURCE_ACTIVE,
    domain.Measured.TARGET: pb.MEASURED_TOKENS_TARGET_ACTIVE,
}


def across_to_wire(figures: domain.GlobalFigures) -> pb.GlobalFigures:
    """Write figures of a global circuit."""
    return pb.GlobalFigures(
        weighting=WEIGHTINGS[figures.weighting],
        training=figures.training,
        held_out=figures.held_out,
        training_tokens=figures.training_tokens,
        held_out_tokens=figures.held_out_tokens,
        context_tokens=figures.context_tokens,
        features=figures.features,
        active_features=figures.active_features,
        candidates=figures.candidates,
        transfer=[_transfer_to_wire(one) for one in figures.transfer],
        split_half=None if figures.split_half is None else figure_to_wire(figures.split_half),
        split_half_overlap=figures.split_half_overlap,
        coverage=None if figures.coverage is None else figure_to_wire(figures.coverage),
        seed=figures.seed,
    )


def _transfer_to_wire(transfer: domain.HeldOutTransfer) -> pb.HeldOutTransfer:
    return pb.HeldOutTransfer(
        measured=_MEASURED[transfer.measured],
        edges=transfer.edges,
        spearman=figure_to_wire(transfer.spearman),
        comparisons=[
            pb.BaselineComparison(
                baseline=_BASELINES[one.baseline],
                spearman=figure_to_wire(one.spearman),
                difference=figure_to_wire(one.difference),
                standing=STANDINGS[one.standing],
                how=clean(one.how),
            )
            for one in transfer.comparisons
        ],
        how=clean(transfer.how),
    )
