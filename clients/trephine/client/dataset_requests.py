"""Requests about circuits over datasets. Shared by the sync and the async surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.requests import fresh_id
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import set_id
from trephine.client.types import DatasetExample, EffectEstimator, ErrorTerm, NodeAblation, PositionRule
from trephine.v1 import dataset_circuits_pb2 as pb
from trephine.v1 import interventions_pb2


@sendable
def discover_dataset(
    model: str,
    training: Sequence[DatasetExample],
    held_out: Sequence[DatasetExample],
    *,
    estimator: EffectEstimator | str | None = None,
    positions: PositionRule | str | None = None,
    patch: NodeAblation | str | None = None,
    ablations: Sequence[NodeAblation | str] = (),
    error_term: ErrorTerm | str | None = None,
    curve: bool = True,
    request_id: str | None = None,
    **options: Any,
) -> pb.DiscoverDatasetCircuitRequest:
    """Find the circuit of a behaviour. `options` are fields of the request; None leaves one unset."""
    given = {name: value for name, value in options.items() if value is not None}
    if "replacement" in given:
        given["replacement"] = set_id(given["replacement"], model)
    if "beside" in given:
        given["beside"] = [set_id(one, model) for one in listed(given["beside"], "beside")]
    return pb.DiscoverDatasetCircuitRequest(
        model=model,
        training=[_example(one) for one in training],
        held_out=[_example(one) for one in held_out],
        estimator=_number(pb.EffectEstimator, "EFFECT_ESTIMATOR", estimator),
        positions=_number(pb.PositionRule, "POSITION_RULE", positions),
        patch=_number(pb.NodeAblation, "NODE_ABLATION", patch),
        ablations=[_number(pb.NodeAblation, "NODE_ABLATION", one) for one in ablations],
        error_term=_number(interventions_pb2.ErrorTerm, "ERROR_TERM", error_term),
        without_curve=not curve,
        request_id=fresh_id(request_id),
        **given,
    )


def _example(one: DatasetExample) -> pb.DatasetExample:
    return pb.DatasetExample(
        clean=one.clean,
        corrupted=one.corrupted,
        answers=listed(one.answers, "answers"),
        wrong=listed(one.wrong, "wrong"),
    )


def _number(enum: Any, prefix: str, value: str | None) -> Any:
    return enum.Value(f"{prefix}_{str(value or 'unspecified').upper()}")
