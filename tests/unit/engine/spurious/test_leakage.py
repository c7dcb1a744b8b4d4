"""What makes figures of a removal say nothing: texts and twins on both sides, examples of one value."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled
from trephine.domain.errors import InvalidRequestError, SplitLeakageError, TooFewItemsError
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_texts import AttributeText, LabelledText, Swap
from trephine.engine.spurious.examples import read_data

GIVEN: dict[str, Any] = {
    "training": ambiguous(),
    "test": balanced(),
    "attribute_texts": attribute_texts(),
}
PAIRED = ambiguous(twins=True)
ONE_VALUE = tuple(one for one in GIVEN["attribute_texts"] if one.attribute == "X")


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


def _edited(one: LabelledText) -> LabelledText:
    return replace(one, text=one.twin, twin=None)


def _example(one: LabelledText) -> AttributeText:
    return AttributeText(text=one.text, attribute=str(one.attribute))


REFUSED = {
    "a test text that is the twin of a training text": (
        {"training": PAIRED, "test": (*GIVEN["test"], _edited(PAIRED[2]))},
        SplitLeakageError,
        "test[48].text",
        "test text 48 is the twin of training text 2: ",
    ),
    "a validation text whose twin is a training text": (
        {"validation": (replace(_edited(PAIRED[2]), twin=PAIRED[2].text), *labelled([(1, 1, 1)], 8))},
        SplitLeakageError,
        "validation[0].twin",
        "the twin of validation text 0 is training text 2: ",
    ),
    "examples that are test texts": (
        {"attribute_texts": (*GIVEN["attribute_texts"], _example(GIVEN["test"][5]))},
        SplitLeakageError,
        "attribute_texts[60].text",
        "attribute example 60 is test text 5: ",
    ),
    "an example of both values": (
        {"attribute_texts": (*GIVEN["attribute_texts"], replace(GIVEN["attribute_texts"][3], attribute="Z"))},
        SplitLeakageError,
        r"attribute_texts[60].text",
        "attribute example 60 is attribute example 3 with another attribute: .*correct it, or leave both out",
    ),
    "a test text of both values, and once of none": (
        {
            "test": (
                replace(GIVEN["test"][5], attribute=None),
                *GIVEN["test"],
                replace(GIVEN["test"][5], attribute="Z"),
            )
        },
        SplitLeakageError,
        "test[49].text",
        "test text 49 is test text 6 with another attribute: ",
    ),
    "a twin that is its text": (
        {"training": (*PAIRED[:4], replace(PAIRED[4], twin=f"{PAIRED[4].text} "), *PAIRED[5:])},
        InvalidRequestError,
        "training[4].twin",
        "training text 4 and its twin are the same: .* leave it out of a text in which nothing is to be",
    ),
    "examples of one value": (
        {"attribute_texts": ONE_VALUE},
        TooFewItemsError,
        "attribute_texts",
        r"no different text\(s\) of Z; they need at least 8 of either",
    ),
    "three examples of either value": (
        {"attribute_texts": GIVEN["attribute_texts"][12:18]},
        TooFewItemsError,
        "attribute_texts",
        r"3 different text\(s\) of X; they need at least 8 of either",
    ),
    "one text eight times": (
        {"training": (*labelled([(0, 0, 20)], 0), *[LabelledText(text="abWd", label="W")] * 8)},
        TooFewItemsError,
        "training",
        "W has 1 different texts",
    ),
    "one label": (
        {"training": labelled([(0, 0, 20)], 0)},
        InvalidRequestError,
        "training",
        "is between two: add texts of another label, at least 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_any_work(name):
    """By its own error, with the field, the text and both places, or what is missing."""
    changed, error, field, said = REFUSED[name]
    with pytest.raises(error, match=said) as caught:
        RemoveSpuriousFeatures(**{**GIVEN, **changed})
    assert caught.value.context["field"] == field


def test_a_text_may_stand_again_with_what_is_known_of_it(hosted):
    """The same attribute or none, and as the twin of its twin."""
    first, example = PAIRED[0], GIVEN["attribute_texts"][0]
    back = replace(first, text=first.twin, twin=first.text, attribute="Z")
    asked = RemoveSpuriousFeatures(
        training=(*PAIRED, back, replace(first, attribute=None), first),
        attribute_texts=(*GIVEN["attribute_texts"], example),
    )
    data = read_data(hosted, asked)
    assert len(data.attribute) == 60, "an example that stands again is one"
    assert len(data.training) + len(data.held_out) == 82, "and so is a row; two others say something else"


def test_a_twin_that_a_lexicon_makes_leaks_as_well(hosted):
    """It is known once the model reads the texts."""
    asked = RemoveSpuriousFeatures(
        training=(*GIVEN["training"], LabelledText(text="kz xw ab", label="Q")),
        test=(*GIVEN["test"], LabelledText(text="kz vv ab", label="Q", attribute="Z")),
        swaps=(Swap(first="xw", second="vv"),),
    )
    with pytest.raises(SplitLeakageError, match=r"training text 80"):
        read_data(hosted, asked)


def test_duplicates_and_twins_are_held_out_together(hosted):
    """Every text stands twice and its twin once; a fifth is held out, and nothing of it is trained on."""
    kept = [one for place, one in enumerate(PAIRED) if place % 2]
    again = [replace(one, environment="another") for one in kept]
    asked = RemoveSpuriousFeatures(training=(*kept, *again, *map(_edited, kept)))
    data = read_data(hosted, asked)
    fitted, held_out = (
        {ids for one in texts for ids in (one.ids, one.twin)} for texts in (data.training, data.held_out)
    )
    assert not (fitted & held_out) - {None}
    assert len(data.held_out) == 24, "of 120: four of twenty for either label, three times"
    assert len(data.training) == 96


def test_what_cannot_be_held_out_is_refused(hosted):
    """Where each text is the twin of the one before, all of them are one."""
    words = [f"abW{chr(ord('a') + place)}" for place in range(11)]
    chained = tuple(LabelledText(text=a, twin=b, label="W") for a, b in pairwise(words))
    asked = RemoveSpuriousFeatures(training=(*labelled([(0, 0, 20)], 0, attribute=False), *chained))
    with pytest.raises(TooFewItemsError, match="no text of W can be held out"):
        read_data(hosted, asked)
