"""Arms are trained alike: what differs between them is what they are named for."""

from __future__ import annotations

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import Arm, Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.engine.quanta import finish
from trephine.engine.session import Session
from trephine.engine.spurious import arms
from trephine.engine.spurious.examples import labels
from trephine.engine.spurious.measuring import Measure
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.study import open_study

DRAWN = [FeatureRef(layer=0, index=7), FeatureRef(layer=0, index=8)]
GONE = (Override(feature=FeatureRef(layer=0, index=3), remove=True, reason="so that something goes"),)


def test_the_random_control_is_trained_on_as_many_texts_as_what_ships(monkeypatch):
    """On all of them for the test split, and for held-out texts without these: by hand, the same figures."""
    monkeypatch.setattr(arms, "matched_features", lambda *_: DRAWN)
    hosted = tiny_hosted("llama")
    command = RemoveSpuriousFeatures(
        training=ambiguous(),
        test=balanced(40, seed=11),
        attribute_texts=attribute_texts(),
        decision=ProbeHead(layer=0, pooling=Pooling.MEAN, penalty=1e-3),
        budget=RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=64, random_sets=1),
        overrides=GONE,
        resamples=10,
    )
    found = finish(remove_spurious_features(Session(hosted=hosted), command)).arm(Arm.RANDOM_REFITTED)
    study = finish(open_study(hosted, command))
    measure = Measure(study)
    vectors = {
        name: finish(study.pool([one.ids for one in texts], DRAWN, name))
        for name, texts in (
            ("fitted", study.fitted),
            ("all", study.everything),
            ("test", study.data.test),
            ("held out", measure.held_out),
        )
    }
    final, apart = (
        study.trained(vectors["all"], study.everything),
        study.trained(vectors["fitted"], study.fitted),
    )
    for name, head, place, texts in (
        ("label_accuracy", final, "test", study.data.test),
        ("ambiguous_accuracy", apart, "held out", measure.held_out),
    ):
        right = (head.decide(vectors[place]) == labels(texts)).float().mean()
        assert found.figure(name).value == pytest.approx(float(right), abs=1e-6)
    of_fewer = (apart.decide(vectors["test"]) == labels(study.data.test)).float().mean()
    assert found.figure("label_accuracy").value != pytest.approx(float(of_fewer), abs=1e-6), "it would tell"
