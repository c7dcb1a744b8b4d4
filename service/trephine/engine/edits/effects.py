"""MeasureAblation: what interventions do to a prompt's answer, against matched random controls."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median

from torch import Tensor

from trephine.domain.ablation import (
    AblationReport,
    ControlResult,
    Effect,
    MatchedControls,
    MeasureAblation,
)
from trephine.domain.commands import Progress
from trephine.domain.control_counts import acting, reached
from trephine.domain.errors import TrephineError, UnsupportedInterventionError
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.readouts import LogitReadout, logit_readout
from trephine.engine.edits.controls import (
    FEWEST_CANDIDATES,
    ControlDraws,
    draw_controls,
    is_decided,
    norms_of,
    place_of,
)
from trephine.engine.edits.written import WHATEVER_IS_THERE, written_on_prompt
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats, sets_of
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.resumption import CleanRun, clean_run, stream_bytes
from trephine.engine.runs.retain import retain_kl, retain_text
from trephine.engine.runs.rows import RowInput, RowsOutput, run_rows

Interventions = tuple[Intervention, ...]

BATCH_TOKENS = 256
"""Tokens of one forward pass."""
_SILENT = 0.1
"""More control sets than this share that change nothing are told."""
_FAR = 0.85
"""Stand-ins that would write less than this share of what the features write are told: they are moved further
than the features are."""
_ALIKE = 30
"""Candidates of a feature, below which sets of several features are told to be combinations of few."""
_CLEAN_BYTES = 1 << 28
"""A prompt's residual streams are kept up to this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A prompt and the quantity that is read at its last position."""

    hosted: HostedModel
    ids: tuple[int, ...]
    readout: LogitReadout

    def rows(self, plans: Sequence[Interventions], clean: CleanRun | None = None) -> RowsOutput:
        """Run the prompt once per plan, as one batch."""
        rows = [RowInput(ids=self.ids, interventions=plan) for plan in plans]
        return run_rows(self.hosted, rows, keep_last=1, clean=clean)

    def value(self, logits: Tensor) -> float:
        """Read the quantity off one row's logits `(n_pos, d_vocab)`, in logits."""
        return float(self.readout.measure(logits[-1]))

    def values(self, plans: Sequence[Interventions]) -> Generator[None, None, list[float]]:
        """Read the quantity under every plan, as many rows a quantum as `BATCH_TOKENS` holds.

        Plans that change high layers only are cheapest side by side: what is below is not run again.
        """
        size = max(1, BATCH_TOKENS // len(self.ids))
        clean = self._clean() if len(plans) > 1 else None
        found: list[float] = []
        for start in range(0, len(plans), size):
            found += [self.value(row) for row in self.rows(plans[start : start + size], clean).logits]
            yield None
        return found

    def _clean(self) -> CleanRun | None:
        if stream_bytes(self.hosted.architecture, len(self.ids)) > _CLEAN_BYTES:
            return None
        return clean_run(self.hosted.model, self.hosted.architecture, self.ids)


def measured_prompt(hosted: HostedModel, prompt: str, target: str, against: str | None) -> Measured:
    """Resolve a prompt and what is measured on it.

    Raises:
        EmptyPromptError: If the prompt has no token.
        PromptTooLongError: If it does not fit.
        TargetNotOneTokenError: If a target is not exactly one token.
    """
    ids = tuple(hosted.encode(prompt))
    target_id = _resolve(hosted, target, "target.token")
    against_id = None if against is None else _resolve(hosted, against, "target.against")
    return Measured(hosted=hosted, ids=ids, readout=logit_readout(hosted, target_id, against_id))


def _resolve(hosted: HostedModel, text: str, field: str) -> int:
    try:
        return hosted.resolve_target(text)
    except TrephineError as error:
        raise error.with_field(field) from None


def measure_ablation(
    session: Session, command: MeasureAblation
) -> Generator[Progress | None, None, AblationReport]:
    """Measure the interventions, their controls and their damage elsewhere.

    Where a feature has no control, the control sets stand in for the others only, and what they are
    compared with is the effect of those others only: it is reported as the effect `matched_only`.

    Raises:
        UnsupportedInterventionError: If controls are asked for and an intervention is not on a feature.
    """
    hosted = session.require_model().pinned()
    measured = measured_prompt(hosted, command.prompt, command.target.token, command.target.against)
    features = _features(command.interventions) if command.controls else ()
    effects = measure_effects(measured, _named_plans(command))
    yield Progress(stage="effects", done=1, total=1)
    retain = retain_text(hosted)
    damage = yield from retain_kl(hosted, retain, command.interventions)
    controls = None
    if command.controls:
        yield Progress(stage="controls", done=0, total=command.controls.sets)
        written = written_on_prompt(hosted, measured.ids, command.interventions)
        usual = {place_of(feature) for feature in features if not is_decided(written, feature)}
        norms = yield from norms_of(hosted, retain, usual)
        draws = draw_controls(norms, features, command.controls, written)
        if draws.unmatched and draws.matched:
            only = restricted(command.interventions, draws.matched)
            effects += measure_effects(measured, [("matched_only", only)])
            yield None
        controls = yield from _control_result(measured, command, draws, effects[-1 if draws.unmatched else 0])
    against = measured.readout.against
    return AblationReport(
        target=hosted.token(measured.readout.target),
        against=None if against is None else hosted.token(against),
        effects=tuple(effects),
        controls=controls,
        retain_kl=damage.everywhere,
        retain_kl_after_first=damage.after_first,
        retain_tokens=retain.n_tokens,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        caveats=(
            *beginning_caveats(hosted, sets_of(command.interventions), measured.ids),
            *_overflow_caveats(effects, controls),
            *_control_caveats(command.controls, controls),
        ),
    )


def _overflow_caveats(effects: Sequence[Effect], found: ControlResult | None) -> Iterator[str]:
    """Say that a change is no number: what was not measured is no effect."""
    for effect in effects:
        if not isfinite(effect.change):
            yield (
                f"The change of {effect.name} is no finite number ({effect.change:g}): the intervention "
                "overflows the model, so nothing was measured, and no p-value speaks for it; write less."
            )
    overflown = sum(not isfinite(change) for change in found.changes) if found else 0
    if found and overflown:
        yield (
            f"{overflown} of {len(found.changes)} control sets overflow the model: they count as changing "
            "the target as much."
        )


def _control_caveats(asked: MatchedControls | None, found: ControlResult | None) -> Iterator[str]:
    """Say what a p-value cannot show."""
    if asked is None or found is None:
        return
    if found.unmatched and not found.matched:
        yield (
            f"No feature has {FEWEST_CANDIDATES} candidates within a factor of {asked.norm_factor:g}, or of "
            "its double: there are no controls, and p is 1."
        )
    sets = len(found.changes)
    if found.matched and sets < asked.sets:
        widest = max(one.factor for one in found.found)
        yield (
            f"Only {sets} of {asked.sets} control sets exist within a factor of {widest:g}: p "
            f"cannot be below {1 / (sets + 1):.2g}."
        )
    yield from _match_caveats(asked, found)
    silent = sets - len(acting("logits", found.changes))
    if silent > _SILENT * sets:
        yield f"{silent} of {sets} control sets change nothing here: beside them any change looks special."


def _match_caveats(asked: MatchedControls, found: ControlResult) -> Iterator[str]:
    """Say how far the stand-ins are from the features, and how few they are."""
    wide = [one for one in found.found if one.factor > asked.norm_factor]
    if wide:
        yield (
            f"{len(wide)} of {found.matched} features are matched within a factor of up to "
            f"{max(one.factor for one in wide):g}: within {asked.norm_factor:g} there are fewer than "
            f"{FEWEST_CANDIDATES} candidates."
        )
    shares = [one.written for one in found.found if one.written is not None]
    if shares and median(shares) < _FAR:
        yield (
            f"Moved as the features are, their stand-ins would write {median(shares):.2f} of what they write "
            "(median): strong features have few equals. Each is moved by so much more that it writes as much."
        )
    fewest = min((one.candidates for one in found.found), default=0)
    if found.matched > 1 and fewest < _ALIKE:
        yield (
            f"The control sets combine as few as {fewest} candidates of a feature: they are more alike than "
            "different features would be, and p may be a little too small."
        )


def measure_effects(measured: Measured, named: Sequence[tuple[str, Interventions]]) -> list[Effect]:
    """Measure a few plans beside the plain model, in one forward pass."""
    output = measured.rows([(), *(plan for _, plan in named)])
    plain, baseline = output.logits[0], measured.value(output.logits[0])
    return [
        Effect(
            name=name,
            baseline=baseline,
            intervened=(value := measured.value(output.logits[row])),
            change=value - baseline,
            kl_last=float(kl_divergence(plain[-1:], output.logits[row][-1:])),
            applied=output.applied[row],
        )
        for row, (name, _) in enumerate(named, start=1)
    ]


def restricted(interventions: Interventions, features: Sequence[FeatureRef]) -> Interventions:
    """Keep the interventions on some features only."""
    return tuple(i for i in interventions if _feature(i) in features)


def stand_in(
    interventions: Interventions,
    features: Sequence[FeatureRef],
    others: Sequence[FeatureRef],
    strengths: Sequence[float],
) -> Interventions:
    """Do the same to other features: `others[k]` in the place of `features[k]`; the rest is dropped.

    What follows an activation goes `strengths[k]` times as far, so that it writes as much.
    """
    place = dict(zip(features, zip(others, strengths, strict=True), strict=True))
    return tuple(
        _instead(i, *place[feature])
        for i in interventions
        if (feature := _feature(i)) is not None and feature in place
    )


def _instead(intervention: Intervention, other: FeatureRef, strength: float) -> Intervention:
    mode = intervention.mode
    if not isinstance(intervention.operation, WHATEVER_IS_THERE):
        mode = replace(mode, strength=mode.strength * strength)
    return replace(intervention, target=FeatureTarget(feature=other), mode=mode)


def p_value(effect: float, changes: Sequence[float]) -> float:
    """Return (1 + #{|control| >= |effect|}) / (sets + 1) (Davison and Hinkley 1997).

    A control that is no number counts as one that does as much; beside an effect that is no finite number all
    do, since what overflows was not measured.
    """
    count = reached("logits", effect, changes) if isfinite(effect) else len(changes)
    return (1 + count) / (len(changes) + 1)


def _control_result(
    measured: Measured, command: MeasureAblation, draws: ControlDraws, compared: Effect
) -> Generator[None, None, ControlResult]:
    plans = [
        stand_in(command.interventions, draws.matched, others, strengths)
        for others, strengths in zip(draws.sets, draws.strengths, strict=True)
    ]
    values = yield from measured.values(plans)
    changes = tuple(value - compared.baseline for value in values)
    return ControlResult(
        changes=changes,
        p_value=p_value(compared.change, changes),
        found=draws.found,
        unmatched=draws.unmatched,
    )


def _named_plans(command: MeasureAblation) -> list[tuple[str, Interventions]]:
    named: list[tuple[str, Interventions]] = [("as_given", command.interventions)]
    if command.bound_positions is not None:
        bound = tuple(
            replace(i, selector=replace(i.selector, positions=command.bound_positions))
            for i in command.interventions
        )
        named.append(("position_bound", bound))
    return named


def _features(interventions: Interventions) -> tuple[FeatureRef, ...]:
    """List the intervened features, each once, in order."""
    found: dict[FeatureRef, None] = {}
    for index, intervention in enumerate(interventions):
        feature = _feature(intervention)
        if feature is None:
            raise UnsupportedInterventionError(
                "matched controls exist for features only; leave the controls out for this intervention",
                field=f"interventions[{index}].target",
            )
        found[feature] = None
    return tuple(found)


def _feature(intervention: Intervention) -> FeatureRef | None:
    target = intervention.target
    return target.feature if isinstance(target, FeatureTarget) else None


HANDLERS: dict[type, Handler] = {MeasureAblation: measure_ablation}
