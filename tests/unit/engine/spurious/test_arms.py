"""Arms are trained alike: what differs between them is what they are named for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, paired
from trephine.domain.findings import Verdict
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import Override, RemovalBudget, RemoveSpuriousFeatures, Standing
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious import arms
from trephine.engine.spurious.examples import labels
from trephine.engine.spurious.judging import Candidate
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


def _removal_of(count: int) -> RemoveSpuriousFeatures:
    """Ask for so many of the 64 neurons of a layer to go, whatever is judged."""
    return RemoveSpuriousFeatures(
        training=ambiguous(),
        test=balanced(),
        attribute_texts=attribute_texts(),
        decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
        budget=RemovalBudget(candidates=1, exact=0, counts=(1,), effect_texts=8, random_sets=1),
        overrides=tuple(
            Override(feature=FeatureRef(layer=0, index=index), remove=True, reason="it goes")
            for index in range(count)
        ),
        resamples=10,
    )


@pytest.mark.parametrize("count", [20, 60])
def test_a_control_of_fewer_features_is_not_called_one_of_as_many(count):
    """Four neurons of the layer are left beside sixty that go: a report says how many stand alone."""
    hosted = tiny_hosted("llama")
    found = finish(remove_spurious_features(Session(hosted=hosted), _removal_of(count)))
    said = [one for one in found.caveats if "have no random one beside them" in one]
    assert found.arm(Arm.RANDOM) is not None
    if count == 20:
        assert not said
    else:
        assert said[0].startswith(f"{found.chosen - (64 - found.chosen)} of {found.chosen} removed features")


def test_both_concepts_lose_as_many_features_in_tpp():
    """Two of the task beside sixty of the attribute are compared with the first two of these."""
    hosted = tiny_hosted("llama")
    study = finish(open_study(hosted, _removal_of(1)))
    measure = Measure(study)
    plain = finish(measure.pooled((), "plain"))
    gone = [_candidate(index, Standing.SPURIOUS) for index in range(60)]
    judged: Any = SimpleNamespace(candidates=[_candidate(index, Standing.TASK) for index in (62, 63)])

    def scored(removed: list[Candidate]) -> float | None:
        after = finish(measure.pooled([one.feature for one in removed], "removed"))
        choice: Any = SimpleNamespace(removed=tuple(removed))
        return finish(arms._targeted(measure, judged, choice, plain, after))

    assert scored(gone) == scored(gone[:2])


def _candidate(index: int, standing: Standing) -> Candidate:
    return Candidate(
        feature=FeatureRef(layer=0, index=index), node=index, effect=1.0, standing=standing, score=0.9,
        why="", evidence=(), attribute_probe=None,
    )  # fmt: skip


def test_what_ships_is_held_against_a_head_of_as_many_texts():
    """One that had seen an eighth of them made a pass of any removal: here of a neuron that says nothing."""
    session = Session(hosted=tiny_hosted("llama"))
    command = RemoveSpuriousFeatures(
        training=balanced(100, seed=5),
        test=balanced(60, seed=77),
        decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
        budget=RemovalBudget(
            candidates=16, exact=0, counts=(1,), effect_texts=48, fit_texts=16, random_sets=1
        ),
        erase=False,
        overrides=GONE,
        resamples=50,
    )
    found = finish(remove_spurious_features(session, command))
    worst = {one.arm: one.figure("worst_group").value for one in found.arms}
    assert found.outcome.verdict is Verdict.INCONCLUSIVE
    assert found.outcome.before.value == worst[Arm.ORIGINAL]
    assert abs(worst[Arm.ORIGINAL] - worst[Arm.REFITTED]) < 0.1


def test_a_text_in_several_pairs_counts_once_in_the_scores():
    """A probe that has seen one copy and is asked about the other knows the answer."""
    session, test = Session(hosted=tiny_hosted("llama")), balanced(12, seed=11)
    better, worse = ([one for one in test if one.label == label] for label in "WQ")
    anew = [
        replace(one, pair=f"anew {place}")
        for place, pair in enumerate(zip(better, [*worse[1:], worse[0]], strict=True))
        for one in pair
    ]
    found = [
        finish(
            remove_spurious_features(
                session,
                RemoveSpuriousFeatures(
                    training=ambiguous(),
                    test=texts,
                    attribute_texts=attribute_texts(),
                    decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
                    budget=RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=64, random_sets=0),
                    overrides=GONE,
                    resamples=10,
                ),
            )
        ).scores
        for texts in (test, (*paired(test), *anew))
    ]
    assert found[0].scr is not None
    assert found[0] == found[1]


def test_what_a_person_keeps_is_no_random_feature(monkeypatch):
    """It may be of the attribute, as was judged, and would make the control do what the removal does."""
    kept, given = FeatureRef(layer=0, index=5), list[FeatureRef]()

    def drawn(space: Any, removed: Any, spurious: list[Candidate], *_: Any) -> list[FeatureRef]:
        given.extend(one.feature for one in spurious)
        return DRAWN

    monkeypatch.setattr(arms, "matched_features", drawn)
    command = RemoveSpuriousFeatures(
        training=ambiguous(),
        test=balanced(),
        attribute_texts=attribute_texts(),
        decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
        budget=RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=48, random_sets=1),
        overrides=(*GONE, Override(feature=kept, remove=False, reason="it is the task")),
        resamples=10,
    )
    finish(remove_spurious_features(Session(hosted=tiny_hosted("llama")), command))
    assert kept in given
