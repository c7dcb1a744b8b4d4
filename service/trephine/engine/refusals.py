"""What this release refuses of the intervention language, before any work, naming the field."""

from __future__ import annotations

from trephine.domain.errors import (
    FeatureOutOfRangeError,
    ShapeMismatchError,
    UnsupportedInterventionError,
)
from trephine.domain.interventions import (
    Ablate,
    AddNormScaled,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Resample,
    Scale,
    SiteTarget,
)
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.engine.architecture import Architecture
from trephine.engine.sites import place_in_pass, require_layer, require_site, site_width


def check_intervention(architecture: Architecture, intervention: Intervention) -> None:
    """Refuse what does not exist and what is not supported.

    Raises:
        LayerOutOfRangeError: If a layer does not exist.
        FeatureOutOfRangeError: If a neuron does not exist.
        ShapeMismatchError: If a direction's width is not the site's.
        UnsupportedInterventionError: If the language can say it and this release cannot do it.
    """
    _check_target(architecture, intervention)
    _check_mode(intervention)
    _check_condition(architecture, intervention)


def check_feature(architecture: Architecture, feature: FeatureRef, *, field: str) -> None:
    """Refuse a feature that the model's replacement layers do not have.

    Raises:
        UnsupportedInterventionError: If it names another replacement set than the neurons.
        LayerOutOfRangeError: If the layer does not exist.
        FeatureOutOfRangeError: If the index does not exist.
    """
    if feature.replacement != NEURONS:
        raise UnsupportedInterventionError(
            f"replacement set {feature.replacement!r} is not loaded; this release knows {NEURONS!r}",
            field=f"{field}.replacement",
        )
    require_layer(architecture, feature.layer)
    if not 0 <= feature.index < architecture.d_mlp:
        raise FeatureOutOfRangeError(
            f"neuron {feature.index} does not exist; layer {feature.layer} has neurons "
            f"0 to {architecture.d_mlp - 1}",
            field=f"{field}.index",
            index=feature.index,
            d_mlp=architecture.d_mlp,
        )


def _check_target(architecture: Architecture, intervention: Intervention) -> None:
    target, operation = intervention.target, intervention.operation
    if isinstance(target, FeatureTarget):
        check_feature(architecture, target.feature, field="target.feature")
        if isinstance(operation, AddNormScaled):
            raise _unsupported("operation", "add_norm_scaled needs a direction; features take `add`")
        return
    require_site(architecture, target.site)
    if isinstance(target, DirectionTarget):
        width = site_width(architecture, target.site)
        if len(target.vector) != width:
            raise ShapeMismatchError(
                f"the direction has {len(target.vector)} numbers, {target.site.kind.value} has {width}",
                field="target.vector",
                got=len(target.vector),
                expected=width,
            )
    elif not isinstance(operation, Ablate | Scale | MeanAblate | Resample):
        raise _unsupported(
            "operation",
            f"{operation.kind} needs a feature or a direction; a whole site takes "
            "ablate, scale, mean_ablate and resample",
        )
    if intervention.error_term is not ErrorTerm.LIVE:
        raise _unsupported("error_term", "only features have an error term; leave it `live`")


def _check_mode(intervention: Intervention) -> None:
    if intervention.mode.last_layer is not None:
        raise _unsupported("mode.last_layer", "a limited layer range is not carried out by this release")
    if intervention.mode.heads:
        raise _unsupported("mode.heads", "changes seen by single heads are not carried out by this release")


def _check_condition(architecture: Architecture, intervention: Intervention) -> None:
    condition = intervention.condition
    if condition is None:
        return
    check_feature(architecture, condition.feature, field="condition.feature")
    read, written = Site(kind=SiteKind.NEURONS, layer=condition.feature.layer), site_written(intervention)
    if place_in_pass(read) > place_in_pass(written):
        raise _unsupported(
            "condition.feature",
            f"a neuron of layer {read.layer} is computed after {written.kind.value} of layer {written.layer} "
            "is written; choose a feature of an earlier layer",
        )


def site_written(intervention: Intervention) -> Site:
    """Return the site that an intervention writes.

    A neuron is written where the down projection reads it. `project_out` of a neuron removes from the
    MLP's output its component along the neuron's decoder, whichever neurons wrote it.
    """
    target = intervention.target
    if isinstance(target, DirectionTarget | SiteTarget):
        return target.site
    projects = intervention.operation.kind == "project_out"
    return Site(kind=SiteKind.MLP_OUT if projects else SiteKind.NEURONS, layer=target.feature.layer)


def _unsupported(field: str, message: str) -> UnsupportedInterventionError:
    return UnsupportedInterventionError(f"{field}: {message}", field=field)
