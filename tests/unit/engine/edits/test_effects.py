"""MeasureAblation says what the interventions did, where, and whether chance explains it."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.interventions import at, direction, neuron
from trephine.domain.ablation import (
    ControlResult,
    LogitTarget,
    MatchedControls,
    MatchedFeature,
    MeasureAblation,
)
from trephine.domain.commands import Progress
from trephine.domain.errors import TargetNotOneTokenError, UnsupportedInterventionError
from trephine.domain.interventions import Ablate, Add, FeatureTarget, Intervention, Scale, SetTo
from trephine.domain.sites import FeatureRef, SiteKind
from trephine.engine.edits import effects
from trephine.engine.edits.controls import draw_controls
from trephine.engine.edits.effects import HANDLERS, p_value, restricted, stand_in
from trephine.engine.edits.written import written_on_prompt
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import RetainText
from trephine.engine.runs.rows import RowInput, run_rows

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET = LogitTarget(token=" Mary", against=" John")


@pytest.fixture(autouse=True)
def short_retain_text(monkeypatch):
    """Measure damage on two short windows: the text itself is tested elsewhere."""
    original = effects.retain_text

    def short(hosted: Any, text: str | None = None) -> RetainText:
        whole = original(hosted, text)
        return replace(whole, windows=tuple(w[:40] for w in whole.windows[:2]), sha256="short")

    monkeypatch.setattr(effects, "retain_text", short)


def measure(hosted, **fields: Any):
    command = MeasureAblation(**({"prompt": PROMPT, "target": TARGET} | fields))
    return finish(HANDLERS[MeasureAblation](Session(hosted=hosted), command))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_effects_are_those_of_the_rows(family):
    """Baseline, change and KL at the last position are read off the same forward passes by hand."""
    hosted = tiny_hosted(family)
    plan = (neuron(0, 3, Ablate()), neuron(2, 9, Scale(factor=2.0)))
    report = measure(hosted, interventions=plan, controls=None, bound_positions=(4, 5))
    ids = hosted.encode(PROMPT)
    bound = tuple(replace(i, selector=at(4, 5)) for i in plan)
    rows = run_rows(hosted, [RowInput(ids), RowInput(ids, plan), RowInput(ids, bound)])
    as_given, position_bound = report.effects
    assert (as_given.name, position_bound.name) == ("as_given", "position_bound")
    for effect, row in zip(report.effects, (1, 2), strict=True):
        assert effect.applied == rows.applied[row]
        assert effect.change == effect.intervened - effect.baseline != 0
        kl = float(kl_divergence(rows.logits[0][-1:], rows.logits[row][-1:]))
        assert effect.kl_last == pytest.approx(kl, rel=1e-3)  # the last logits alone, or all at once
    assert [a.positions for a in position_bound.applied] == [2, 2]
    assert report.controls is None
    assert report.retain_tokens == 80
    if hosted.architecture.logit_softcap is None:
        mary, john = hosted.resolve_target(" Mary"), hosted.resolve_target(" John")
        last = rows.logits[0][-1]
        assert as_given.baseline == pytest.approx(float(last[mary] - last[john]))


def test_controls_do_the_same_to_other_neurons():
    """Each change is that of one random set, measured by hand."""
    hosted = tiny_hosted("llama")
    plan = (neuron(0, 3, Scale(factor=3.0), selector=at(4)), neuron(1, 5, Ablate()))
    report = measure(hosted, interventions=plan, controls=MatchedControls(sets=5, norm_factor=3.0))
    controls = report.controls
    assert controls is not None
    assert controls.matched == 2
    assert len(controls.changes) == 5
    assert controls.p_value == p_value(report.effects[0].change, controls.changes)
    again = measure(hosted, interventions=plan, controls=MatchedControls(sets=5, norm_factor=3.0))
    assert again == report  # law 9


def test_the_effect_of_matched_features_only_is_what_controls_are_compared_with(monkeypatch):
    """Where a feature has no match, a further effect names what the p-value is about."""
    alone = neuron(0, 3, Ablate()).target.feature
    monkeypatch.setattr(effects, "norms_of", norms_with_a_giant(alone))
    monkeypatch.setattr(effects, "written_on_prompt", lambda *_: {})
    hosted = tiny_hosted("llama")
    report = measure(hosted, interventions=(neuron(0, 3, Ablate()), neuron(1, 5, Ablate())))
    assert report.controls is not None
    assert [u.feature for u in report.controls.unmatched] == [alone]
    only = report.effects[-1]
    assert only.name == "matched_only"
    assert [a.layer for a in only.applied] == [1]
    assert report.controls.p_value == p_value(only.change, report.controls.changes)


def test_without_any_match_nothing_is_claimed(monkeypatch):
    """The p-value is 1, and no control was run."""
    alone = neuron(0, 3, Ablate()).target.feature
    monkeypatch.setattr(effects, "norms_of", norms_with_a_giant(alone))
    monkeypatch.setattr(effects, "written_on_prompt", lambda *_: {})
    report = measure(tiny_hosted("llama"), interventions=(neuron(0, 3, Ablate()),))
    assert report.controls is not None
    assert (report.controls.p_value, report.controls.changes, report.controls.matched) == (1.0, (), 0)
    assert any("there are no controls, and p is 1" in one for one in report.caveats)


def norms_with_a_giant(feature):
    """Replace the measured norms: one neuron is a thousand times the others, which differ slightly."""

    def norms(hosted, retain, layers):
        table = torch.linspace(1.0, 1.5, 64).repeat(3, 1)
        table[feature.layer, feature.index] = 1000.0
        yield None
        return {(name, layer): table[layer] for name, layer in layers}

    return norms


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "clt", "normalised"])
def test_controls_of_an_active_feature_are_active_too(kind):
    """A set's features are silent on most prompts: beside silent ones any active one would look special."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    feature = FeatureRef(replacement=NAME, layer=1, index=0)
    everywhere = Intervention(target=FeatureTarget(feature=feature), operation=Ablate())
    written = written_on_prompt(hosted, hosted.encode(PROMPT), (everywhere,))[feature]
    own = int((written > 0).nonzero()[0])
    one = replace(feature, index=own)
    plan = (replace(everywhere, target=FeatureTarget(feature=one)),)
    report = measure(hosted, interventions=plan, controls=MatchedControls(norm_factor=4.0))
    assert report.controls is not None
    peers = (written >= written[own] / 4) & (written <= written[own] * 4)
    assert len(report.controls.changes) == int(peers.sum()) - 1
    assert all(change != 0 for change in report.controls.changes)


def test_the_retain_text_is_read_only_for_what_the_prompt_does_not_decide(monkeypatch):
    """Of layers whose features write on the prompt no usual norms are measured."""
    asked: list[tuple[str, int]] = []

    def norms(hosted, retain, layers):
        asked.extend(layers)
        return (yield from measured(hosted, retain, layers))

    measured = effects.norms_of
    monkeypatch.setattr(effects, "norms_of", norms)
    hosted = tiny_hosted("llama")
    measure(hosted, interventions=(neuron(0, 3, Ablate()), neuron(1, 3, Add(amount=1.0))))
    assert asked == [("neurons", 1)]


def test_too_few_control_sets_are_told():
    """A p-value that cannot be small says so."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    feature = FeatureRef(replacement=NAME, layer=1, index=0)
    written = written_on_prompt(
        hosted,
        hosted.encode(PROMPT),
        (Intervention(target=FeatureTarget(feature=feature), operation=Ablate()),),
    )[feature]
    own = replace(feature, index=int(written.argmax()))
    plan = (Intervention(target=FeatureTarget(feature=own), operation=Ablate()),)
    report = measure(hosted, interventions=plan)
    assert report.controls is not None
    sets = len(report.controls.changes)
    assert 0 < sets < 99
    assert f"Only {sets} of 99 control sets exist" in " ".join(report.caveats)


def test_p_value_counts_itself():
    """(1 + #) / (sets + 1), by absolute value, ties against the effect."""
    assert p_value(-2.0, [1.0, -1.9, 0.3]) == 1 / 4
    assert p_value(1.0, [1.0, -3.0, 0.3]) == 3 / 4
    assert p_value(1.0, []) == 1.0


def test_what_is_no_number_is_never_significant():
    """An effect that overflows was not measured; a control that does counts as doing as much."""
    for effect in (nan, inf, -inf):
        assert p_value(effect, [0.1] * 99) == 1.0
    assert p_value(1.0, [nan, 0.3, -inf]) == 3 / 4


def test_an_intervention_that_overflows_is_told():
    """Without controls, too: nothing was measured."""
    hosted = tiny_hosted("llama")
    with torch.no_grad():
        hosted.model.model.layers[1].mlp.down_proj.weight.mul_(1e3)
    plan = (neuron(1, 5, SetTo(value=3e38)),)
    report = measure(hosted, interventions=plan, controls=MatchedControls(sets=20, norm_factor=1e6))
    assert not isfinite(report.effects[0].change)
    assert report.controls is not None
    assert report.controls.p_value == 1.0
    assert any("as_given is no finite number" in one for one in report.caveats)
    assert any("control sets overflow" in one for one in report.caveats)
    alone = measure(hosted, interventions=plan, controls=None)
    assert any("as_given is no finite number" in one for one in alone.caveats)


@pytest.mark.parametrize("operation", [Ablate(), Scale(factor=1.5), SetTo(value=0.7)], ids=lambda o: o.kind)
def test_controls_write_as_much_as_the_strongest_neuron(operation):
    """Moved as it is they would write less; so they are moved by more, and both are told."""
    hosted = tiny_hosted("llama")
    plan = (neuron(1, 0, operation, selector=at(2, 5)),)
    ids = hosted.encode(PROMPT)
    (row,) = written_on_prompt(hosted, ids, plan).values()
    strongest = plan[0].target.feature
    strongest = replace(strongest, index=int(row.argmax()))
    plan = stand_in(plan, (plan[0].target.feature,), (strongest,), (1.0,))
    written = written_on_prompt(hosted, ids, plan)
    draws = draw_controls({}, (strongest,), MatchedControls(norm_factor=4.0), written)
    assert len(draws.sets) >= 20
    for drawn, strengths in zip(draws.sets, draws.strengths, strict=True):
        other = stand_in(plan, (strongest,), drawn, strengths)
        assert other[0].selector == plan[0].selector
        found = written_on_prompt(hosted, ids, other)[drawn[0]][drawn[0].index]
        assert float(found) == pytest.approx(float(row.max()), rel=1e-4)
    report = measure(hosted, interventions=plan, controls=MatchedControls(norm_factor=4.0))
    assert report.controls is not None
    (one,) = report.controls.found
    assert one.candidates == len(draws.sets) == len(report.controls.changes)
    assert one.written is not None
    assert (one.written < 0.85) == any("their stand-ins would write" in told for told in report.caveats)


def test_few_and_far_candidates_are_told():
    """Sets of several features that combine few candidates, and factors that were widened."""
    near = MatchedFeature(feature=FeatureRef(layer=1, index=2), candidates=22, factor=2.0, written=0.9)
    far = MatchedFeature(feature=FeatureRef(layer=2, index=2), candidates=90, factor=3.0, written=0.6)
    result = ControlResult(changes=(0.1,) * 99, p_value=0.5, found=(near, far), unmatched=())
    told = " ".join(effects._match_caveats(MatchedControls(), result))
    assert "1 of 2 features are matched within a factor of up to 3" in told
    assert "would write 0.75 of what they write" in told
    assert "as few as 22 candidates" in told
    alone = replace(result, found=(replace(near, candidates=25),))
    assert list(effects._match_caveats(MatchedControls(), alone)) == []  # as many sets are the caveat then


def test_stand_ins_keep_operation_and_selector():
    """Only the neuron is exchanged; what has no stand-in is dropped."""
    one, two = neuron(0, 3, Ablate(), selector=at(1)), neuron(1, 5, Scale(factor=0.5))
    a, b, c = one.target.feature, two.target.feature, neuron(1, 9, Ablate()).target.feature
    assert stand_in((one, two), (b,), (c,), (1.0,)) == (replace(two, target=neuron(1, 9, Ablate()).target),)
    added = neuron(1, 5, Add(amount=2.0))
    further = stand_in((two, added), (b,), (c,), (1.5,))
    assert [i.mode.strength for i in further] == [1.5, 1.0]  # what follows no activation is not scaled
    assert restricted((one, two), (a,)) == (one,)


def test_controls_exist_for_neurons_only():
    """A direction has no matched random counterpart here; the field is named."""
    hosted = tiny_hosted("llama")
    plan = (neuron(0, 1, Ablate()), direction(SiteKind.RESID_POST, 1, [1.0] * 32, Add(amount=1.0)))
    with pytest.raises(UnsupportedInterventionError) as caught:
        measure(hosted, interventions=plan)
    assert caught.value.context["field"] == "interventions[1].target"
    assert measure(hosted, interventions=plan, controls=None).retain_kl > 0


def test_a_target_of_two_tokens_names_its_field():
    """The message lists the tokens; the context says which of the two targets it is."""
    hosted = tiny_hosted("llama")
    with pytest.raises(TargetNotOneTokenError) as caught:
        measure(
            hosted, target=LogitTarget(token=" Mary", against=" Bob"), interventions=(neuron(0, 1, Ablate()),)
        )
    assert caught.value.context["field"] == "target.against"


def test_it_works_in_bounded_pieces():
    """Controls are cut into forward passes of bounded size, and progress is told."""
    hosted = tiny_hosted("llama")
    command = MeasureAblation(prompt=PROMPT, target=TARGET, interventions=(neuron(0, 3, Ablate()),))
    events = []
    with torch.inference_mode():
        events = list(HANDLERS[MeasureAblation](Session(hosted=hosted), command))
    rows_per_pass = effects.BATCH_TOKENS // len(hosted.encode(PROMPT))
    assert len(events) > 99 / rows_per_pass
    assert {e.stage for e in events if isinstance(e, Progress)} == {"effects", "controls"}
