"""Copies of a text are no more evidence than the text: left out, told of, and never counted twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, paired
from trephine.domain.errors import AttributeConfoundedError, SplitLeakageError
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_repeats import distinct, first_rows
from trephine.domain.spurious_texts import LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.examples import Example, read_data
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.repeats import once, once_edited, once_there

ROW = LabelledText(text="abQd", label="Q", attribute="X", twin="abQZ", environment="e")
GIVEN: dict[str, Any] = {
    "training": ambiguous(twins=True),
    "test": balanced(),
    "decision": ProbeHead(layer=0, pooling=Pooling.MEAN),
    "budget": RemovalBudget(candidates=64, exact=0, counts=(1, 20), effect_texts=64, random_sets=0),
    "overrides": (Override(feature=FeatureRef(layer=0, index=3), remove=True, reason="something goes"),),
    "resamples": 50,
}


@pytest.fixture(scope="module")
def session():
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


def test_rows_that_say_the_same_are_one() -> None:
    """Whatever space stands at the ends; a row that says anything else is another one."""
    others = [
        replace(ROW, **change)
        for change in (
            {"text": "abQe"},
            {"label": "W"},
            {"attribute": None},
            {"twin": None},
            {"environment": "f"},
        )
    ]
    rows = [ROW, replace(ROW, text=" abQd\n", twin="abQZ "), *others, ROW, *others]
    assert distinct(rows) == (ROW, *others)


def test_pairs_repeat_as_a_whole() -> None:
    """Under another name and in another order, too; a text that is compared anew stays, with its partner."""
    good, bad, worse = (LabelledText(text=text, label=label) for text, label in ("aW", "bQ", "cQ"))

    def pair(name: str, *texts: LabelledText) -> list[LabelledText]:
        return [replace(one, pair=name) for one in texts]

    first, again, anew = pair("1", good, bad), pair("2", bad, good), pair("3", good, worse)
    assert distinct([*first, *again, *anew]) == (*first, *anew)
    crossed = [first[0], again[0], again[1], first[1]]
    assert first_rows(crossed) == [0, 3], "whole pairs are kept"
    assert distinct([good, *first, good]) == (good, *first)


def test_each_split_is_read_once_and_says_so(session) -> None:
    """Ten copies of the test split, three training rows and an example again; places stay those given."""
    training, test, examples = GIVEN["training"], GIVEN["test"], attribute_texts()
    asked = {"training": (*training, *training[:3]), "attribute_texts": (*examples, examples[0])}
    command = RemoveSpuriousFeatures(**{**GIVEN, **asked, "test": test * 10})
    data = read_data(session.hosted, command)
    assert (len(data.training) + len(data.held_out), len(data.test), len(data.attribute)) == (80, 48, 60)
    assert [said.split(" repeat")[0] for said in data.repeated] == [
        "3 of 83 training texts",
        "432 of 480 test texts",
        "1 of 61 examples of the attribute",
    ]
    assert read_data(session.hosted, RemoveSpuriousFeatures(**GIVEN)).repeated == ()


def test_copies_make_no_outcome_surer(session) -> None:
    """With the test split three times over figures, intervals and counts are those of once; it is told."""
    reports = [
        finish(remove_spurious_features(session, RemoveSpuriousFeatures(**{**GIVEN, "test": test})))
        for test in (GIVEN["test"], GIVEN["test"] * 3)
    ]
    assert reports[0].outcome == reports[1].outcome
    assert reports[0].arms == reports[1].arms
    assert [one.texts[2] for one in reports] == [48, 48]
    assert "96 of 144 test texts repeat another row" in " ".join(reports[1].caveats)


def test_copies_do_not_make_up_for_twins_that_are_missing() -> None:
    """Three twins four times over are three."""
    training = tuple(
        one if place < 3 else replace(one, twin=None) for place, one in enumerate(GIVEN["training"])
    )
    with pytest.raises(AttributeConfoundedError, match="there are 3"):
        RemoveSpuriousFeatures(training=(*training, *training[:3] * 3))


def test_copies_that_contradict_each_other_are_refused() -> None:
    """A text under two labels is no copy: one of the two is wrong."""
    turned = replace(GIVEN["test"][0], label="W")
    with pytest.raises(SplitLeakageError, match="with another label"):
        RemoveSpuriousFeatures(**{**GIVEN, "test": (*GIVEN["test"], turned)})


def test_pairs_of_a_file_that_holds_a_row_twice(session) -> None:
    """Its pairs have names of their own; of each two that are the same one is read."""
    given = paired(ambiguous())
    again = tuple(replace(one, pair=f"{one.pair} again") for one in given[:2] + given[40:42])
    asked = RemoveSpuriousFeatures(
        training=(*given, *again),
        attribute_texts=attribute_texts(),
        decision=ProbeHead(layer=1, pooling=Pooling.MEAN, pairs=True),
    )
    data = read_data(session.hosted, asked)
    assert len(data.training) + len(data.held_out) == 80
    assert data.repeated[0].startswith("4 of 84 training texts")


def test_a_text_in_several_rows_is_one_decision() -> None:
    """In several pairs, told as the twin of its twin, or in two environments: there it counts in each."""

    def row(ids: tuple[int, ...], twin: tuple[int, ...] | None = None, environment: str | None = None):
        return Example(text="", ids=ids, label=0, attribute=0, twin=twin, environment=environment)

    texts = [
        row((1, 2), (1, 3), "e"),
        row((1, 3), (1, 2), "e"),
        row((1, 2), (1, 4), "f"),
        row((1, 2), None, "e"),
    ]
    assert once([one.ids for one in texts]).tolist() == [True, True, False, False]
    assert once_edited(texts).tolist() == [True, False, True, True]
    assert once_there(texts).tolist() == [True, True, True, False]
    assert once([]).dtype is torch.bool
