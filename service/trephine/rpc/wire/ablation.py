"""Measured effects of interventions."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.ablation import (
    AblationReport,
    ControlResult,
    Effect,
    MatchedControls,
    MeasureAblation,
)
from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Intervention
from trephine.rpc.wire.common import (
    feature_to_wire,
    logit_target_from_wire,
    token_to_wire,
    version_to_wire,
)
from trephine.rpc.wire.fields import at_least, clean, finite, prompt, within
from trephine.rpc.wire.interventions import applied_to_wire
from trephine.rpc.wire.live_edits import split_echo
from trephine.v1 import intervention_service_pb2 as pb


def ablation_from_wire(request: pb.AblateRequest, interventions: tuple[Intervention, ...]) -> MeasureAblation:
    """Read a measurement of `interventions`, which are the request's own or those of its edit.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not interventions:
        raise InvalidRequestError("at least one intervention, or an edit, is needed", field="interventions")
    with within("target"):
        target = logit_target_from_wire(request.target)
    return MeasureAblation(
        prompt=prompt(request.prompt),
        target=target,
        interventions=interventions,
        controls=None if request.without_controls else _controls_from_wire(request.controls),
        bound_positions=tuple(request.bound_positions) or None,
    )


def report_to_wire(report: AblationReport, stack: Sequence[EditInUse] = ()) -> pb.AblateResponse:
    """Write effects, controls and damage, and what a stack of edits did if one was measured."""
    edits, _ = split_echo(report.effects[0].applied if report.effects else (), stack)
    return pb.AblateResponse(
        target=token_to_wire(report.target),
        against=None if report.against is None else token_to_wire(report.against),
        effects=[_effect_to_wire(effect) for effect in report.effects],
        controls=None if report.controls is None else _control_result_to_wire(report.controls),
        retain_kl=report.retain_kl,
        retain_kl_after_first=report.retain_kl_after_first,
        retain_tokens=report.retain_tokens,
        version=version_to_wire(report.model, report.weight_hash),
        caveats=[clean(caveat) for caveat in report.caveats],
        edits=edits,
    )


def _controls_from_wire(message: pb.MatchedControls) -> MatchedControls:
    default = MatchedControls()
    with within("controls"):
        sets = at_least(message.sets, 1, "sets") if message.HasField("sets") else default.sets
        factor = default.norm_factor
        if message.HasField("norm_factor"):
            factor = finite(message.norm_factor, "norm_factor")
        if factor <= 1:
            raise InvalidRequestError(f"norm_factor must be above 1, got {factor}", field="norm_factor")
    return MatchedControls(sets=sets, norm_factor=factor, seed=message.seed)


def _effect_to_wire(effect: Effect) -> pb.AblationEffect:
    return pb.AblationEffect(
        name=clean(effect.name),
        baseline=effect.baseline,
        intervened=effect.intervened,
        change=effect.change,
        kl_last=effect.kl_last,
        applied=applied_to_wire(effect.applied),
    )


def _control_result_to_wire(result: ControlResult) -> pb.ControlResult:
    return pb.ControlResult(
        changes=result.changes,
        p_value=result.p_value,
        matched=result.matched,
        unmatched=[
            pb.UnmatchedFeature(feature=feature_to_wire(one.feature), candidates=one.candidates)
            for one in result.unmatched
        ],
        found=[
            pb.MatchedFeature(
                feature=feature_to_wire(one.feature),
                candidates=one.candidates,
                factor=one.factor,
                written=one.written,
            )
            for one in result.found
        ],
    )
