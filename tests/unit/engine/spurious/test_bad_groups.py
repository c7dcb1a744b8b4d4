"""What only tokens and twins can tell of a request: groups that are empty, labels that share a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled
from trephine.domain.errors import EmptyGroupError, InvalidRequestError
from trephine.domain.spurious_heads import LabelToken, TokenHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.spurious.examples import UNKNOWN, read_data
from trephine.engine.spurious.heads import token_head

THREE_GROUPS = labelled([(0, 0, 9), (0, 1, 9), (1, 1, 9)], 3)


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


def _read(hosted, **changed: Any):
    given = {"training": ambiguous(), "attribute_texts": attribute_texts(), **changed}
    return read_data(hosted, RemoveSpuriousFeatures(**given))


def _untold(texts, count):
    """The same without the attribute of the first few."""
    return tuple(replace(one, attribute=None) if place < count else one for place, one in enumerate(texts))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_one_unknown_attribute_does_not_hide_an_empty_group(hosted, name):
    """The texts whose attribute is known are in groups all the same."""
    with pytest.raises(EmptyGroupError, match="no text of W/X") as refused:
        _read(hosted, **{name: _untold(THREE_GROUPS, 1)})
    assert refused.value.context["field"] == name


def test_a_split_without_attributes_or_with_all_groups_is_read(hosted):
    """Some unknown beside four groups, none known at all, or an ambiguous validation split."""
    data = _read(hosted, test=_untold(balanced(4), 2), validation=_untold(ambiguous(8, seed=9), 3))
    assert sum(one.attribute == UNKNOWN for one in data.test) == 2
    assert sum(one.attribute == UNKNOWN for one in data.held_out) == 3
    data = _read(hosted, test=_untold(THREE_GROUPS, len(THREE_GROUPS)))
    assert {one.attribute for one in data.test} == {UNKNOWN}


def test_one_token_written_in_two_ways_is_one(hosted):
    """By its words and by its number: the decision would always be a tie."""
    written = f"#{hosted.resolve_target(' the')}"
    head = TokenHead(tokens=(LabelToken(label="Q", token=" the"), LabelToken(label="W", token=written)))
    with pytest.raises(InvalidRequestError, match="a token of its own") as refused:
        token_head(hosted, head)
    assert refused.value.context["field"] == "decision.tokens.tokens[1].token"
