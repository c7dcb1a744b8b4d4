"""A lexicon tells attribute and label apart only if it makes twins enough; one that edits a text does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, labelled
from trephine.domain.errors import AttributeConfoundedError, InvalidRequestError, TooFewItemsError
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_texts import FEWEST_GIVEN, FEWEST_JUDGED, LabelledText, Swap
from trephine.engine.spurious.examples import read_data
from trephine.engine.spurious.swaps import Swapper, lexicon_of

SWAPS = (Swap(first="xw", second="vv"),)


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


def _worded(count: int, *, attribute: bool = True) -> tuple[LabelledText, ...]:
    """Ambiguous texts of which so many hold a word of the lexicon."""
    texts = ambiguous(attribute=attribute)
    return tuple(
        replace(one, text=f"{one.text} xw") if place < count else one for place, one in enumerate(texts)
    )


def _read(hosted, training: tuple[LabelledText, ...], **changed: Any):
    return read_data(hosted, RemoveSpuriousFeatures(training=training, swaps=SWAPS, **changed))


@pytest.mark.parametrize("count", [1, FEWEST_GIVEN - 1])
@pytest.mark.parametrize("crossed", [0, 1])
def test_a_lexicon_of_too_few_twins_does_not_tell_the_two_apart(hosted, count, crossed):
    """As few as would be refused if they were given; a single text of another group changes nothing."""
    texts = (*_worded(count), *labelled([(0, 1, crossed)], 9))
    with pytest.raises(
        AttributeConfoundedError, match=rf"at least 10 twins .* \(there are {count}\)"
    ) as refused:
        _read(hosted, texts)
    assert refused.value.context["field"] == "training.attribute"


def test_twins_enough_tell_them_apart(hosted):
    """And so do examples, whatever the lexicon finds."""
    assert sum(one.twin is not None for one in _read(hosted, _worded(20)).training) >= FEWEST_JUDGED
    found = _read(hosted, _worded(1, attribute=False), attribute_texts=attribute_texts())
    assert sum(one.twin is not None for one in (*found.training, *found.held_out)) == 1


def test_a_lexicon_is_not_swapped_for_a_guess(hosted):
    """Where the attribute is told by nothing else, too few twins leave clusters alone to judge by."""
    with pytest.raises(TooFewItemsError, match=r"in \d of 64 ambiguous texts .* fewer than 8; give") as few:
        _read(hosted, _worded(FEWEST_JUDGED - 1, attribute=False))
    assert few.value.context["field"] == "swaps"
    with pytest.raises(InvalidRequestError, match="no word of the lexicon occurs"):
        _read(hosted, _worded(0))


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("He said he's late, and she\u2019ll wait", "She said she's late, and he\u2019ll wait"),
        ("a men's store of women's wear", "a women's store of men's wear"),
        ("Mr.Day's man", "Ms.Day's woman"),
        ("they won't", None),
    ],
)
def test_a_word_with_an_apostrophe_is_edited_as_the_rest_of_its_text(text, edited):
    """Half an edit is no counterfactual: *She said he's late* is of both values."""
    assert Swapper(lexicon_of("gender", ()))(text) == edited


def test_words_before_a_negation_are_no_words_of_their_own():
    """*Won* is not in *won't*, which a lexicon may name by itself."""
    assert Swapper((Swap(first="won", second="lost"),))("They won't; she won.") == "They won't; she lost."
    assert Swapper((Swap(first="don't", second="do"),))("I don\u2019t.") == "I do."


@pytest.mark.parametrize(
    ("first", "second"),
    [("police officer", "nurse"), ("co-pilot", "steward"), ("Class 5B", "Class 6"), ("IBM", "Google")],
)
def test_entries_of_any_form_are_exchanged_in_both_directions(first, second):
    """As they are spelled; one that was found in one direction alone left twins to the texts of one value."""
    swap = Swapper((Swap(first=first, second=second),))
    assert swap(f"the {first}, then") == f"the {second}, then"
    assert swap(f"the {second}, then") == f"the {first}, then"
    assert swap(f"the {first}s, x{second}") is None, "parts of longer words are others"


def test_capitals_are_those_of_the_text():
    """Where it does not spell the word as the lexicon does."""
    swap = Swapper((Swap(first="police officer", second="nurse"), Swap(first="John", second="Mary")))
    assert swap("A NURSE, Police\nofficer John and mary") == "A POLICE OFFICER, Nurse Mary and john"


@pytest.mark.parametrize("words", [("", "she"), ("he", " "), ("he", "he ")])
def test_a_swap_needs_two_words(words):
    """An empty one would stand everywhere."""
    with pytest.raises(InvalidRequestError, match="exchanges one word for another"):
        Swap(first=words[0], second=words[1])
