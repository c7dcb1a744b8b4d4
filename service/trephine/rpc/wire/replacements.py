"""Replacement sets: what is loaded, and how a load is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.sets.replacements import SetEntry, SetState
from trephine.domain import replacements as domain
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.common import site_to_wire, version_to_wire
from trephine.rpc.wire.fields import clean, is_resource_id, one_of, printable
from trephine.v1 import replacement_service_pb2 as pb

FORMATS: dict[pb.SetFormat.ValueType, domain.SetFormat] = {
    pb.SET_FORMAT_UNSPECIFIED: domain.SetFormat.AUTO,
    pb.SET_FORMAT_SAELENS: domain.SetFormat.SAELENS,
    pb.SET_FORMAT_CIRCUIT_TRACER: domain.SetFormat.CIRCUIT_TRACER,
    pb.SET_FORMAT_CIRCUIT_TRACER_CLT: domain.SetFormat.CIRCUIT_TRACER_CLT,
    pb.SET_FORMAT_GEMMA_SCOPE_2_CLT: domain.SetFormat.GEMMA_SCOPE_2_CLT,
    pb.SET_FORMAT_SPARSIFY: domain.SetFormat.SPARSIFY,
}
KINDS: dict[pb.LayerKind.ValueType, domain.LayerKind] = {
    pb.LAYER_KIND_SAE: domain.LayerKind.SAE,
    pb.LAYER_KIND_TRANSCODER: domain.LayerKind.TRANSCODER,
    pb.LAYER_KIND_SKIP_TRANSCODER: domain.LayerKind.SKIP_TRANSCODER,
    pb.LAYER_KIND_CROSS_LAYER_TRANSCODER: domain.LayerKind.CROSS_LAYER_TRANSCODER,
    pb.LAYER_KIND_NEURONS: domain.LayerKind.NEURONS,
}
KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
_FORMAT_NUMBERS = {format: number for number, format in FORMATS.items()}
_SUPPORT_NUMBERS: dict[domain.SupportRule, pb.SupportRule.ValueType] = {
    domain.SupportRule.RELU: pb.SUPPORT_RULE_RELU,
    domain.SupportRule.JUMPRELU: pb.SUPPORT_RULE_JUMPRELU,
    domain.SupportRule.TOPK: pb.SUPPORT_RULE_TOPK,
    domain.SupportRule.ABS_TOPK: pb.SUPPORT_RULE_ABS_TOPK,
    domain.SupportRule.GATED: pb.SUPPORT_RULE_GATED,
    domain.SupportRule.DENSE: pb.SUPPORT_RULE_DENSE,
}
_STATES: dict[SetState, pb.ReplacementState.ValueType] = {
    "available": pb.REPLACEMENT_STATE_AVAILABLE,
    "loaded": pb.REPLACEMENT_STATE_LOADED,
    "lost": pb.REPLACEMENT_STATE_LOST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetName:
    """A set's resource name, taken apart."""

    model: str | None
    """None for one on disk."""
    name: str


def set_name(text: str, field: str = "name") -> SetName:
    """Read `models/MODEL/replacements/SET` or `replacements/SET`, strictly.

    Raises:
        InvalidRequestError: Naming the field and the expected forms.
    """
    match text.split("/"):
        case ["models", model, "replacements", name] if is_resource_id(model) and is_resource_id(name):
            return SetName(model=model, name=name)
        case ["replacements", name] if is_resource_id(name):
            return SetName(model=None, name=name)
    raise InvalidRequestError(
        f"{field} must be like models/MODEL/replacements/SET or replacements/SET, got {printable(text)!r}",
        field=field,
    )


def loaded_set_name(text: str, field: str = "name") -> tuple[str, str]:
    """Read the name of a loaded set; return model and set.

    Raises:
        InvalidRequestError: Naming the field, also for a set on disk.
    """
    found = set_name(text, field)
    if found.model is None:
        raise InvalidRequestError(
            f"{printable(text)!r} is a set on disk; name a loaded one, models/MODEL/replacements/SET",
            field=field,
        )
    return found.model, found.name


def format_from_wire(number: pb.SetFormat.ValueType) -> domain.SetFormat:
    """Read a format; unspecified is told from the files."""
    return one_of(number, FORMATS, "format")


def set_to_wire(entry: SetEntry) -> pb.ReplacementSet:
    """Write a set; one on disk has a name and a state only."""
    message = pb.ReplacementSet() if entry.info is None else info_to_wire(entry.info)
    message.name, message.state, message.why = clean(entry.resource), _STATES[entry.state], clean(entry.why)
    return message


def info_to_wire(info: domain.ReplacementSetInfo) -> pb.ReplacementSet:
    """Write a loaded set."""
    return pb.ReplacementSet(
        name=clean(f"models/{info.model}/replacements/{info.name}"),
        state=pb.REPLACEMENT_STATE_LOADED,
        format=_FORMAT_NUMBERS[info.format],
        content_hash=clean(info.content_hash),
        version=version_to_wire(info.model, info.weight_hash),
        layers=[_layer_to_wire(layer) for layer in info.layers],
        admission=_admission_to_wire(info.admission),
        degraded=info.degraded,
        residency=residency_to_wire(info.residency),
    )


def predicted_to_wire(source: domain.ReplacementSource, model: str, memory_bytes: int) -> pb.ReplacementSet:
    """Write what is known of a set before it is loaded."""
    budget = source.memory_budget_bytes
    resident = memory_bytes if budget is None else min(memory_bytes, budget)
    return pb.ReplacementSet(
        name=clean(f"models/{model}/replacements/{source.name}"),
        state=pb.REPLACEMENT_STATE_AVAILABLE,
        format=_FORMAT_NUMBERS[source.format],
        residency=pb.Residency(total_bytes=memory_bytes, peak_bytes=resident, budget_bytes=budget or 0),
    )


def _layer_to_wire(layer: domain.ReplacementLayerInfo) -> pb.ReplacementLayer:
    return pb.ReplacementLayer(
        layer=layer.layer,
        kind=KIND_NUMBERS[layer.kind],
        support=_SUPPORT_NUMBERS[layer.support],
        site_in=site_to_wire(layer.site_in),
        sites_out=[site_to_wire(site) for site in layer.sites_out],
        d_in=layer.d_in,
        d_out=layer.d_out,
        d_sae=layer.d_sae,
        normalisation=clean(layer.normalisation),
        has_skip=layer.has_skip,
        claimed_l0=layer.claimed_l0,
        memory_bytes=layer.memory_bytes,
        content_hash=clean(layer.content_hash),
    )


def _admission_to_wire(admission: domain.Admission) -> pb.Admission:
    return pb.Admission(
        passed=admission.passed,
        why=clean(admission.why),
        layers=[_layer_admission_to_wire(layer) for layer in admission.layers],
        text=clean(admission.text),
        tokens=admission.tokens,
        begins_with=clean(admission.begins_with),
    )


def _layer_admission_to_wire(layer: domain.LayerAdmission) -> pb.LayerAdmission:
    return pb.LayerAdmission(
        layer=layer.layer,
        l0=layer.l0,
        fvu=layer.fvu,
        l0_first=layer.l0_first,
        fvu_first=layer.fvu_first,
        dead_share=layer.dead_share,
        convention=clean(layer.convention),
        margin=layer.margin,
        passed=layer.passed,
        why=clean(layer.why),
    )


def residency_to_wire(residency: domain.Residency) -> pb.Residency:
    """Write where a set's weights are."""
    return pb.Residency(
        total_bytes=residency.total_bytes,
        resident_bytes=residency.resident_bytes,
        peak_bytes=residency.peak_bytes,
        budget_bytes=residency.budget_bytes,
        loads=residency.loads,
        evictions=residency.evictions,
        pinned_bytes=residency.pinned_bytes,
    )
