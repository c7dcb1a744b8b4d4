"""EvaluateEdit on tiny models: figures against plain arithmetic, controls, prompts, refusals."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest
import torch

from tests.builders import hosted_from, tiny_hosted, tiny_model, tiny_tokenizer
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.edit_evaluation import (
    ChoiceItem,
    EditEvaluation,
    EditVerdict,
    EvaluateEdit,
    EvaluationArm,
    EvaluationBounds,
    EvaluationSet,
    FeatureControls,
    PromptingOptions,
    SetRole,
)
from trephine.domain.edits import Edit, EditSet
from trephine.domain.errors import (
    InvalidRequestError,
    NothingMatchedError,
    ParentChangedError,
    PromptTooLongError,
    ReplacementNotFoundError,
    TooFewItemsError,
)
from trephine.domain.interventions import (
    Ablate,
    Add,
    FeatureTarget,
    Intervention,
    Resample,
    Scale,
    Selector,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.edit_evaluation.evaluate import evaluate_edit
from trephine.engine.edit_evaluation.reading import Arm, _agreed, _chosen, read_units
from trephine.engine.edit_evaluation.units import ItemUnit, TextUnit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.rows import RowInput, run_rows

NAMES = (" Mary", " John")
SUBJECTS = (" cat", " dog", " the cat", " the dog", " a cat", " a dog", " the store", " France")
ITEMS = tuple(
    ChoiceItem(prompt=f"When Mary and John went to{subject}", choices=NAMES, answer=0) for subject in SUBJECTS
)
TEXTS = tuple(f"The capital of France is{subject} and the drink of Mary is to" for subject in SUBJECTS)
TARGET = EvaluationSet(name="names", role=SetRole.TARGET, items=ITEMS)
RETAIN = EvaluationSet(name="texts", role=SetRole.RETAIN, texts=TEXTS)
FEW = FeatureControls(sets=6, wrong_layer_sets=3, tokens=64)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def edit_of(hosted: HostedModel, *interventions: Intervention, sets: tuple[EditSet, ...] = ()) -> Edit:
    """An edit made for a model."""
    return Edit(
        name="quiet",
        version=2,
        content_hash="h",
        interventions=interventions,
        reason="",
        author="",
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        evidence=(),
        create_time="",
        sets=sets,
    )


def evaluate(hosted: HostedModel, *interventions: Intervention, **fields: Any) -> EditEvaluation:
    """Evaluate an edit with few controls and no prompts, unless told otherwise."""
    given = {
        "sets": (TARGET, RETAIN),
        "controls": FEW,
        "prompting": None,
        "resamples": 100,
        "bounds": EvaluationBounds(min_log_odds=0.2),
        **fields,
    }
    edit = given.pop("edit", None) or edit_of(hosted, *interventions)
    return finish(evaluate_edit(Session(hosted=hosted), EvaluateEdit(edit=edit, **given)))


def figures(found: EditEvaluation, name: str, arm: EvaluationArm) -> dict[str, Any]:
    """Figures of one arm on one set, by name."""
    (one,) = [one for one in found.sets if one.name == name]
    result = one.arm(arm)
    assert result is not None
    return {figure.name: figure for figure in result.figures}


def planted() -> HostedModel:
    """A model in which neuron 1:7 decides between the names and is no larger than its neighbours."""
    model = tiny_model("llama", n_layers=2, d_model=96)
    mary, john = (tiny_tokenizer()(name, add_special_tokens=False)["input_ids"][0] for name in NAMES)
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj):  # it fires everywhere
            part.weight[7] *= 0.3
            part.bias[7] = 2.0
        rows = [RowInput(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
        site = Site(kind=SiteKind.NEURONS, layer=1)
        seen = torch.cat([one[site][1:] for one in run_rows(hosted_from(model), rows, reads=[site]).values])
        rms = seen.pow(2).mean(0).sqrt()
        wanted = model.lm_head.weight[mary] - model.lm_head.weight[john]
        size = 1.5 * (rms * mlp.down_proj.weight.norm(dim=0)).median()
        mlp.down_proj.weight[:, 7] = size / rms[7] * wanted / wanted.norm()
    return hosted_from(model)


def twinned() -> HostedModel:
    """The planted model, in whose other layer every neuron of that use decides between the names as well."""
    model = planted().model
    first, second = (layer.mlp for layer in model.model.layers)
    twins = torch.arange(8)
    with torch.no_grad():
        first.down_proj.weight.mul_(0.01)
        for part, of in ((first.gate_proj, second.gate_proj), (first.up_proj, second.up_proj)):
            part.weight[twins], part.bias[twins] = of.weight[7], of.bias[7]
        signs = torch.tensor([1.0, -1.0]).repeat(4)  # together they decide nothing
        first.down_proj.weight[:, twins] = 1.6 * second.down_proj.weight[:, [7]] * signs
    return hosted_from(model)


# --- figures ----------------------------------------------------------------------------------------


def test_text_figures_are_those_of_the_logits():
    """KL, likelihood and agreement over positions >= 1, from the logits of whole runs."""
    hosted = tiny_hosted("llama")
    change = neuron(1, 7, Scale(factor=4.0))
    units = [TextUnit(tuple(hosted.encode(text))) for text in TEXTS[:3]]
    found = finish(read_units(hosted, units, [Arm(interventions=(change,)), Arm()]))
    for place, unit in enumerate(units):
        plain, changed = run_rows(hosted, [RowInput(unit.ids), RowInput(unit.ids, (change,))]).logits
        p, q = plain.double().log_softmax(-1)[1:], changed.double().log_softmax(-1)[1:]
        torch.testing.assert_close(found.kl[0, place], (p.exp() * (p - q)).sum(), rtol=1e-4, atol=1e-6)
        assert found.agreed[0, place] == (p.argmax(-1) == q.argmax(-1)).sum()
        after = torch.tensor(unit.ids[2:])
        nll = -q[:-1].gather(1, after[:, None]).sum()
        torch.testing.assert_close(found.nll[0, place], nll, rtol=1e-5, atol=1e-5)
        assert found.positions[place] == len(unit.ids) - 1
        assert found.predicted[place] == len(unit.ids) - 2
    torch.testing.assert_close(found.nll[1], found.plain_nll, rtol=1e-5, atol=1e-5)
    assert found.kl[1].abs().max() < 1e-9


@pytest.mark.parametrize("choices", [(" Mary", " John", " cat"), (" Mary went", " John", " the cat is")])
def test_item_figures_are_those_of_the_rows(choices):
    """Log-odds and choice, of one token and of several, from one run per choice."""
    hosted = tiny_hosted("qwen3")
    change = neuron(1, 7, Scale(factor=4.0))
    prompt = tuple(hosted.encode("When Mary and John went to the store,"))
    unit = ItemUnit(prompt, tuple(tuple(hosted.encode(choice)) for choice in choices), 1)
    found = finish(read_units(hosted, [unit], [Arm(interventions=(change,)), Arm()]))
    for arm, interventions in enumerate(((change,), ())):
        log_p = []
        for choice in unit.choices:
            row = RowInput((*prompt, *choice), interventions, len(prompt))
            logits = run_rows(hosted, [row]).logits[0].double().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(choice) - 1)
            log_p.append(sum(logits[at, token] for at, token in zip(places, choice, strict=True)))
        odds = log_p[1] - torch.logaddexp(log_p[0], log_p[2])
        torch.testing.assert_close(found.log_odds[arm, 0], odds, rtol=1e-4, atol=1e-4)
        assert bool(found.correct[arm, 0]) == (max(log_p) == log_p[1])
    assert found.plain_log_odds[0] == pytest.approx(float(found.log_odds[1, 0]), abs=1e-4)


def test_a_unit_does_not_depend_on_its_neighbours():
    """Arms that share a forward pass, and arms that do not, read the same."""
    hosted = tiny_hosted("gemma2")
    units = [TextUnit(tuple(hosted.encode(text))) for text in TEXTS[:2]]
    arms = [Arm(interventions=(neuron(layer, 5, Ablate()),)) for layer in (0, 1, 2) for _ in range(9)]
    together = finish(read_units(hosted, units, arms))
    alone = finish(read_units(hosted, units[1:], arms[20:21]))
    torch.testing.assert_close(together.kl[20, 1], alone.kl[0, 0], rtol=1e-3, atol=1e-6)


# --- the whole --------------------------------------------------------------------------------------


def test_a_planted_neuron_is_selective():
    """It decides between the names, and matched neurons do not; nothing shows under no-op."""
    hosted = planted()
    controls = FeatureControls(sets=99, wrong_layer_sets=5, tokens=64)
    found = evaluate(hosted, neuron(1, 7, Ablate()), controls=controls, resamples=1000)
    effect = figures(found, "names", EvaluationArm.EDIT)["log_odds_change"]
    (random, wrong) = found.sets[0].controls
    assert found.matching.matched == 1
    assert (random.arm, len(random.values)) == (EvaluationArm.RANDOM, 99)
    assert random.p_value == 0.01
    assert max(map(abs, random.values)) < abs(random.effect) == pytest.approx(abs(effect.value))
    assert (wrong.arm, len(wrong.values)) == (EvaluationArm.WRONG_LAYER, 5)
    assert found.matching.wrong_layers == ("neurons:1 -> 0",)
    assert wrong.reached == 0
    assert "0 of 5 sets of another layer do as much" in found.why
    assert effect.low <= effect.value <= effect.high
    for name in ("names", "texts"):
        nothing = figures(found, name, EvaluationArm.NO_OP)
        assert nothing["kl"].value < 1e-9
        assert nothing["top1_agreement"].value == 1
    assert (found.edit, found.version, found.verdict) == ("quiet", 2, EditVerdict.SELECTIVE), found.why
    assert [one.positions for one in found.applied] == [sum(found_tokens(hosted))]
    assert [one.changed for one in found.applied] == [one.positions for one in found.applied]


def found_tokens(hosted: HostedModel) -> list[int]:
    """Tokens of every row that the edit runs on."""
    return [len(hosted.encode(text)) for text in (*TEXTS, *(item.prompt for item in ITEMS))]


def test_damage_is_compared_on_the_very_same_tokens():
    """On cut texts and on items of retain sets, the edit's damage beside controls is that of a plain run."""
    hosted = planted()
    change = neuron(1, 7, Ablate())
    quiz = EvaluationSet(name="quiz", role=SetRole.RETAIN, items=ITEMS)
    long = replace(RETAIN, texts=tuple(text * 5 for text in TEXTS))
    controls = replace(FEW, retain_tokens=160)
    found = evaluate(hosted, change, sets=(TARGET, long, quiz), controls=controls)
    _, texts, items = found.sets
    names = ["kl", "perplexity_ratio", "top1_agreement"]
    assert [c.statistic for c in texts.controls if c.arm is EvaluationArm.RANDOM] == names
    assert [c.statistic for c in texts.controls if c.arm is EvaluationArm.WRONG_LAYER] == names
    assert {c.statistic for c in items.controls} == {"kl", "accuracy_change", "top1_agreement"}
    assert {len(c.values) for c in texts.controls} == {6, 3}
    assert {(c.units, c.tokens) for c in texts.controls} == {(8, 160)}
    cut = [TextUnit(tuple(hosted.encode(text)[:20])) for text in long.texts]
    alone = finish(read_units(hosted, cut, [Arm(interventions=(change,))]))
    kl = next(c for c in texts.controls if c.statistic == "kl")
    assert kl.effect == pytest.approx(float(alone.kl.sum() / alone.positions.sum()), rel=1e-4)
    agreement = next(c for c in texts.controls if c.statistic == "top1_agreement")
    assert agreement.effect == pytest.approx(float(alone.agreed.sum() / alone.positions.sum()))
    whole = figures(found, "quiz", EvaluationArm.EDIT)  # eight items: controls run on all
    for one in items.controls:
        assert one.effect == pytest.approx(whole[one.statistic].value, abs=1e-6)
        assert one.adjusted_p_value >= one.p_value == (1 + one.reached) / (1 + len(one.values))


def test_no_control_runs_on_retain_sets_if_none_is_asked_for():
    """It is told as a caveat; the damage itself is measured all the same."""
    found = evaluate(planted(), neuron(1, 7, Ablate()), controls=replace(FEW, retain_tokens=0))
    assert found.sets[1].controls == ()
    assert found.sets[0].controls
    assert figures(found, "texts", EvaluationArm.EDIT)["kl"].value > 0
    assert any("0 matched random sets stand beside the damage" in one for one in found.caveats)
    with pytest.raises(InvalidRequestError, match="at least 0"):
        FeatureControls(retain_tokens=-1)


def test_an_edit_that_overflows_is_damaging():
    """Factors that float32 cannot hold: the figures are no numbers, and the word is none for a good edit."""
    hosted = tiny_hosted("llama")
    broken = [neuron(1, index, Scale(factor=3e38)) for index in (5, 6)]
    texts = EvaluationSet(name="names", role=SetRole.TARGET, texts=TEXTS)
    for target in (texts, TARGET):
        found = evaluate(hosted, *broken, sets=(target, RETAIN), prompting=PromptingOptions(always=True))
        assert isnan(figures(found, "texts", EvaluationArm.EDIT)["kl"].value)
        assert found.verdict is EditVerdict.DAMAGING
        assert "answers overflow on texts (kl" in found.why
        assert all(one.reached == len(one.values) for one in found.sets[0].controls)
        assert figures(found, "names", EvaluationArm.EDIT)["top1_agreement"].value == 0
        assert found.prompting is not None
        assert "answers overflow under the edit" in found.prompting.why


def test_what_is_no_number_is_no_answer():
    """Neither the first choice nor the first token is what a row of NaN has chosen."""
    assert _chosen((nan, -1.0)) is None
    assert _chosen((-2.0, -1.0)) == 1
    plain, broken = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[2.0, 0.0], [nan, nan]])
    assert _agreed(plain, broken).tolist() == [True, False]


def test_an_effect_that_another_layer_has_as_well_is_in_doubt():
    """The planted neuron with a twin in the other layer: random features are beaten, the layer is not."""
    found = evaluate(
        twinned(), neuron(1, 7, Ablate()), controls=FeatureControls(sets=99, wrong_layer_sets=1, tokens=64)
    )
    random, wrong = found.sets[0].controls
    assert (random.p_value, wrong.reached) == (0.01, 1), (random.p_value, wrong)
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "1 of 1 sets of another layer do as much" in found.why
    assert "other layers move less" in found.would_decide


def test_the_same_seed_finds_the_same():
    """Draws of controls, of units and of resamples all come from the seed."""
    hosted = planted()
    first, again = (evaluate(hosted, neuron(1, 7, Ablate()), seed=3) for _ in range(2))
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    other = evaluate(hosted, neuron(1, 7, Ablate()), seed=4)
    assert other.sets[0].controls[0].values != first.sets[0].controls[0].values


def test_fewer_than_99_controls_decide_nothing():
    """A feature with few matches is not called specific, and the report says what is missing."""
    found = evaluate(planted(), neuron(1, 7, Ablate()))
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "6 matched random sets for names, and 99 are needed" in found.why
    assert found.would_decide


def test_features_of_sets_are_evaluated_against_features_of_their_set():
    """Controls are of the same layer of its set, or of another one; the built-in text is retained."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    feature = FeatureTarget(feature=FeatureRef(replacement=NAME, layer=1, index=busiest(hosted)))
    edit = edit_of(
        hosted,
        Intervention(target=feature, operation=Ablate()),
        sets=(EditSet(name=NAME, content_hash=NAME),),
    )
    found = evaluate(hosted, edit=edit, sets=(TARGET,))
    assert [one.name for one in found.sets] == ["names", "retain-1"]
    assert found.sets[1].units >= 8
    assert found.sets[0].controls[0].values
    assert figures(found, "retain-1", EvaluationArm.EDIT)["kl"].value > 0
    changed = replace(edit, sets=(EditSet(name=NAME, content_hash="another"),))
    with pytest.raises(ParentChangedError, match="other features"):
        evaluate(hosted, edit=changed)
    with pytest.raises(ReplacementNotFoundError):
        evaluate(tiny_hosted("llama"), edit=edit)


def busiest(hosted: HostedModel) -> int:
    """The feature of layer 1 that is active most often on the texts."""
    layer = hosted.replacements[NAME].pager.layers[1]  # type: ignore[attr-defined]
    rows = [RowInput(hosted.encode(text)) for text in TEXTS]
    site = layer.info.site_in
    values = run_rows(hosted, rows, reads=[site]).values
    return int(sum(layer.encode(one[site]).active[1:].sum(0) for one in values).argmax())


def test_directions_have_directions_as_controls():
    """Differences of two activations, as long as the direction; whole sites have none."""
    hosted = tiny_hosted("llama")
    vector = [2.0] + [0.0] * 31
    found = evaluate(hosted, direction(SiteKind.RESID_POST, 1, vector, Add(amount=1.0)))
    random, wrong = found.sets[0].controls
    assert (len(random.values), len(wrong.values)) == (6, 1)
    lenient = EvaluationBounds(max_retain_kl=100.0, max_accuracy_drop=1.0)
    of_site = evaluate(hosted, whole(SiteKind.MLP_OUT, 1, Resample(donor="a" * 200)), bounds=lenient)
    assert of_site.sets[0].controls == ()
    assert "no controls" in of_site.matching.notes[0]
    assert of_site.verdict is EditVerdict.INCONCLUSIVE


def repeated(n_layers: int) -> tuple[Intervention, ...]:
    """Remove one direction behind every layer."""
    return tuple(
        direction(SiteKind.RESID_POST, n, [1.0, 2.0] + [0.0] * 30, Ablate()) for n in range(n_layers)
    )


@pytest.mark.parametrize(
    ("n_layers", "edited", "says"),
    [
        (2, (direction(SiteKind.EMBED, 0, [1.0, 2.0] + [0.0] * 30, Ablate()),), "before the first layer"),
        (1, (direction(SiteKind.RESID_POST, 0, [1.0, 2.0] + [0.0] * 30, Ablate()),), "has one layer"),
        (2, repeated(2), "the same directions in every layer"),
    ],
    ids=["embedding", "one layer", "every layer"],
)
def test_directions_that_have_no_other_layer_are_not_held_against_themselves(n_layers, edited, says):
    """No wrong layer stands beside them, and why is said; random directions do."""
    hosted = hosted_from(tiny_model("llama", n_layers=n_layers))
    found = evaluate(hosted, *edited)
    assert {control.arm for one in found.sets for control in one.controls} == {EvaluationArm.RANDOM}
    (note,) = (note for note in found.matching.notes if note.startswith("no other layer: "))
    assert says in note
    assert any("0 sets of another layer stand beside it" in caveat for caveat in found.caveats)


def test_several_target_sets_are_adjusted_for():
    """Holm: the smallest p-value is multiplied by the number of sets."""
    second = replace(TARGET, name="again", items=ITEMS[::-1])
    found = evaluate(planted(), neuron(1, 7, Ablate()), sets=(TARGET, second, RETAIN))
    for one in found.sets[:2]:
        random = one.controls[0]
        assert random.adjusted_p_value == pytest.approx(min(1.0, 2 * random.p_value))


# --- prompts ----------------------------------------------------------------------------------------


def test_a_steering_edit_is_compared_with_prompts_at_the_same_behaviour():
    """The strength is one at which the edit's behaviour is the prompt's; both stand beside on retain sets."""
    hosted = planted()
    options = PromptingOptions(prompts=("Mary Mary Mary", "John John"), shots=(1, 2))
    found = evaluate(hosted, neuron(1, 7, Add(amount=2.0)), prompting=options)
    prompting = found.prompting
    assert prompting is not None
    assert [one.label for one in prompting.candidates] == ["given 1", "given 2", "1 example", "2 examples"]
    change = prompting.edit_behaviour - prompting.plain_behaviour
    way = {c.label: (c.behaviour - prompting.plain_behaviour) * change for c in prompting.candidates}
    chosen = next(c for c in prompting.candidates if c.label == prompting.chosen)
    assert way[chosen.label] > 0
    assert chosen == min(
        (c for c in prompting.candidates if way[c.label] > 0),
        key=lambda c: abs(c.behaviour - prompting.edit_behaviour),
    )
    assert prompting.strength is not None
    scaled = neuron(1, 7, Add(amount=2.0 * prompting.strength))
    again = evaluate(hosted, scaled)
    odds = figures(again, "names", EvaluationArm.EDIT)["log_odds"].value
    assert abs(odds - chosen.behaviour) <= 0.1 * abs(change)
    matched = figures(found, "texts", EvaluationArm.MATCHED_EDIT)["kl"].value
    prompted = figures(found, "texts", EvaluationArm.PROMPT)["kl"].value
    assert matched == pytest.approx(figures(again, "texts", EvaluationArm.EDIT)["kl"].value, rel=1e-4)
    assert prompting.differences[0].value == pytest.approx(prompted - matched, rel=1e-6)


def test_an_edit_that_only_removes_is_compared_on_request():
    """Prompts are tried for steering edits; for others where one is given or asked for."""
    hosted = planted()
    remove = neuron(1, 7, Ablate())
    assert evaluate(hosted, remove, prompting=PromptingOptions(shots=(1,))).prompting is None
    asked = evaluate(hosted, remove, prompting=PromptingOptions(shots=(1,), always=True)).prompting
    assert asked is not None
    assert [one.label for one in asked.candidates] == ["1 example"]


# --- refusals ---------------------------------------------------------------------------------------


def test_other_weights_are_refused():
    """An edit is evaluated on the weights that it was made for only."""
    hosted = tiny_hosted("llama")
    edit = replace(edit_of(hosted, neuron(1, 7, Ablate())), weight_hash="other")
    with pytest.raises(ParentChangedError):
        evaluate(hosted, edit=edit)


def test_what_matches_nothing_anywhere_is_refused():
    """An edit on a token that no text holds would show no effect and mean nothing."""
    nowhere = replace(neuron(1, 7, Ablate()), selector=Selector(tokens=(399,)))
    with pytest.raises(NothingMatchedError) as caught:
        evaluate(tiny_hosted("llama"), nowhere)
    assert caught.value.context["field"] == "edit.interventions[0].selector"
    somewhere = replace(neuron(1, 7, Ablate()), selector=Selector(positions=(13,)))
    assert evaluate(tiny_hosted("llama"), somewhere).applied[0].positions > 0


def test_texts_beyond_the_context_are_named():
    """The place of the text is in the field."""
    longer = replace(RETAIN, texts=(*TEXTS, " cat" * 300))
    with pytest.raises(PromptTooLongError) as caught:
        evaluate(tiny_hosted("llama"), neuron(1, 7, Ablate()), sets=(TARGET, longer))
    assert caught.value.context["field"] == "sets[1].texts[8]"
    with pytest.raises(InvalidRequestError, match="at least 3 are needed"):
        evaluate(
            tiny_hosted("llama"),
            neuron(1, 7, Ablate()),
            sets=(TARGET, replace(RETAIN, texts=(*TEXTS, " cat"))),
        )


def test_sets_that_decide_nothing_are_refused():
    """Too few items say how many are needed; empty sets, sets of both kinds, and no target are refused."""
    with pytest.raises(TooFewItemsError, match="has 7 texts or items; an interval needs at least 8"):
        replace(TARGET, items=ITEMS[:7])
    with pytest.raises(InvalidRequestError, match="needs texts or items"):
        EvaluationSet(name="empty", role=SetRole.TARGET)
    with pytest.raises(InvalidRequestError):
        replace(TARGET, texts=TEXTS)
    with pytest.raises(InvalidRequestError, match="two choices"):
        replace(TARGET, items=(*ITEMS, ChoiceItem(prompt="a", choices=(" b",), answer=0)))
    hosted = tiny_hosted("llama")
    with pytest.raises(InvalidRequestError, match="target set"):
        evaluate(hosted, neuron(1, 7, Ablate()), sets=(RETAIN,))
    twice = ChoiceItem(prompt="a", choices=(" Mary", " Mary"), answer=0)
    with pytest.raises(InvalidRequestError, match="same choice twice"):
        evaluate(hosted, neuron(1, 7, Ablate()), sets=(replace(TARGET, items=(*ITEMS, twice)),))


def test_a_text_that_is_given_again_counts_once():
    """Eight times one text have no interval; a repeat beside eight others narrows none, and is told."""
    hosted = tiny_hosted("llama")
    with pytest.raises(
        TooFewItemsError, match="has 1 texts or items that differ as tokens; an interval needs"
    ):
        evaluate(hosted, neuron(1, 7, Ablate()), sets=(replace(TARGET, items=ITEMS[:1] * 8), RETAIN))
    once = evaluate(hosted, neuron(1, 7, Ablate()), sets=(TARGET, RETAIN))
    twice = evaluate(hosted, neuron(1, 7, Ablate()), sets=(replace(TARGET, items=ITEMS * 2), RETAIN))
    assert twice.sets[0].arms == once.sets[0].arms
    assert [one.units for one in twice.sets] == [8, 8]
    assert "8 of 16 texts or items of names are the same tokens as others" in " ".join(twice.caveats)
    assert not any("same tokens" in one for one in once.caveats)
