"""RemoveSpuriousFeatures on tiny models: whole reports, a person's last word, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from tests.spurious_texts import ATTRIBUTES, ambiguous, attribute_texts, balanced, labelled, neutral_texts
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import (
    AttributeConfoundedError,
    EmptyGroupError,
    InvalidRequestError,
    LayerOutOfRangeError,
    PromptTooLongError,
    SplitLeakageError,
    TargetNotOneTokenError,
    TooFewItemsError,
)
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import LabelToken, Pooling, ProbeHead, TokenHead
from trephine.domain.spurious_removal import Judge, Override, RemovalBudget, RemoveSpuriousFeatures, Standing
from trephine.domain.spurious_texts import LabelledText, Swap
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.erasing import centred
from trephine.engine.spurious.pooling import Readout, pool_texts
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.swaps import Swapper, lexicon_of

SMALL = RemovalBudget(
    candidates=192, exact=3, counts=(1, 5, 20), effect_texts=48, fit_texts=64, random_sets=1
)
TOKENS = (LabelToken(label="Q", token=" the"), LabelToken(label="W", token=" is"))
PROBE = ProbeHead(layer=1, pooling=Pooling.MEAN)
ERASED_ARMS = {Arm.ERASED, Arm.ERASED_ALONE}
EARLY = ProbeHead(layer=0, pooling=Pooling.MEAN)
GIVEN = {
    "training": ambiguous(),
    "test": balanced(),
    "attribute_texts": attribute_texts(),
    "decision": PROBE,
    "budget": SMALL,
    "resamples": 50,
}


@pytest.fixture(scope="module")
def session():
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


@pytest.fixture(scope="module")
def report(session):
    """A run with examples of the attribute."""
    return finish(remove_spurious_features(session, RemoveSpuriousFeatures(**GIVEN)))


@pytest.fixture(scope="module")
def erased_report(session):
    """A head right behind the embeddings' letters, which no feature stands between."""
    return _run(session, decision=EARLY)


def _run(session, **changed: Any):
    return finish(remove_spurious_features(session, RemoveSpuriousFeatures(**{**GIVEN, **changed})))


def test_every_finalist_has_a_decision_with_evidence(report):
    """By the judge that the data allow; effects alone were measured for some; places are shown."""
    assert report.judges == (Judge.ATTRIBUTE_EXAMPLES,)
    assert len(report.features) == 128
    assert report.considered == 128, "two layers lie below the head"
    assert all(one.evidence and one.why for one in report.features)
    assert sum(one.exact is not None for one in report.features) == 3
    assert any(one.firings for one in report.features)
    assert {one.standing for one in report.features} == set(Standing)


def test_nothing_undecided_is_removed(report):
    """And the interventions are exactly what is marked as removed."""
    removed = {one.feature for one in report.features if one.removed}
    assert all(one.standing is Standing.SPURIOUS for one in report.features if one.removed)
    assert {one.target.feature for one in report.interventions} == removed
    assert report.chosen == len(removed) > 0
    free = [point for point in report.choices if not point.erased]
    best = max(free, key=lambda point: (point.criterion, -point.count))
    assert best.count == report.chosen


def test_arms_stand_beside_each_other(report):
    """Original, removed, refitted and random, each with groups and intervals."""
    assert [one.arm for one in report.arms] == [one for one in Arm if one not in ERASED_ARMS]
    for one in report.arms:
        groups = [figure for figure in one.figures if figure.name.startswith("group ")]
        worst = one.figure("worst_group")
        assert len(groups) == 4
        if one.arm not in (Arm.RANDOM, Arm.RANDOM_REFITTED):
            assert worst.value == pytest.approx(min(figure.value for figure in groups))
        assert worst.low <= worst.value <= worst.high
    assert report.scores.scr is not None


def test_the_head_of_the_report_decides_as_reported(session, report, erased_report):
    """Weights and features of the report give the label accuracy of the arm that ships."""
    for one, arm in ((report, Arm.REFITTED), (erased_report, Arm.ERASED)):
        texts = [text.text for text in GIVEN["test"]]
        decided = (_margins(session, one, texts) > 0).long()
        right = [one.labels[k] == text.label for k, text in zip(decided, GIVEN["test"], strict=True)]
        expected = one.arm(arm).figure("label_accuracy").value
        assert sum(right) / len(right) == pytest.approx(expected, abs=1e-6)


def test_the_erased_head_means_the_same_for_both_values(session, erased_report):
    """Its mean margin is equal over the examples of either value; that of the original is far from it."""
    report, examples = erased_report, GIVEN["attribute_texts"]
    sides = [[one.text for one in examples if one.attribute == value] for value in report.attributes]
    means = [_margins(session, report, texts).mean() for texts in sides]
    spread = _margins(session, report, [text for texts in sides for text in texts]).std()
    assert abs(means[1] - means[0]) < 1e-3 * spread
    plain = replace(report, head=report.original_head, interventions=())
    free = [_margins(session, plain, texts).mean() for texts in sides]
    assert abs(free[1] - free[0]) > 0.1 * spread


def test_an_erased_head_ships_only_where_it_gains(report, erased_report):
    """Every count is tried with either head; the report says whose work it is, and keeps all arms."""
    tried = [(point.count, point.erased) for point in report.choices]
    counts = sorted({count for count, _ in tried if count})
    assert tried == [(0, False), *((count, erased) for count in counts for erased in (False, True))]
    best = max(point.criterion for point in erased_report.choices if not point.erased)
    taken = max((one for one in erased_report.choices if one.erased), key=lambda one: one.criterion)
    assert taken.criterion > best + taken.error > best
    assert [one.arm for one in erased_report.arms] == list(Arm)
    assert any("the work of the head" in caveat for caveat in erased_report.caveats)
    assert "no weight along what was told of the attribute" in erased_report.why


def test_without_erasure_no_such_head_is_tried(session):
    """Not even where it would gain."""
    found = _run(session, decision=EARLY, erase=False)
    assert not any(point.erased for point in found.choices)
    assert not ERASED_ARMS & {one.arm for one in found.arms}


def test_neutral_examples_make_a_head_that_varies_less_along_them(session):
    """Told that the examples hold no label, the head spends less on what varies among them."""
    examples = neutral_texts()
    told, untold = (
        _run(session, decision=EARLY, attribute_texts=examples, neutral_examples=neutral)
        for neutral in (True, False)
    )
    spread = []
    for found in (told, untold):
        weight = torch.tensor(found.head.weight).diff(dim=0)[0]
        readout = Readout(layer=EARLY.layer, pooling=EARLY.pooling)
        hosted = session.require_model()
        vectors = finish(pool_texts(hosted, readout, [tuple(hosted.encode(one.text)) for one in examples]))
        rows = centred(vectors, torch.tensor([one.attribute == ATTRIBUTES[1] for one in examples]).long())
        spread.append(float((rows.float() @ weight).std() / weight.norm()))
    assert spread[0] < 0.9 * spread[1]


def test_examples_that_hold_the_label_are_not_neutral(session):
    """They vary along the decision as the labels do: refused, with what to do."""
    with pytest.raises(InvalidRequestError, match="give texts of neither label") as refused:
        _run(session, decision=EARLY, neutral_examples=True)
    assert refused.value.context["field"] == "neutral_examples"
    with pytest.raises(InvalidRequestError, match="there are none"):
        RemoveSpuriousFeatures(**{**GIVEN, "attribute_texts": (), "neutral_examples": True})
    with pytest.raises(InvalidRequestError, match="leave one of the two out"):
        RemoveSpuriousFeatures(**{**GIVEN, "erase": False, "neutral_examples": True})


def test_an_attribute_that_nothing_tells_is_not_erased(session, report):
    """Environments judge features, but give no direction; the report says so."""
    training = tuple(
        replace(one, environment=str(place % 2), attribute=None) for place, one in enumerate(ambiguous())
    )
    overrides = (Override(feature=report.features[0].feature, remove=True, reason="named"),)
    found = _run(session, training=training, attribute_texts=(), test=(), overrides=overrides)
    assert found.chosen >= 1
    assert found.arm(Arm.ERASED) is None
    assert any("trained again as it is" in caveat for caveat in found.caveats)


def _margins(session, report, texts: list[str]) -> torch.Tensor:
    """What the report's head says of texts with its features removed, `(n,)`."""
    hosted, head = session.require_model(), report.head
    ids = [tuple(hosted.encode(text)) for text in texts]
    removed = [one.target.feature for one in report.interventions]
    pooled = finish(pool_texts(hosted, Readout(layer=head.layer, pooling=head.pooling), ids, removed))
    logits = pooled @ torch.tensor(head.weight).T + torch.tensor(head.bias)
    return logits[:, 1] - logits[:, 0]


def test_the_same_request_gives_the_same_report(session, report):
    """Everything that is drawn follows the seed."""
    again = _run(session)
    assert replace(again, seconds=0) == replace(report, seconds=0)


def test_a_person_has_the_last_word(session, report):
    """What was removed is kept, what was kept is removed, with the reason beside our own decision."""
    kept = next(one.feature for one in report.features if one.removed)
    task = next(one.feature for one in report.features if one.standing is Standing.TASK)
    said = (
        Override(feature=kept, remove=False, reason="it is the task"),
        Override(feature=task, remove=True, reason="it is a name"),
    )
    found = _run(session, overrides=said)
    by_feature = {one.feature: one for one in found.features}
    assert not by_feature[kept].removed
    assert by_feature[task].removed
    assert by_feature[task].override == "it is a name"
    assert "ours: task" in by_feature[task].why
    assert {one.feature for one in found.features[:2]} == {kept, task}, (
        "a person looks for their own words first"
    )
    assert all(one.firings for one in found.features[:2])
    assert found.interventions != report.interventions


def test_twins_and_lexicons_make_counterfactuals(session):
    """Flips are reported, an attribute probe is trained on the pairs, and the limits are told."""
    twins = _run(session, training=ambiguous(twins=True), attribute_texts=())
    spaced = tuple(replace(one, text=" ".join(one.text)) for one in GIVEN["training"])
    swaps = _run(session, training=spaced, swaps=(Swap(first="x", second="z"),), attribute_texts=())
    assert twins.judges == (Judge.COUNTERFACTUALS,)
    assert twins.arm(Arm.ORIGINAL).figure("flip_rate") is not None
    assert any("cues that twins share" in one for one in twins.caveats)
    assert swaps.judges == (Judge.COUNTERFACTUALS,)
    assert all(one.attribute_probe is not None for one in swaps.features)


def test_groups_judge_where_the_attribute_does_not_follow_the_label(session):
    """Validation of all four groups: its worst group chooses."""
    validation = balanced(10, seed=5)
    found = _run(session, validation=validation, attribute_texts=())
    assert found.judges == (Judge.GROUPS,)
    assert "worst group" in found.criterion
    assert all(point.leak is not None for point in found.choices)


def test_with_nothing_known_it_says_that_it_guesses(session):
    """Clusters of the ambiguous set are the weakest judge."""
    found = _run(session, training=ambiguous(attribute=False), attribute_texts=())
    assert found.judges in ((Judge.CLUSTERS,), ())
    assert any("nothing is known of the attribute" in one or "no judge" in one for one in found.caveats)


def test_label_tokens_decide_without_a_refit(session):
    """The model's own logits, behind a template; only what follows the attribute goes."""
    head = TokenHead(tokens=TOKENS, template="The {text} is")
    found = _run(session, decision=head, refit=False)
    hosted = session.require_model()
    ids = torch.tensor([hosted.encode(f"The {GIVEN['test'][0].text} is")])
    with torch.inference_mode():
        logits = hosted.model(ids).logits[0, -1]
    weight = torch.tensor(found.head.weight)
    pooled = finish(pool_texts(hosted, Readout(layer=None, pooling=Pooling.LAST), [tuple(ids[0].tolist())]))
    wanted = logits[[hosted.resolve_target(" the"), hosted.resolve_target(" is")]]
    assert torch.allclose((pooled @ weight.T)[0], wanted, atol=1e-4)
    effects = {one.feature: one.evidence[0].attribute_effect for one in found.features if one.removed}
    assert all(effect > 0 for effect in effects.values())
    assert found.arm(Arm.REFITTED) is None


@pytest.mark.parametrize("kind", ["relu", "resid_post"])
def test_features_of_sets_are_removed_like_neurons(session, kind):
    """The report names the set, and its interventions are features of it."""
    name = resident_set(session.require_model(), kind, name=f"set-{kind}")
    found = _run(session, replacement=name)
    assert {one.feature.replacement for one in found.features} == {name}
    assert found.arm(Arm.ORIGINAL) is not None


def test_paths_through_a_norm_behind_the_mlp_are_doubted():
    """Gemma 2's: with n steps effects are those of attribution patching times 1 + 1/2 + ... + 1/n."""
    session, few = Session(hosted=tiny_hosted("gemma2")), replace(SMALL, counts=(1,), exact=0, random_sets=0)
    reports = {
        estimator: _run(session, budget=few, estimator=estimator, refit=False)
        for estimator in (Estimator.ATTRIBUTION_PATCHING, Estimator.INTEGRATED_GRADIENTS)
    }
    plain, path = ({one.feature: one.effect for one in report.features} for report in reports.values())
    assert path == {
        feature: pytest.approx(137 / 60 * effect, rel=1e-3, abs=1e-5) for feature, effect in plain.items()
    }
    said = [[one for one in report.caveats if "2.28 times" in one] for report in reports.values()]
    assert [len(one) for one in said] == [0, 1]


def test_a_lexicon_swaps_words_and_keeps_their_capitals():
    """In both directions, whole words only; a text without any has no twin."""
    swap = Swapper(lexicon_of("gender", ()))
    assert swap("He met the shepherd. HE left; Mr. Day saw her.") == (
        "She met the shepherd. SHE left; Ms. Day saw him."
    )
    assert swap("the shepherd left") is None


def _one(**changed: Any):
    return replace(GIVEN["training"][0], **changed)


BAD = {
    "one class": ({"training": labelled([(0, 0, 20)], 0)}, InvalidRequestError, "training"),
    "three classes": (
        {"training": (*GIVEN["training"], LabelledText(text="abcd", label="third"))},
        InvalidRequestError,
        "training",
    ),
    "too few": ({"training": labelled([(0, 0, 20), (1, 1, 3)], 0)}, TooFewItemsError, "training"),
    "an unknown label in the test": (
        {"test": (*GIVEN["test"], LabelledText(text="abcd", label="third"))},
        InvalidRequestError,
        "test[48].label",
    ),
    "leakage": ({"test": (*GIVEN["test"], GIVEN["training"][3])}, SplitLeakageError, "test[48].text"),
    "two labels of one text": (
        {"training": (*GIVEN["training"], _one(label="W"))},
        SplitLeakageError,
        "training[80].text",
    ),
    "the attribute is the label": ({"attribute_texts": ()}, AttributeConfoundedError, "training.attribute"),
    "one attribute": (
        {"training": ambiguous(attribute=False), "test": (), "attribute_texts": attribute_texts()[:1]},
        InvalidRequestError,
        "attribute",
    ),
    "refit of the model's own tokens": (
        {
            "decision": TokenHead(
                tokens=(LabelToken(label="Q", token=" the"), LabelToken(label="W", token=" is"))
            )
        },
        InvalidRequestError,
        "without_refit",
    ),
    "an override without a reason": (
        {"overrides": lambda: (Override(feature=FeatureRef(layer=0, index=0), remove=True, reason=" "),)},
        InvalidRequestError,
        "overrides.reason",
    ),
    "counts that do not ascend": (
        {"budget": lambda: RemovalBudget(counts=(5, 2))},
        InvalidRequestError,
        "budget.counts",
    ),
}


def _asked(changed):
    called = {key: value() if callable(value) else value for key, value in changed.items()}
    return RemoveSpuriousFeatures(**{**GIVEN, **called})


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_before_any_work(name):
    """Each by its own error, with the field that caused it."""
    changed, error, field = BAD[name]
    with pytest.raises(error) as caught:
        _asked(changed)
    assert caught.value.context["field"] == field


def test_a_confounded_attribute_says_what_would_help():
    """Which data tell the two apart."""
    with pytest.raises(
        AttributeConfoundedError, match=r"Q: X; W: Z.*other two groups.*attribute_texts.*swaps"
    ):
        RemoveSpuriousFeatures(**{**GIVEN, "attribute_texts": ()})


LATE = {
    "an empty group": (
        {"test": labelled([(0, 0, 9), (0, 1, 9), (1, 1, 9)], 3)},
        EmptyGroupError,
        "test",
    ),
    "a text longer than the context": (
        {"training": (*GIVEN["training"], LabelledText(text="xyz " * 200, label="Q"))},
        PromptTooLongError,
        "training[80].text",
    ),
    "a text of one token": (
        {"training": (*GIVEN["training"], LabelledText(text="q", label="Q"))},
        InvalidRequestError,
        "training[80].text",
    ),
    "a label that is no token": (
        {
            "decision": TokenHead(
                tokens=(LabelToken(label="Q", token=" xylophone"), LabelToken(label="W", token=" is"))
            ),
            "refit": False,
        },
        TargetNotOneTokenError,
        "decision.tokens.tokens[0].token",
    ),
    "a lexicon whose words do not occur": (
        {"attribute_name": "gender"},
        InvalidRequestError,
        "swaps",
    ),
    "an attribute without a lexicon": ({"attribute_name": "age"}, InvalidRequestError, "attribute_name"),
    "a layer that there is not": ({"decision": ProbeHead(layer=3)}, LayerOutOfRangeError, "decision.layer"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_only_the_model_can_tell_is_refused_too(session, name):
    """Before the first forward pass, with the field that caused it."""
    changed, error, field = LATE[name]
    with pytest.raises(error) as caught:
        _run(session, **changed)
    assert caught.value.context["field"] == field
