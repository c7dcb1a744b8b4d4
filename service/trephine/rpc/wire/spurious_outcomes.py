"""Whether a removal of spurious features held, on the wire."""

from __future__ import annotations

from trephine.domain.findings import Figure, Verdict
from trephine.domain.spurious_outcomes import Ground, RemovalOutcome
from trephine.rpc.wire.common import figure_to_wire
from trephine.rpc.wire.fields import clean
from trephine.v1 import audit_service_pb2, common_pb2
from trephine.v1 import spurious_outcome_pb2 as pb

_VERDICTS = {one: audit_service_pb2.Verdict.Value(f"VERDICT_{one.name}") for one in Verdict}
_GROUNDS = {one: pb.OutcomeGround.Value(f"OUTCOME_GROUND_{one.name}") for one in Ground}


def outcome_to_wire(one: RemovalOutcome) -> pb.RemovalOutcome:
    """Write an outcome; figures that were not measured stay unset."""
    return pb.RemovalOutcome(
        verdict=_VERDICTS[one.verdict],
        ground=_GROUNDS[one.ground],
        texts=one.texts,
        before=_figure(one.before),
        after=_figure(one.after),
        gain=_figure(one.gain),
        why=clean(one.why),
        settles=clean(one.settles),
    )


def _figure(figure: Figure | None) -> common_pb2.Figure | None:
    return None if figure is None else figure_to_wire(figure)
