"""ProposeEdit: the smallest all-positions ablation that could ship, with its effect-against-damage curve.

The neurons with the largest raw effect are no edit: they work through position 0, an attention sink, and
removing them everywhere wrecks the model. So the attribution only nominates candidates; they are ranked by
their measured effect at positions >= 1 over how much they are used elsewhere, and every prefix that is
offered has been measured as a whole.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.edits import MAX_PROPOSED, CurvePoint, EditProposal, ProposeEdit, RankedFeature
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Selector
from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.totals import sweep_totals
from trephine.engine.edits.controls import contribution_norms
from trephine.engine.edits.effects import Measured, measured_prompt
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.resumption import clean_run
from trephine.engine.runs.retain import RetainText, retain_kl, retain_text, window_logits
from trephine.engine.runs.rows import RowInput, run_rows

_SHARE_ALONE = 0.25
"""Share of the allowed damage that one neuron alone may cost."""
_PROBE_ROWS = 8
_PROBE_TOKENS = 48
_HOPELESS = 3.0
"""A candidate with this many times the allowed damage ends the search: damage grows with the prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drops:
    """The target under every prefix of the ranking; `values[k - 1]` with the first k ablated."""

    baseline: float
    values: tuple[float, ...]

    def drop(self, count: int) -> float:
        """Return the share of the baseline that is gone with the first `count` neurons."""
        return (self.baseline - self.values[count - 1]) / self.baseline


def propose_edit(session: Session, command: ProposeEdit) -> Generator[Progress | None, None, EditProposal]:
    """Rank, measure prefixes, choose the smallest that meets both bounds; none if none does.

    Raises:
        InvalidRequestError: If the target is not preferred in the first place, or bounds make no sense.
    """
    _check(command)
    hosted = session.require_model().pinned()
    measured = measured_prompt(hosted, command.prompt, command.target.token, command.target.against)
    retain = retain_text(hosted, command.retain_text)
    yield Progress(stage="use on the retain text", done=0, total=len(retain.windows))
    norms = yield from contribution_norms(hosted, retain)
    operators = capture(hosted.model, hosted.architecture, measured.ids)
    yield Progress(stage="effects", done=0, total=hosted.info.n_layers)
    totals = yield from sweep_totals(operators, measured.readout)
    del operators
    pool = candidates(totals.neurons, command.max_features)
    pool = yield from _harmless_alone(hosted, retain, pool, command.max_retain_kl * _SHARE_ALONE)
    ranking = rank(pool, (yield from _effects_after_first(measured, pool)), norms)
    drops = yield from _measure_drops(measured, ranking)
    curve, chosen = yield from _measure_curve(hosted, retain, command, ranking, drops)
    return EditProposal(
        baseline=drops.baseline,
        curve=curve,
        ranking=ranking,
        chosen=chosen,
        why=_why(command, curve, chosen, drops),
        retain_tokens=retain.n_tokens,
        retain_text=retain.label,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
    )


def candidates(effects: Tensor, count: int) -> tuple[FeatureRef, ...]:
    """Take the neurons with the largest estimated effect towards the target at positions >= 1.

    Args:
        effects: Total effects `(n_layers, n_pos, d_mlp)`, logits.
        count: How many to return at most.
    """
    effect = effects[:, 1:].sum(1)  # position 0 is an attention sink
    width = effect.shape[-1]
    best = torch.argsort(effect.flatten(), descending=True, stable=True)[:count].tolist()
    return tuple(
        FeatureRef(layer=place // width, index=place % width) for place in best if effect.flatten()[place] > 0
    )


def rank(
    features: Sequence[FeatureRef], effects: Sequence[float], norms: Tensor
) -> tuple[RankedFeature, ...]:
    """Rank neurons by measured effect over use; those that do not push towards the target are left out.

    A neuron that never fires on the retain text is given the smallest use that occurs, so that it ranks
    high but not infinitely so.

    Args:
        features: The candidates.
        effects: Per candidate how far the target falls when it is ablated at positions >= 1, logits.
        norms: Contribution norms on the retain text `(n_layers, d_mlp)`.
    """
    fired = norms[norms > 0]
    floor = float(fired.min()) if fired.numel() else 1.0
    ranked: list[RankedFeature] = []
    for feature, effect in zip(features, effects, strict=True):
        use = max(floor, float(norms[feature.layer, feature.index]))
        if effect > 0:
            ranked.append(RankedFeature(feature=feature, effect=effect, use=use, score=effect / use))
    return tuple(sorted(ranked, key=lambda r: (-r.score, r.feature)))


def ablation(ranking: tuple[RankedFeature, ...], count: int) -> tuple[Intervention, ...]:
    """Ablate the first `count` neurons at every position, as weights would."""
    return tuple(_ablate(ranked.feature) for ranked in ranking[:count])


def _harmless_alone(
    hosted: HostedModel, retain: RetainText, features: Sequence[FeatureRef], limit: float
) -> Generator[Progress | None, None, tuple[FeatureRef, ...]]:
    """Drop neurons whose ablation alone costs more than `limit` nats on a short piece of the retain text.

    From the lowest layer up, so that rows which share a forward pass leave the same layers unchanged.

    A few neurons of early layers make the attention sink. Their use at positions >= 1 does not show it,
    and one of them in a prefix spoils every longer one.
    """
    piece = retain.windows[len(retain.windows) // 2][:_PROBE_TOKENS]
    plain, clean = window_logits(hosted, piece), clean_run(hosted.model, hosted.architecture, piece)
    kept: set[FeatureRef] = set()
    upwards = sorted(features)
    for start in range(0, len(upwards), _PROBE_ROWS):
        tried = upwards[start : start + _PROBE_ROWS]
        rows = [RowInput(ids=piece, interventions=(_ablate(feature),)) for feature in tried]
        for feature, without in zip(tried, run_rows(hosted, rows, clean=clean).logits, strict=True):
            if float(kl_divergence(plain, without.float().cpu()).mean()) <= limit:
                kept.add(feature)
        yield Progress(stage="damage alone", done=start + len(tried), total=len(features))
    return tuple(feature for feature in features if feature in kept)


def _effects_after_first(
    measured: Measured, features: Sequence[FeatureRef]
) -> Generator[None, None, list[float]]:
    """Measure how far the target falls when each neuron is ablated at positions >= 1, in logits."""
    if len(measured.ids) < 2:
        raise InvalidRequestError("the prompt has one token only; position 0 is left out", field="prompt")
    away = Selector(exclude_positions=(0,))
    upwards = sorted(features)
    plans = [(replace(_ablate(feature), selector=away),) for feature in upwards]
    *values, baseline = yield from measured.values([*plans, ()])
    drops = {feature: baseline - value for feature, value in zip(upwards, values, strict=True)}
    return [drops[feature] for feature in features]


def _ablate(feature: FeatureRef) -> Intervention:
    return Intervention(target=FeatureTarget(feature=feature), operation=Ablate())


def _check(command: ProposeEdit) -> None:
    if not 0 < command.min_drop <= 1:
        raise InvalidRequestError("min_drop must be in (0, 1]: a share of the baseline", field="min_drop")
    if not command.max_retain_kl > 0:
        raise InvalidRequestError("max_retain_kl must be above 0 nats", field="max_retain_kl")
    if not 1 <= command.max_features <= MAX_PROPOSED:
        raise InvalidRequestError(
            f"max_features must be 1 to {MAX_PROPOSED}: each is measured by itself, and every prefix of them",
            field="max_features",
        )


def _measure_drops(
    measured: Measured, ranking: tuple[RankedFeature, ...]
) -> Generator[Progress | None, None, Drops]:
    """Measure the target under every prefix: prompts are short, so all of them are affordable."""
    yield Progress(stage="drop by prefix", done=0, total=len(ranking))
    plans = [ablation(ranking, count) for count in range(len(ranking) + 1)]
    values = yield from measured.values(plans)
    if not values[0] > 0:
        raise InvalidRequestError(
            f"the model does not prefer the target: the measured quantity is {values[0]:.3f} logits, "
            "and there is nothing to lower. Swap target and against, or choose another prompt",
            field="target",
        )
    return Drops(baseline=values[0], values=tuple(values[1:]))


def _measure_curve(
    hosted: HostedModel,
    retain: RetainText,
    command: ProposeEdit,
    ranking: tuple[RankedFeature, ...],
    drops: Drops,
) -> Generator[Progress | None, None, tuple[tuple[CurvePoint, ...], int]]:
    """Measure damage at 1, 2, 4, 8, ... and at every prefix with enough drop until one is small enough.

    Prefixes with enough drop are tried in ascending order, so the one that is chosen is the smallest
    that meets both bounds. The doubling grid goes on to the first step past it, for the curve's shape.
    """
    points: dict[int, CurvePoint] = {}
    chosen = 0
    for count in _prefixes(command, drops):
        if chosen and not _on_grid(count):
            continue
        yield Progress(stage="damage by prefix", done=len(points), total=0, detail=f"{count} neurons")
        damage = yield from retain_kl(hosted, retain, ablation(ranking, count))
        points[count] = CurvePoint(
            count=count,
            value=drops.values[count - 1],
            drop=drops.drop(count),
            retain_kl=damage.everywhere,
            retain_kl_after_first=damage.after_first,
        )
        if chosen or _damage(points[count]) > _HOPELESS * command.max_retain_kl:
            break
        chosen = count if _meets(command, points[count]) else 0
    return tuple(points[count] for count in sorted(points)), chosen


def _prefixes(command: ProposeEdit, drops: Drops) -> Iterator[int]:
    """Yield prefix lengths in ascending order: the doubling grid, and all with enough drop."""
    for count in range(1, len(drops.values) + 1):
        if _on_grid(count) or count == len(drops.values) or drops.drop(count) >= command.min_drop:
            yield count


def _on_grid(count: int) -> bool:
    return count & (count - 1) == 0


def _meets(command: ProposeEdit, point: CurvePoint) -> bool:
    return point.drop >= command.min_drop and _damage(point) <= command.max_retain_kl


def _damage(point: CurvePoint) -> float:
    return max(point.retain_kl, point.retain_kl_after_first)


def _why(command: ProposeEdit, curve: tuple[CurvePoint, ...], chosen: int, drops: Drops) -> str:
    bounds = f"a drop of at least {command.min_drop:.0%} at no more than {command.max_retain_kl:g} nats"
    if chosen:
        point = next(p for p in curve if p.count == chosen)
        return (
            f"{chosen} neurons are the smallest prefix with {bounds}: {drops.baseline:.2f} to "
            f"{point.value:.2f} logits ({point.drop:.0%}) at {_damage(point):.3f} nats per token"
        )
    if not drops.values:
        return "no neuron pushes towards the target at positions >= 1; nothing is to be shipped"
    best = max(drops.drop(count) for count in range(1, len(drops.values) + 1))
    if best < command.min_drop:
        return (
            f"no prefix of {len(drops.values)} neurons has {bounds}: the largest drop is {best:.0%}; "
            "nothing is to be shipped"
        )
    last = curve[-1]
    return (
        f"no prefix has {bounds}: with {last.count} neurons the drop is {last.drop:.0%} and the damage "
        f"{_damage(last):.3f} nats per token; nothing is to be shipped"
    )


HANDLERS: dict[type, Handler] = {ProposeEdit: propose_edit}
