"""Requests about circuits that no single prompt decides. Shared by the sync and the async surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.feature_requests import Address, feature_ref
from trephine.client.requests import fresh_id
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import AnySet, set_id
from trephine.client.target_requests import direction_value
from trephine.client.types import DirectionValue, EdgeWeighting
from trephine.v1 import global_circuits_pb2 as pb


@sendable
def discover_global(
    model: str,
    training: Sequence[str],
    held_out: Sequence[str],
    *,
    replacement: AnySet | None = None,
    start_features: Sequence[Address] = (),
    start_tokens: Sequence[str] = (),
    start_direction: DirectionValue | None = None,
    weighting: EdgeWeighting | str | None = None,
    request_id: str | None = None,
    **options: Any,
) -> pb.DiscoverGlobalCircuitRequest:
    """Find edges over many texts. `options` are fields of the request; None leaves one unset."""
    name = "neurons" if replacement is None else set_id(replacement, model)
    return pb.DiscoverGlobalCircuitRequest(
        model=model,
        training=listed(training, "training"),
        held_out=listed(held_out, "held_out"),
        replacement=name,
        start_features=[feature_ref(one, name) for one in listed(start_features, "start_features")],
        start_tokens=listed(start_tokens, "start_tokens"),
        start_direction=None if start_direction is None else direction_value(start_direction),
        weighting=pb.EdgeWeighting.Value(f"EDGE_WEIGHTING_{str(weighting or 'unspecified').upper()}"),
        request_id=fresh_id(request_id),
        **{name: value for name, value in options.items() if value is not None},
    )
