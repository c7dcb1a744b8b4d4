"""Scores of a circuit's groups."""

from __future__ import annotations

from dataclasses import asdict

from trephine.domain import group_scores as domain
from trephine.rpc.wire.fields import clean
from trephine.rpc.wire.standings import STANDINGS
from trephine.v1 import circuit_group_scores_pb2 as pb

_QUALITIES = {one: pb.GroupQuality.Value(f"GROUP_QUALITY_{one.name}") for one in domain.GroupQuality}


def scores_to_wire(scores: domain.GroupingScores) -> pb.GroupingScores:
    """Write scores of a grouping."""
    return pb.GroupingScores(
        groups=[
            pb.GroupScore(
                group=clean(one.group),
                nodes=one.nodes,
                influence=one.influence,
                figures=[
                    pb.GroupFigure(
                        quality=_QUALITIES[figure.quality],
                        value=figure.value,
                        random=_range_to_wire(figure.random),
                    )
                    for figure in one.figures
                ],
            )
            for one in scores.groups
        ],
        whole=[
            pb.ScoredQuality(
                quality=_QUALITIES[one.quality],
                value=one.value,
                random=_range_to_wire(one.random),
                by_layer=_range_to_wire(one.by_layer),
                standing=STANDINGS[one.standing],
            )
            for one in scores.whole
        ],
        standing=STANDINGS[scores.standing],
        verdict=clean(scores.verdict),
        inside=scores.inside,
        cancelled=scores.cancelled,
        before=_picture_to_wire(scores.before),
        after=_picture_to_wire(scores.after),
        draws=scores.draws,
        seed=scores.seed,
        caveats=[clean(one) for one in scores.caveats],
    )


def _range_to_wire(found: domain.ControlRange) -> pb.ControlRange:
    return pb.ControlRange(**asdict(found))


def _picture_to_wire(found: domain.PictureFigures) -> pb.PictureFigures:
    return pb.PictureFigures(**asdict(found))
