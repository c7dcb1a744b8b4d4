"""Which attribute goes with which label: what tells it, and that names do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ATTRIBUTES, ambiguous, attribute_texts, balanced, labelled
from trephine.domain.errors import EmptyGroupError
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_texts import LabelledText, Swap
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.examples import AMBIGUOUS_SET
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.study import open_study

NAMES = (ATTRIBUTES, ATTRIBUTES[::-1])
"""In the order of the labels that they go with: as the alphabet has them, and the other way round."""
BLIND = ambiguous(attribute=False)


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


def _named(texts, names: str):
    """The same texts with `names` for their attributes."""
    other = dict(zip(ATTRIBUTES, names, strict=True))
    return tuple(
        replace(one, attribute=None if one.attribute is None else other[one.attribute]) for one in texts
    )


def _told(hosted, **given: Any):
    decision = ProbeHead(layer=0, pooling=Pooling.MEAN, penalty=1e-3)
    return finish(open_study(hosted, RemoveSpuriousFeatures(decision=decision, **given))).data


def _spaced(texts: tuple[LabelledText, ...]) -> tuple[LabelledText, ...]:
    return tuple(replace(one, text=" ".join(one.text)) for one in texts)


GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "the ambiguous set": (AMBIGUOUS_SET, {"training": ambiguous(), "attribute_texts": attribute_texts()}),
    "an ambiguous validation split": (
        "the ambiguous validation split",
        {"training": BLIND, "validation": ambiguous(12, seed=9), "attribute_texts": attribute_texts()},
    ),
    "a lexicon": (
        "what twins change, as it stands in the test split",
        {
            "training": _spaced(BLIND),
            "swaps": (Swap(first="z", second="x"),),
            "test": _spaced(balanced()),
        },
    ),
    "twins": (
        "what twins change, as it stands in the validation split",
        {"training": ambiguous(attribute=False, twins=True), "validation": balanced(60, seed=7)},
    ),
    "examples": (
        "how the head decides on the examples of the attribute",
        {"training": BLIND, "attribute_texts": attribute_texts(40)},
    ),
    "a balanced validation split": (
        "how the head decides on the validation split",
        {"training": BLIND, "validation": balanced(12, seed=7)},
    ),
    "a balanced test split": (
        "how the head decides on the test split",
        {"training": BLIND, "test": balanced(12, seed=7)},
    ),
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("what", GIVEN)
def test_whatever_tells_it_names_do_not(hosted, what, names):
    """The value whose letter stands in the first label's texts comes first, under either name."""
    told_by, given = GIVEN[what]
    texts = ("training", "validation", "test", "attribute_texts")
    data = _told(hosted, **{key: _named(of, names) if key in texts else of for key, of in given.items()})
    assert data.attributes == tuple(names)
    assert data.told_by.startswith(told_by)
    examples = (*data.training, *data.held_out, *data.test, *data.attribute)
    known = [one for one in examples if one.attribute >= 0]
    assert known
    assert all((one.text.count("X") > 0) == (one.attribute == 0) for one in known)


def test_the_text_of_an_even_set_is_oriented_in_every_place(hosted):
    """Where the ambiguous set knows the attribute and it goes with no label, the head says it, for all."""
    given = {"training": balanced(20), "test": balanced(12, seed=7)}
    study = finish(
        open_study(
            hosted,
            RemoveSpuriousFeatures(decision=ProbeHead(layer=0, pooling=Pooling.MEAN), **given),
        )
    )
    data = study.data
    assert "the head decides on the ambiguous set" in data.told_by
    first = data.attributes[0]
    for one in (*study.fitted, *data.training, *data.held_out, *data.test):
        assert (first in one.text) == (one.attribute == 0)


def test_a_validation_split_against_the_pairing_of_the_ambiguous_set_lacks_groups(hosted):
    """It is ambiguous, but not as the ambiguous set is."""
    against = labelled([(0, 1, 12), (1, 0, 12)], 9)
    with pytest.raises(EmptyGroupError, match="no text of Q/X, W/Z"):
        _told(hosted, training=ambiguous(), validation=against, attribute_texts=attribute_texts())


def test_the_report_says_what_it_is_taken_from(hosted):
    """And the same figures come of either names."""
    budget = RemovalBudget(candidates=64, exact=0, counts=(1, 20), effect_texts=64, random_sets=0)
    found = [
        finish(
            remove_spurious_features(
                Session(hosted=hosted),
                RemoveSpuriousFeatures(
                    training=BLIND,
                    validation=_named(balanced(10, seed=7), names),
                    test=_named(balanced(10, seed=11), names),
                    decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
                    budget=budget,
                    refit=False,
                    resamples=10,
                ),
            )
        )
        for names in NAMES
    ]
    for one, names in zip(found, NAMES, strict=True):
        assert one.pairing.startswith(f"taken as Q with {names[0]}, W with {names[1]}")
        assert any("taken from how the head decides on the validation split" in c for c in one.caveats)
    figures = [[(fig.value, fig.low, fig.high) for arm in one.arms for fig in arm.figures] for one in found]
    assert figures[0] == figures[1]
    assert found[0].interventions == found[1].interventions
    assert (
        len({(one.outcome.verdict, one.outcome.before.value, one.outcome.after.value) for one in found}) == 1
    )
