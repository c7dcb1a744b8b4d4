"""With its texts a report is enough to make it again: it says what it was asked for, and of which texts."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, balanced, neutral_texts, paired
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_digests import texts_digest
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import (
    JudgingRules,
    Override,
    RemovalBudget,
    RemoveSpuriousFeatures,
    SpuriousRemoval,
    Standing,
)
from trephine.domain.spurious_texts import AttributeText, LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.removal import remove_spurious_features

ASKED = RemoveSpuriousFeatures(
    training=ambiguous(),
    test=balanced(),
    attribute_texts=neutral_texts(),
    neutral_examples=True,
    decision=ProbeHead(layer=0, pooling=Pooling.MEAN, penalty=0.02),
    layers=(0,),
    estimator=Estimator.INTEGRATED_GRADIENTS,
    steps=2,
    judging=JudgingRules(spurious_above=0.6, false_discoveries=0.2),
    budget=RemovalBudget(candidates=48, exact=1, counts=(1, 4), effect_texts=32, fit_texts=64, random_sets=1),
    overrides=(
        Override(feature=FeatureRef(layer=0, index=3), remove=True, reason="a name"),
        Override(feature=FeatureRef(layer=0, index=4), remove=False, reason="the task"),
    ),
    resamples=20,
    seed=5,
)


def _again(found: SpuriousRemoval) -> RemoveSpuriousFeatures:
    """Ask for what a report says, of the same texts."""
    options = found.options
    if options is None:
        raise AssertionError("a report without options")
    words = [one for one in found.features if one.override]
    return RemoveSpuriousFeatures(
        training=ASKED.training,
        test=ASKED.test,
        attribute_texts=ASKED.attribute_texts,
        neutral_examples=options.neutral_examples,
        attribute_name=options.attribute_name,
        swaps=options.swaps,
        decision=found.decision,
        replacement=found.replacement,
        layers=options.layers,
        estimator=found.estimator,
        steps=options.steps,
        judging=options.judging,
        budget=options.budget,
        refit=options.refit,
        erase=options.erase,
        overrides=tuple(
            Override(feature=one.feature, remove=one.standing is Standing.SPURIOUS, reason=one.override)
            for one in words
        ),
        resamples=options.resamples,
        seed=found.seed,
    )


def test_what_a_report_says_makes_it_again():
    """To the last figure, a person's words included."""
    session = Session(hosted=tiny_hosted("llama"))
    first = finish(remove_spurious_features(session, ASKED))
    second = finish(remove_spurious_features(session, _again(first)))
    assert replace(second, seconds=0.0) == replace(first, seconds=0.0)


@pytest.mark.parametrize("change", ["text", "label", "attribute", "twin", "environment", "order", "split"])
def test_other_texts_have_another_digest(change: str):
    """So has anything that is told of them, and their order, which draws follow."""
    first, *rest = ambiguous(twins=True)
    other = {"text": "abQX", "label": "W", "attribute": None, "twin": None, "environment": "e"}
    texts: tuple[LabelledText, ...] = (first, *rest)
    if change in other:
        texts = (replace(first, **{change: other[change]}), *rest)
    if change == "order":
        texts = (*rest, first)
    given = {"training": (first, *rest), "test": balanced()}
    changed = {"training": texts, "test": given["test"]}
    if change == "split":
        changed = {"training": tuple(rest), "test": (first, *given["test"])}
    assert texts_digest(changed, ()) != texts_digest(given, ())


def test_names_of_pairs_are_not_of_the_digest():
    """They may be of a file that has another name now; which texts are pairs is of it."""
    texts = ambiguous()
    digests = [texts_digest({"training": paired(texts, name)}, ()) for name in ("old", "new")]
    assert digests[0] == digests[1] != texts_digest({"training": texts}, ())


def test_the_digest_is_what_the_contract_says():
    """Of a JSON object that anybody can write."""
    text = LabelledText(text="caf\xe9", label="a", pair="p")
    told = b'{"training":[["caf\\u00e9","a",null,null,null,0]],"attribute_texts":[["x y","b"]]}'
    expected = hashlib.sha256(told).hexdigest()
    assert texts_digest({"training": (text,)}, (AttributeText(text="x y", attribute="b"),)) == expected
