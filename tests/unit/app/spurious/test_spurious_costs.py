"""The predicted number of pooled texts beside what is pooled, for every criterion that counts go by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled
from tests.unit.app.circuits.test_circuit_costs import smollm2, transcoders
from tests.unit.app.house import model_info
from tests.unit.replacement_values import layer_info
from trephine.app.jobs.costs import predict_beside
from trephine.app.spurious.spurious_costs import pooled_texts
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import LabelToken, Pooling, ProbeHead, TokenHead
from trephine.domain.spurious_removal import JudgingRules, Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious import study
from trephine.engine.spurious.pooling import pool_texts
from trephine.engine.spurious.removal import remove_spurious_features

TWINS = ambiguous(24, twins=True)
TOKENS = TokenHead(tokens=(LabelToken(label="Q", token=" the"), LabelToken(label="W", token=" is")))
GIVEN: dict[str, Any] = {
    "training": TWINS,
    "test": balanced(6),
    "decision": ProbeHead(layer=1, pooling=Pooling.MEAN),
    "budget": RemovalBudget(
        candidates=96, exact=2, counts=(1, 3, 6), effect_texts=20, fit_texts=30, random_sets=1
    ),
    "judging": JudgingRules(spurious_above=0.05, task_below=0.0, false_discoveries=0.99),
    "overrides": (Override(feature=FeatureRef(layer=0, index=1), remove=True, reason="so that one goes"),),
    "resamples": 20,
}
CASES: dict[str, dict[str, Any]] = {
    "examples of the attribute": {"training": ambiguous(24), "attribute_texts": attribute_texts(8)},
    "twins, heads trained by turns": {},
    "a few twins": {
        "training": tuple(replace(one, twin=None) if n % 2 else one for n, one in enumerate(TWINS))
    },
    "twins of a validation split": {"validation": ambiguous(12, seed=8, twins=True)},
    "a probe that stays": {"refit": False},
    "label tokens": {"decision": TOKENS, "refit": False},
    "examples, and a few crossed texts": {
        "training": (*ambiguous(24), *labelled([(0, 1, 6), (1, 0, 6)], 9)),
        "attribute_texts": attribute_texts(30),
    },
    "twins, and a few crossed texts": {
        "training": (*TWINS, *labelled([(0, 1, 6), (1, 0, 6)], 9, twins=True)),
    },
    "texts of all groups": {"training": balanced(45, seed=7)},
    "a validation split of all groups": {"training": ambiguous(24), "validation": balanced(10, seed=8)},
    "no head without the attribute": {"erase": False},
}


@pytest.fixture(scope="module")
def session():
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


@pytest.mark.parametrize("name", CASES)
def test_as_many_texts_are_pooled_as_predicted(session, monkeypatch, name):
    """Never many more, and no less than half: what is shipped and how far counts go is not known before."""
    pooled = list[int]()

    def counting(hosted, readout, texts, removed=()):
        pooled.append(len(texts))
        return pool_texts(hosted, readout, texts, removed)

    monkeypatch.setattr(study, "pool_texts", counting)
    command = RemoveSpuriousFeatures(**{**GIVEN, **CASES[name]})
    finish(remove_spurious_features(session, command))
    assert 0.5 * pooled_texts(command) <= sum(pooled) <= 1.1 * pooled_texts(command)


def test_the_price_follows_twins_and_options():
    """Turns cost all ambiguous texts and twins at every count; a given head only what it is compared on."""
    many = RemovalBudget(effect_texts=20, fit_texts=30)

    def texts(**changed: Any) -> int:
        return pooled_texts(RemoveSpuriousFeatures(**{**GIVEN, "budget": many, **changed}))

    by_turns, stays = texts(), texts(decision=TOKENS, refit=False)
    wider = texts(decision=TOKENS, refit=False, budget=replace(many, fit_texts=1024))
    assert by_turns > 1.5 * stays
    assert wider < 1.1 * stays
    out = len(TWINS) // 5
    assert by_turns - texts(budget=replace(many, counts=(1,))) == 7 * (2 * (30 + out) + out)
    info = model_info("tiny")
    plain = RemoveSpuriousFeatures(**GIVEN)
    gradients = replace(plain, estimator=Estimator.INTEGRATED_GRADIENTS, steps=20)
    assert predict_beside(gradients, info, {}).tokens > 2 * predict_beside(plain, info, {}).tokens


def test_memory_is_of_the_sets_features_that_reach_the_head():
    """A matrix of texts by features is bounded, by fewer texts; layers above the head are not in it."""
    info, sizes = model_info("tiny"), (300, 3_000, 30_000, 30_000_000)
    command = RemoveSpuriousFeatures(**{**GIVEN, "replacement": "set"})

    def beside(*d_sae: int, **changed: Any) -> int:
        layers = tuple(replace(layer_info(n), d_sae=size) for n, size in enumerate(d_sae))
        return predict_beside(replace(command, **changed), info, {"set": layers}).memory_bytes

    small, medium, large, huge = (beside(size, size) for size in sizes)
    assert (large - small) / (medium - small) == pytest.approx(11, rel=1e-3)
    assert 900 < (huge - small) / (large - small) < 980  # a thousand times as many, on fewer texts
    assert beside(300, 300) == beside(300, 300, 30_000) < beside(300, 30_000)
    assert beside(300, 30_000, layers=(0,)) == beside(300)
    assert predict_beside(replace(command, replacement="neurons"), info, {}).memory_bytes < large


@pytest.mark.parametrize(("name", "measured"), [("neurons", 888 << 20), ("set", 888 << 20)])
def test_memory_is_about_what_was_measured_on_smollm2(name, measured):
    """64 texts, a head after the last block, 46,080 neurons or 61,440 features: so much was taken."""
    training, attribute = ambiguous(32), attribute_texts(6)
    budget = RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=64, fit_texts=64)
    command = RemoveSpuriousFeatures(
        training=training,
        test=balanced(6),
        attribute_texts=attribute,
        decision=ProbeHead(pooling=Pooling.MEAN),
        budget=budget,
        replacement=name,
    )
    predicted = predict_beside(command, smollm2(), {"set": transcoders()}).memory_bytes
    assert 0.7 <= predicted / measured <= 1.4


def test_memory_of_a_sweep_is_of_the_blocks_below_the_head():
    """Their frozen network is held for a whole pack."""
    command = RemoveSpuriousFeatures(**{**GIVEN, "replacement": "set"})
    layers = (replace(layer_info(0), d_sae=300),)

    def read_after(layer: int) -> int:
        decision = ProbeHead(layer=layer, pooling=Pooling.MEAN)
        return predict_beside(replace(command, decision=decision), smollm2(), {"set": layers}).memory_bytes

    block = 4 * 256 * (6 * 576 + 2 * 1536 + 9 * 256)
    assert read_after(29) - read_after(9) == 20 * block


def test_a_template_is_read_with_every_text():
    """A prompt of many words around a few letters is most of what is run."""
    info = model_info("tiny")
    bare, shots = (
        predict_beside(RemoveSpuriousFeatures(**{**GIVEN, "decision": decision, "refit": False}), info, {})
        for decision in (TOKENS, replace(TOKENS, template="one more example. " * 50 + "{text}"))
    )
    assert shots.tokens > 10 * bare.tokens


@pytest.mark.parametrize("told", [{"attribute_texts": attribute_texts(30)}, {}])
def test_a_few_crossed_texts_change_no_price(told):
    """They do not choose where examples or twins do: what is pooled is as with none of them."""
    crossed = (*ambiguous(24, twins=not told), *labelled([(0, 1, 6), (1, 0, 6)], 9, twins=not told))
    usual = (*ambiguous(24, twins=not told), *labelled([(0, 0, 6), (1, 1, 6)], 9, twins=not told))
    prices = [
        pooled_texts(RemoveSpuriousFeatures(**{**GIVEN, **told, "training": texts}))
        for texts in (crossed, usual)
    ]
    assert prices[0] == prices[1]
