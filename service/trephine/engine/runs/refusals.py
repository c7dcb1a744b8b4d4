"""What this release refuses of the intervention language, before any work, naming the field."""

from __future__ import annotations

from trephine.domain.errors import ShapeMismatchError, UnsupportedInterventionError
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
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import place_in_pass, require_site, site_width
from trephine.engine.replacements.sets import layer_info, require_feature


def check_intervention(hosted: HostedModel, intervention: Intervention) -> None:
    """Refuse what does not exist and what is not supported.

    Raises:
        ReplacementNotFoundError: If a feature's replacement set is not loaded.
        LayerOutOfRangeError: If a layer does not exist.
        FeatureOutOfRangeError: If a neuron or feature does not exist.
        ShapeMismatchError: If a direction's width is not the site's.
        UnsupportedInterventionError: If the language can say it and this release cannot do it.
    """
    _check_target(hosted, intervention)
    _check_mode(intervention)
    _check_condition(hosted, intervention)


def _check_target(hosted: HostedModel, intervention: Intervention) -> None:
    target, operation = intervention.target, intervention.operation
    if isinstance(target, FeatureTarget):
        info = require_feature(hosted, target.feature, field="target.feature")
        if isinstance(operation, AddNormScaled):
            raise _unsupported("operation", "add_norm_scaled needs a direction; features take `add`")
        _check_feature_of_set(target.feature, info, intervention)
        return
    require_site(hosted.architecture, target.site)
    if isinstance(target, DirectionTarget):
        width = site_width(hosted.architecture, target.site)
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


def _check_feature_of_set(
    feature: FeatureRef, info: ReplacementLayerInfo, intervention: Intervention
) -> None:
    """Refuse what a single layer of a set cannot mean. Neurons reconstruct exactly: all modes agree."""
    if feature.replacement == NEURONS or len(info.sites_out) == 1:
        return
    if intervention.error_term is not ErrorTerm.LIVE:
        raise _unsupported(
            "error_term",
            "a cross-layer transcoder's layer reconstructs no site on its own, so its error can be neither "
            "frozen nor dropped; leave it `live`",
        )
    if isinstance(intervention.operation, ProjectOut):
        raise _unsupported(
            "operation",
            f"feature {feature.layer}:{feature.index} writes {len(info.sites_out)} sites, so there is no one "
            "decoder to project out; use `ablate`",
        )


def _check_mode(intervention: Intervention) -> None:
    if intervention.mode.last_layer is not None:
        raise _unsupported("mode.last_layer", "a limited layer range is not carried out by this release")
    if intervention.mode.heads:
        raise _unsupported("mode.heads", "changes seen by single heads are not carried out by this release")


def _check_condition(hosted: HostedModel, intervention: Intervention) -> None:
    condition = intervention.condition
    if condition is None:
        return
    require_feature(hosted, condition.feature, field="condition.feature")
    read, decided = feature_site(hosted, condition.feature), _decided_at(hosted, intervention)
    if place_in_pass(read) > place_in_pass(decided):
        does = "read" if is_of_set(intervention) else "written"
        raise _unsupported(
            "condition.feature",
            f"a feature of layer {read.layer} is computed after {decided.kind.value} of layer "
            f"{decided.layer} is {does}; choose a feature of an earlier layer",
        )


def _decided_at(hosted: HostedModel, intervention: Intervention) -> Site:
    """Return the site at which it is decided whether an intervention acts: sets decide when they encode."""
    target = intervention.target
    if is_of_set(intervention) and isinstance(target, FeatureTarget):
        return feature_site(hosted, target.feature)
    return site_written(hosted, intervention)


def is_of_set(intervention: Intervention) -> bool:
    """True if it changes features of a loaded set: read at one site, written at another."""
    target = intervention.target
    if not isinstance(target, FeatureTarget) or target.feature.replacement == NEURONS:
        return False
    return not isinstance(intervention.operation, ProjectOut)


def feature_site(hosted: HostedModel, feature: FeatureRef) -> Site:
    """Return the site from which a feature's activation is known in a forward pass."""
    if feature.replacement == NEURONS:
        return Site(kind=SiteKind.NEURONS, layer=feature.layer)
    return layer_info(hosted, feature.replacement, feature.layer).site_in


def site_written(hosted: HostedModel, intervention: Intervention) -> Site:
    """Return the site of the coordinates that an intervention changes.

    A neuron is written where the down projection reads it, a feature of a set is known at its input site
    and written at its output sites. `project_out` of either removes from the output site its component
    along the decoder, whichever features wrote it.
    """
    target = intervention.target
    if isinstance(target, DirectionTarget | SiteTarget):
        return target.site
    if not isinstance(intervention.operation, ProjectOut):
        return feature_site(hosted, target.feature)
    return layer_info(hosted, target.feature.replacement, target.feature.layer).sites_out[0]


def _unsupported(field: str, message: str) -> UnsupportedInterventionError:
    return UnsupportedInterventionError(f"{field}: {message}", field=field)
