"""What an edit asks of the weights: its interventions sorted by the tier that can write them.

- neurons: scaled and shifted where the down projection reads them (exact);
- maps: a component along a direction scaled or shifted where a linear module reads or writes (exact);
- features of threshold transcoders from the MLP's input to its output: extra neurons (graft);
- the rest: fitted on what the module that writes there reads (ridge).

Nothing else, and nothing that is bound to positions, tokens or other features: refused by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from trephine.domain.errors import TrephineError
from trephine.domain.interventions import (
    Ablate,
    AddNormScaled,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    ProjectOut,
    Resample,
    Scale,
    SiteTarget,
)
from trephine.domain.replacements import ReplacementLayerInfo, SupportRule
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.engine.interventions.changes import Affine, Change, PartOf, at_strength, change_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.refusals import check_intervention
from trephine.engine.weights.expressible import SERVED, refusal, require_everywhere, require_unlimited
from trephine.engine.weights.linear import MapOp
from trephine.engine.weights.piecewise import difference_of
from trephine.engine.weights.placing import placed, post_normed, writer_of

_KEPT_SHAPES = "every tensor is to keep its shape"


@dataclass(slots=True, kw_only=True)
class NeuronOp:
    """One neuron: `factor * a + shift`."""

    layer: int
    index: int
    numbers: list[int] = field(default_factory=list)
    factor: float = 1.0
    shift: float = 0.0


@dataclass(slots=True, kw_only=True)
class FeatureOp:
    """All operations on one feature of a set, in order."""

    feature: FeatureRef
    numbers: list[int] = field(default_factory=list)
    changes: list[tuple[Affine, float | None]] = field(default_factory=list)
    """Each with the smallest activation of the feature itself at which it applies."""
    order: int | None = None
    """First intervention on its layer of its set, whose features all arrive together; None: its own first."""

    @property
    def arrives(self) -> int:
        """Among what is done at one site, the intervention in whose place it is done."""
        return self.numbers[0] if self.order is None else self.order


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """An edit, sorted."""

    neurons: tuple[NeuronOp, ...]
    grafts: tuple[FeatureOp, ...]
    maps: tuple[MapOp, ...]
    """At sites where a linear module reads or writes, in the order of a forward pass; a residual site's is
    moved to its writer."""
    fits: tuple[FeatureOp | MapOp, ...]
    reasons: dict[int, str]
    """Intervention -> why it can only be fitted."""


def sort_operations(
    hosted: HostedModel, interventions: Sequence[Intervention], *, keep_shapes: bool = False
) -> Operations:
    """Sort an edit's interventions; with `keep_shapes` no neuron is added, so that features are fitted.

    Raises:
        EditNotExpressibleError: With the field that no weights can express, and why.
    """
    neurons: dict[tuple[int, int], NeuronOp] = {}
    features: dict[FeatureRef, FeatureOp] = {}
    orders: dict[tuple[str, int], int] = {}
    maps: list[MapOp] = []
    for number, intervention in enumerate(interventions):
        where = f"interventions[{number}]"
        _require_expressible(hosted, intervention, where)
        target = intervention.target
        if not isinstance(target, FeatureTarget) or isinstance(intervention.operation, ProjectOut):
            maps.append(_map(hosted, number, intervention))
            continue
        change = _affine(intervention, where)
        if target.feature.replacement == NEURONS:
            layer, index = target.feature.layer, target.feature.index
            neuron = neurons.setdefault((layer, index), NeuronOp(layer=layer, index=index))
            neuron.numbers.append(number)
            neuron.shift = neuron.shift * float(change.factor) + float(change.shift)
            neuron.factor *= float(change.factor)
        else:
            of = target.feature
            order = orders.setdefault((of.replacement, of.layer), number)
            op = features.setdefault(of, FeatureOp(feature=of, order=order))
            op.numbers.append(number)
            condition = intervention.condition
            op.changes.append((change, None if condition is None else condition.at_least))
    found = tuple(features.values())
    return _by_tier(hosted, tuple(neurons.values()), found, maps, keep_shapes=keep_shapes)


def _by_tier(
    hosted: HostedModel,
    neurons: tuple[NeuronOp, ...],
    features: tuple[FeatureOp, ...],
    maps: list[MapOp],
    *,
    keep_shapes: bool,
) -> Operations:
    reasons: dict[int, str] = {}
    grafts: list[FeatureOp] = []
    fits: list[FeatureOp | MapOp] = []
    for op in features:
        why = _KEPT_SHAPES if keep_shapes else why_not_grafted(hosted, op)
        (fits if why else grafts).append(op)
        reasons |= dict.fromkeys(op.numbers, why) if why else {}
    exact: list[MapOp] = []
    for moved, why in placed(hosted, maps, _written(hosted, features)):
        reasons |= {moved.number: why} if why else {}
        if why:
            fits.append(moved)
        else:
            exact.append(moved)
    _require_norms_own(hosted, exact, [*grafts, *fits])
    return Operations(
        neurons=neurons, grafts=tuple(grafts), maps=tuple(exact), fits=tuple(fits), reasons=reasons
    )


def _require_norms_own(
    hosted: HostedModel, maps: Sequence[MapOp], others: Sequence[FeatureOp | MapOp]
) -> None:
    """Refuse to scale what a norm answers where something else is written through that norm as well."""
    written = {place for op in others for place in places_of(hosted, op)}
    for op in maps:
        if op.unit is None and post_normed(hosted, op.site) and op.site in written:
            raise refusal(
                f"interventions[{op.number}].operation",
                f"the gain of the norm behind the module scales all of {op.site.kind.value} of layer "
                f"{op.site.layer}, and what the edit changes there beside is written in front of that norm; "
                f"leave one of them out, {SERVED}",
            )


def places_of(hosted: HostedModel, op: FeatureOp | MapOp) -> list[Site]:
    """List the outputs of modules into which an operation is written."""
    if isinstance(op, MapOp):
        if op.site.kind is SiteKind.ATTN_Z:  # nothing writes there that has weights; what reads it has
            return [Site(kind=SiteKind.ATTN_OUT, layer=op.site.layer)]
        return [writer_of(hosted, op.site)]
    info = layer_info(hosted, op.feature.replacement, op.feature.layer)
    return [writer_of(hosted, site) for site in info.sites_out]


def _written(hosted: HostedModel, features: Sequence[FeatureOp]) -> list[tuple[Site, int]]:
    """List where features write, and in whose place among what is done there."""
    return [
        (site, op.arrives)
        for op in features
        for site in layer_info(hosted, op.feature.replacement, op.feature.layer).sites_out
    ]


def why_not_grafted(hosted: HostedModel, op: FeatureOp) -> str:
    """Say why what is done to a feature cannot become neurons of its layer's MLP; empty if it can."""
    feature = op.feature
    info = layer_info(hosted, feature.replacement, feature.layer)
    own = (Site(kind=SiteKind.MLP_IN, layer=info.layer), (Site(kind=SiteKind.MLP_OUT, layer=info.layer),))
    if info.support in (SupportRule.TOPK, SupportRule.ABS_TOPK):
        return "its gate compares all features of a position, which no neuron sees"
    if len(info.sites_out) > 1:
        return "it writes several layers, and a neuron writes one"
    if (info.site_in, info.sites_out) != own:
        return f"it reads {info.site_in.kind.value}, and the MLP reads its own input only"
    if not _fixed_scale(info):
        return "its input is normalised by its own norm, which no neuron computes"
    with opened(hosted, feature.replacement, [feature.layer]) as layers:
        thresholds = layers[feature.layer].thresholds()
    if thresholds is None:
        return "its gate has no threshold of its own"
    behind_norm = hosted.architecture.blocks[info.layer].mlp_post_norm is not None
    added = difference_of(op.changes, float(thresholds[feature.index]))
    if behind_norm and added.constant and not added.knots:
        return "what is added is a constant, which no gate makes, and a norm behind the MLP rescales it"
    return ""


def _fixed_scale(info: ReplacementLayerInfo) -> bool:
    return info.normalisation == "none" or info.normalisation.startswith("expected_average")


def _require_expressible(hosted: HostedModel, intervention: Intervention, where: str) -> None:
    require_everywhere(intervention.selector, where)
    require_unlimited(intervention.mode, where)
    operation, target, condition = intervention.operation, intervention.target, intervention.condition
    if isinstance(operation, MeanAblate | Resample):
        raise refusal(
            f"{where}.operation",
            f"weights have no text to take {operation.kind} from; measure the mean and use `set`",
        )
    if isinstance(operation, AddNormScaled):
        raise refusal(
            f"{where}.operation",
            f"add_norm_scaled depends on the activation's norm; use `add` with a measured amount, {SERVED}",
        )
    if condition is not None and not (
        isinstance(target, FeatureTarget)
        and target.feature == condition.feature
        and target.feature.replacement != NEURONS
    ):
        raise refusal(
            f"{where}.condition",
            "weights act on every input; they cannot ask for another feature's activation first; drop the "
            f"condition or ask for the feature itself (not for neurons), {SERVED}",
        )
    if condition is not None and isinstance(operation, ProjectOut):
        raise refusal(
            f"{where}.condition",
            "a direction is projected out of every position, by a matrix that knows no feature's activation; "
            f"drop the condition, or ablate the feature under it, {SERVED}",
        )
    if intervention.error_term is not ErrorTerm.LIVE and not _is_neuron(intervention):
        raise refusal(
            f"{where}.error_term",
            f"what the set does not explain stays in an MLP that is kept; leave it `live`, {SERVED}",
        )
    try:
        check_intervention(hosted, intervention)
    except TrephineError as error:
        raise error.with_field(f"{where}.{error.context.get('field', 'target')}") from None
    if isinstance(target, SiteTarget):
        _require_module_site(target.site, where)
    if isinstance(target, DirectionTarget) and target.site.kind in (SiteKind.MLP_IN, SiteKind.NEURONS):
        raise refusal(
            f"{where}.target.site",
            f"{target.site.kind.value} is read by several matrices or is no linear module's output; use "
            "neurons, mlp_out, attn_out, attn_z or a residual site",
        )


def _is_neuron(intervention: Intervention) -> bool:
    target = intervention.target
    return isinstance(target, FeatureTarget) and target.feature.replacement == NEURONS


def _require_module_site(site: Site, where: str) -> None:
    if site.kind not in (SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.ATTN_Z):
        raise refusal(
            f"{where}.target.site",
            f"no single module makes or reads the whole of {site.kind.value}; "
            "use mlp_out, attn_out or attn_z",
        )


def _affine(intervention: Intervention, where: str) -> Affine:
    change = _change(intervention, where)
    if not isinstance(change, Affine):
        raise refusal(
            f"{where}.operation",
            f"it depends on more than the value itself; use ablate, scale, set, clamp or add, {SERVED}",
        )
    bounded = float(change.low) != -inf or float(change.high) != inf
    if _is_neuron(intervention) and bounded:
        raise refusal(
            f"{where}.operation",
            "a column of weights can scale and shift a neuron, not clamp it; use ablate, scale, set or add, "
            f"{SERVED}",
        )
    return change


def _change(intervention: Intervention, where: str, norm: float = 1.0) -> Change:
    """Return what an intervention does at its strength, which weights carry where it scales and shifts."""
    change = at_strength(change_of(intervention.operation, norm=norm, donor=None), intervention.mode.strength)
    if isinstance(change, PartOf):
        raise refusal(
            f"{where}.mode.strength",
            f"{intervention.operation.kind} goes a share of its way in no weights; give it at full strength, "
            f"or use scale, set or add, whose strength is carried, {SERVED}",
        )
    return change


def _map(hosted: HostedModel, number: int, intervention: Intervention) -> MapOp:
    target, operation = intervention.target, intervention.operation
    unit: Tensor | None = None
    norm = 1.0
    if isinstance(target, FeatureTarget):
        info = layer_info(hosted, target.feature.replacement, target.feature.layer)
        site = info.sites_out[0]
        with opened(hosted, target.feature.replacement, [info.layer]) as layers:
            unit = layers[info.layer].decoders([target.feature.index], site)[0].to(torch.float64).cpu()
    elif isinstance(target, DirectionTarget):
        site, unit = target.site, torch.tensor(target.vector, dtype=torch.float64)
    else:
        site = target.site
    if unit is not None:
        norm = float(unit.norm())
        unit = unit / norm if norm else unit
    change = _change(intervention, f"interventions[{number}]", norm)
    if not isinstance(change, Affine) or (not isinstance(operation, Ablate | Scale) and unit is None):
        raise refusal(
            f"interventions[{number}].operation",
            f"a whole site can be scaled or ablated only; do one of these, {SERVED}",
        )
    return MapOp(number=number, site=site, origin=site, unit=unit, change=change)
