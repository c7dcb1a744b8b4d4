"""Global circuits: requests with their defaults, and what was measured of them."""

from __future__ import annotations

from trephine.app.circuits.global_circuit_costs import GlobalCost
from trephine.app.jobs.requests import GlobalCircuitRequest
from trephine.domain import global_circuits as domain
from trephine.domain import global_figures as figures
from trephine.domain.circuits import GraphSet
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS
from trephine.domain.targets import DirectionValue
from trephine.rpc.wire.circuit_targets import direction_from_wire
from trephine.rpc.wire.circuits import circuit_set_to_wire
from trephine.rpc.wire.common import feature_from_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, one_of, prompt, required, resource_id, within
from trephine.rpc.wire.global_figures import WEIGHTINGS, across_to_wire
from trephine.v1 import circuit_service_pb2 as service_pb
from trephine.v1 import global_circuits_pb2 as pb

_WEIGHTINGS = {
    pb.EDGE_WEIGHTING_UNSPECIFIED: figures.EdgeWeighting.TWERA,
    **{number: weighting for weighting, number in WEIGHTINGS.items()},
}
_BOUNDS = {
    "max_nodes": "nodes",
    "max_edges_per_node": "edges_per_node",
    "max_tokens": "tokens",
    "max_logits": "logits",
    "candidates": "candidates",
    "min_active": "min_active",
}
_OPTIONS = ("context_tokens", "verify_edges", "bootstrap", "seed")


def discover_global_from_wire(request: pb.DiscoverGlobalCircuitRequest) -> GlobalCircuitRequest:
    """Read a request, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    for index, layer in enumerate(request.layers):
        at_least(layer, 0, f"layers[{index}]")
    bounds = {name: getattr(request, field) for field, name in _BOUNDS.items() if _has(request, field)}
    options = {name: getattr(request, name) for name in _OPTIONS if _has(request, name)}
    command = domain.DiscoverGlobalCircuit(
        training=tuple(prompt(text, f"training[{n}]") for n, text in enumerate(request.training)),
        held_out=tuple(prompt(text, f"held_out[{n}]") for n, text in enumerate(request.held_out)),
        replacement=request.replacement or NEURONS,
        layers=tuple(dict.fromkeys(request.layers)) or None,
        start=_start(request),
        weighting=one_of(request.weighting, _WEIGHTINGS, "weighting"),
        bounds=domain.GlobalBounds(**bounds),
        **options,
    )
    return GlobalCircuitRequest(model=resource_id(request.model, "models", "model"), command=command)


def _start(request: pb.DiscoverGlobalCircuitRequest) -> domain.GrowthStart:
    features = []
    for number, message in enumerate(request.start_features):
        with within(f"start_features[{number}]"):
            features.append(feature_from_wire(message))
    tokens = [required(text, f"start_tokens[{n}]") for n, text in enumerate(request.start_tokens)]
    direction: DirectionValue | None = None
    if request.HasField("start_direction"):
        with within("start_direction"):
            direction = direction_from_wire(request.start_direction)
    return domain.GrowthStart(features=tuple(features), tokens=tuple(tokens), direction=direction)


def _has(request: pb.DiscoverGlobalCircuitRequest, field: str) -> bool:
    return bool(request.HasField(field))  # type: ignore[arg-type]  # the stub lists literals


def checked_to_wire(
    request: GlobalCircuitRequest,
    info: ModelInfo,
    spanned: GraphSet,
    cost: GlobalCost,
    checked: domain.CheckedGlobalCircuit,
) -> service_pb.Circuit:
    """Write what is known before anything is found; time and memory are predictions."""
    command = request.command
    return service_pb.Circuit(
        replacement=clean(command.replacement),
        edge_rule=command.weighting.value,
        version=version_to_wire(info.name, info.weight_hash),
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
        sets=[circuit_set_to_wire(spanned)],
        layers=checked.layers,
        across=across_to_wire(
            figures.GlobalFigures(
                weighting=command.weighting,
                training=len(command.training),
                held_out=len(command.held_out),
                active_features=0,
                training_tokens=checked.training_tokens,
                held_out_tokens=checked.held_out_tokens,
                context_tokens=command.context_tokens,
                features=checked.features,
                candidates=min(command.bounds.candidates, checked.features),
                seed=command.seed,
            )
        ),
    )
