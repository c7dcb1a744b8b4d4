"""What a removal of spurious features is refused for without a model, and the least that is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import (
    AttributeConfoundedError,
    InvalidRequestError,
    LayerOutOfRangeError,
    TooFewItemsError,
)
from trephine.domain.spurious_heads import LabelToken, ProbeHead, TokenHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_texts import (
    FEWEST_GIVEN,
    FEWEST_JUDGED,
    LabelledText,
    Swap,
    check_left_apart,
    check_told_apart,
)

GIVEN: dict[str, Any] = {
    "training": ambiguous(),
    "test": balanced(),
    "attribute_texts": attribute_texts(),
}


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_label_is_refused(name: str, label: int) -> None:
    """Saying that label always would look perfect there."""
    with pytest.raises(TooFewItemsError, match=f"{name} split has no text of {'WQ'[label]}") as refused:
        RemoveSpuriousFeatures(**{**GIVEN, name: labelled([(label, 0, 6), (label, 1, 6)], 7)})
    assert refused.value.context["field"] == name


def test_two_labels_need_two_tokens() -> None:
    """The same token for both never decides."""
    with pytest.raises(InvalidRequestError, match="stands for another label") as refused:
        TokenHead(tokens=(LabelToken(label="Q", token=" the"), LabelToken(label="W", token=" the")))
    assert refused.value.context["field"] == "decision.tokens.tokens[1].token"


@pytest.mark.parametrize("layers", [(5,), (0, 5), (1, 0, 2)])
def test_a_layer_above_the_head_is_refused(layers: tuple[int, ...]) -> None:
    """Alone or beside others: nothing that was asked for is left out without a word."""
    above = max(layers)
    said = f"layer {above} lies above the head, which reads after layer 1"
    with pytest.raises(LayerOutOfRangeError, match=said) as refused:
        RemoveSpuriousFeatures(**GIVEN, layers=layers, decision=ProbeHead(layer=1))
    assert refused.value.context["field"] == f"layers[{layers.index(above)}]"


def test_layers_up_to_the_head_are_taken() -> None:
    """A head behind the last layer reads all of them."""
    for layers, site in (((0, 1), 1), ((5,), None), (None, 0)):
        found = RemoveSpuriousFeatures(**GIVEN, layers=layers, decision=ProbeHead(layer=site))
        assert found.layers == layers


def _in_environments(texts: tuple[LabelledText, ...], count: int) -> tuple[LabelledText, ...]:
    """Spread the texts of either label over so many environments."""
    return tuple(replace(one, environment=str(place % count)) for place, one in enumerate(texts))


def _twinned(count: int) -> tuple[LabelledText, ...]:
    """So many twins among the ambiguous texts."""
    texts = ambiguous(twins=True)
    return tuple(one if place < count else replace(one, twin=None) for place, one in enumerate(texts))


def _crossed(count: int) -> tuple[LabelledText, ...]:
    """Enough texts of one other group, and so many of the other one."""
    return (*ambiguous(), *labelled([(0, 1, FEWEST_JUDGED), (1, 0, count)], 9))


def test_what_is_too_little_to_tell_attribute_and_label_apart() -> None:
    """One environment, environments of few texts, one twin or crossed text less than a judge needs."""
    alone = {"test": (), "attribute_texts": ()}
    for training, found in (
        (ambiguous(), "there are 0"),
        (_in_environments(ambiguous(), 1), "there are 1"),
        (_in_environments(ambiguous(FEWEST_GIVEN * 2 - 1), 2), r"10 texts of .*\(there are 0\), a fifth"),
        (_twinned(1), r"10 twins in training \(there are 1\)"),
        ((*ambiguous(), *labelled([(0, 1, 1)], 9)), "in too few texts .Q/X: 40, Q/Z: 1, W/X: 0, W/Z: 40. to"),
        (_crossed(FEWEST_JUDGED - 1), "Q/Z: 8, W/X: 7, .* at least 8 of every group"),
        (_twinned(FEWEST_GIVEN - 1), r"10 twins in training \(there are 9\).*a fifth being held out"),
    ):
        with pytest.raises(AttributeConfoundedError, match=found) as refused:
            RemoveSpuriousFeatures(**{**GIVEN, **alone, "training": training})
        assert refused.value.context["field"] == "training.attribute"


def test_what_is_enough_to_tell_them_apart() -> None:
    """Two environments with texts enough, as many twins as a judge needs, or texts of the other groups."""
    check_told_apart(_in_environments(ambiguous(FEWEST_GIVEN * 2), 2))
    check_told_apart(_twinned(FEWEST_GIVEN))
    check_told_apart(_crossed(FEWEST_JUDGED))
    few = FEWEST_JUDGED
    RemoveSpuriousFeatures(training=ambiguous(), validation=balanced(few, seed=9), test=balanced())


def test_twins_and_environments_count_where_features_are_judged() -> None:
    """In training: those of a validation split judge nothing, but with one nothing is held out either."""
    validation = ambiguous(12, seed=9)
    check_told_apart(_twinned(FEWEST_JUDGED), validation)
    check_told_apart(_in_environments(ambiguous(FEWEST_JUDGED * 2), 2), validation)
    with pytest.raises(AttributeConfoundedError, match=r"8 twins in training \(there are 0\)"):
        check_told_apart(ambiguous(), ambiguous(12, seed=9, twins=True))
    check_left_apart(_twinned(FEWEST_JUDGED), ambiguous(12, seed=9))
    with pytest.raises(AttributeConfoundedError, match=r"8 twins .*there are 7\).*once a fifth is held out"):
        check_left_apart(_twinned(FEWEST_JUDGED - 1), ambiguous(12, seed=9, twins=True))


IGNORED: dict[str, dict[str, Any]] = {
    "steps": {"steps": 5},
    "neutral_examples": {"neutral_examples": True, "refit": False},
    "attribute_name": {"attribute_name": "gender", "swaps": (Swap(first="x", second="z"),)},
}


@pytest.mark.parametrize("field", IGNORED)
def test_an_option_that_would_do_nothing_is_refused(field: str) -> None:
    """By its name, with what to do."""
    with pytest.raises(InvalidRequestError, match=r"leave (them|one of the two) out") as refused:
        RemoveSpuriousFeatures(**GIVEN, **IGNORED[field])
    assert refused.value.context["field"] == field


def test_steps_are_of_integrated_gradients() -> None:
    """Told or not, there they are in use; and none of them are not."""
    for steps, used in ((None, 5), (7, 7)):
        found = RemoveSpuriousFeatures(**GIVEN, estimator=Estimator.INTEGRATED_GRADIENTS, steps=steps)
        assert found.gradient_steps == used
    with pytest.raises(InvalidRequestError, match="1 to 100"):
        RemoveSpuriousFeatures(**GIVEN, estimator=Estimator.INTEGRATED_GRADIENTS, steps=0)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "case": str.lower,
    "a blank behind it": lambda name: f"{name} ",
    "a space without width": lambda name: f"{name}\u200b",
    "a wide letter": lambda name: chr(ord(name) + 0xFEE0),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_two_spellings_of_a_label_or_an_attribute_are_refused(how: str) -> None:
    """Half of a group would be another one, or the decision one between a word and itself."""
    write = SPELLINGS[how]
    training = tuple(
        replace(text, label=write("W")) if text.label == "W" and place % 2 else text
        for place, text in enumerate(GIVEN["training"])
    )
    with pytest.raises(InvalidRequestError, match=r"the labels .* differ in case, blanks or char") as refused:
        RemoveSpuriousFeatures(**{**GIVEN, "training": training})
    assert refused.value.context["field"] == "training"
    values = {"X": "X", "Z": write("X")}
    examples = tuple(replace(text, attribute=values[text.attribute]) for text in GIVEN["attribute_texts"])
    untold = tuple(replace(text, attribute=None) for text in GIVEN["training"])
    with pytest.raises(InvalidRequestError, match=r"the values of the attribute .* would count as two"):
        RemoveSpuriousFeatures(training=untold, attribute_texts=examples)


def test_a_label_that_training_lacks_is_told_with_those_it_has() -> None:
    """A test file may have been written by somebody else."""
    test = tuple(replace(text, label={"Q": "q", "W": "W"}[text.label]) for text in GIVEN["test"])
    with pytest.raises(InvalidRequestError, match=r"label 'q'; .* has none of it, but 'Q' and 'W'"):
        RemoveSpuriousFeatures(**{**GIVEN, "test": test})
