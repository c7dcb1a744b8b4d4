"""Baselines without features in the product's own report, against the same done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.findings import Figure
from trephine.domain.spurious_arms import Arm, ArmOutcome
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.erasure import affine
from trephine.engine.erasure.affine import fit_leace
from trephine.engine.erasure.logistic import fit_logistic
from trephine.engine.erasure.tokens import strongest_tokens, token_associations, without_tokens
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.baselines import measure_baselines
from trephine.engine.spurious.examples import attributes, labels
from trephine.engine.spurious.measuring import Measure
from trephine.engine.spurious.removal import _as_controlled, _as_good
from trephine.engine.spurious.study import Study, open_study

BASELINES = [Arm.LEACE, Arm.INLP, Arm.TOKEN_DELETION]
PROBE = ProbeHead(layer=0, pooling=Pooling.MEAN)


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


def opened(hosted, **given: Any) -> Study:
    common = {"training": ambiguous(), "test": balanced(), "decision": PROBE, "resamples": 20}
    return finish(open_study(hosted, RemoveSpuriousFeatures(**{**common, **given})))


def measured(study: Study):
    measure = Measure(study)
    plain = finish(measure.pooled((), "original"))
    return {one.arm: one for one in finish(measure_baselines(measure, plain))}


def right(head, vectors, texts) -> float:
    """Accuracy over groups of equal size."""
    return float((head.decide(vectors) == labels(texts)).float().mean())


def test_leace_is_fitted_on_the_examples_and_the_head_trained_on_what_it_leaves(hosted):
    """By hand, on the same vectors: the same decisions on the test split."""
    study = opened(hosted, attribute_texts=attribute_texts())
    found = measured(study)
    assert list(found) == BASELINES
    pool = {
        name: finish(study.pool([one.ids for one in texts], (), name))
        for name, texts in (
            ("all", study.everything), ("told", study.data.attribute), ("test", study.data.test),
        )
    }  # fmt: skip
    erase = fit_leace(pool["told"], attributes(study.data.attribute))
    head = study.trained(erase(pool["all"]), study.everything)
    expected = right(head, erase(pool["test"]), study.data.test)
    assert found[Arm.LEACE].figure("label_accuracy").value == pytest.approx(expected, abs=1e-6)
    assert found[Arm.LEACE].figure("worst_group").value != found[Arm.INLP].figure("worst_group").value


def test_a_round_of_inlp_is_a_quantum(hosted, monkeypatch):
    """Twenty fits at once were two minutes of 4,000 examples, which nothing could end."""
    study = opened(hosted, attribute_texts=attribute_texts())
    measure, fits = Measure(study), list[int]()
    plain = finish(measure.pooled((), "original"))

    def counted(*args: Any, **options: Any) -> Any:
        fits[-1] += 1
        return fit_logistic(*args, **options)

    monkeypatch.setattr(affine, "fit_logistic", counted)
    fits.append(0)
    for _ in measure_baselines(measure, plain):
        fits.append(0)
    assert sum(fits) > 1
    assert max(fits) == 1


def test_telling_tokens_are_deleted_from_every_text(hosted):
    """The attribute's letter goes, and with it what the original follows."""
    study = opened(hosted, attribute_texts=attribute_texts())
    told = study.data.attribute
    found = token_associations([one.ids for one in told], attributes(told).tolist())
    gone = strongest_tokens(found, above=2.0, at_most=100)
    assert gone
    all_, test = (
        finish(study.pool([tuple(without_tokens(one.ids, gone)) for one in texts], (), "deleted"))
        for texts in (study.everything, study.data.test)
    )
    expected = right(study.trained(all_, study.everything), test, study.data.test)
    arm = measured(study)[Arm.TOKEN_DELETION]
    assert arm.figure("label_accuracy").value == pytest.approx(expected, abs=1e-6)
    assert arm.figure("attribute_agreement").value < 0.7


def test_twins_tell_the_attribute_where_no_examples_do(hosted):
    """A text's own side is its label's, its twin's the other; without either there is no baseline."""
    training = tuple(replace(one, attribute=None) for one in ambiguous(twins=True))
    assert list(measured(opened(hosted, training=training))) == BASELINES
    without = tuple(replace(one, attribute=None) for one in ambiguous())
    assert measured(opened(hosted, training=without)) == {}


def test_a_head_that_stays_decides_on_what_is_left(hosted):
    """Nothing is trained: LEACE of the examples in front of the very same head."""
    study = opened(hosted, attribute_texts=attribute_texts(), refit=False)
    test = finish(study.pool([one.ids for one in study.data.test], (), "test"))
    told = finish(study.pool([one.ids for one in study.data.attribute], (), "told"))
    erase = fit_leace(told, attributes(study.data.attribute))
    expected = right(study.head, erase(test), study.data.test)
    assert measured(study)[Arm.LEACE].figure("label_accuracy").value == pytest.approx(expected, abs=1e-6)


def outcome(arm: Arm, worst: float) -> ArmOutcome:
    """An arm with a worst group."""
    return ArmOutcome(arm=arm, figures=(Figure(name="worst_group", value=worst, unit="share"),))


def test_what_is_simpler_and_as_good_is_named():
    """And only that; where nothing ships there is nothing to compare."""
    arms = [
        outcome(Arm.ORIGINAL, 0.0),
        outcome(Arm.REFITTED, 0.8),
        outcome(Arm.LEACE, 0.9),
        outcome(Arm.INLP, 0.7),
    ]
    (said,) = _as_good(arms)
    assert "LEACE (90.0%)" in said
    assert "INLP" not in said
    assert "(80.0%)" in said
    assert _as_good([outcome(Arm.REFITTED, 0.95), *arms[2:]]) == ()
    assert _as_good([arms[0], *arms[2:]]) == ()
    assert _as_good([outcome(Arm.REFITTED, 0.0), *arms[2:]]) == ()  # nothing is fair, and nothing to match
    assert _as_good([ArmOutcome(arm=Arm.REFITTED, figures=()), *arms[2:]]) == ()


@pytest.mark.parametrize(
    ("ships", "control", "words"),
    [
        (Arm.REMOVED, Arm.RANDOM, "with as many random features removed (80.0%)"),
        (Arm.REFITTED, Arm.RANDOM_REFITTED, "removed and the head trained again (80.0%)"),
        (Arm.ERASED, Arm.ERASED_ALONE, "by such a head with every feature in place (80.0%)"),
    ],
)
def test_what_random_features_do_as_well_is_not_the_work_of_those_that_went(ships, control, words):
    """A given head that is trained again gains by that alone; where the control does less nothing is said."""
    arms = [outcome(Arm.ORIGINAL, 0.0), outcome(ships, 0.8), outcome(control, 0.8)]
    (said,) = _as_controlled(arms)
    assert words in said
    assert "was not seen" in said
    assert _as_controlled([arms[0], outcome(ships, 0.81), arms[2]]) == ()
    assert _as_controlled(arms[:2]) == ()
    assert _as_controlled([arms[0], arms[2]]) == ()
