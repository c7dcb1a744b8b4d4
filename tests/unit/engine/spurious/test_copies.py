"""Copies of a text in another split leak however they are written, and as the tokenizer reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unicodedata import normalize

import pytest
from tokenizers import normalizers

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.errors import SplitLeakageError
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_repeats import as_written
from trephine.domain.spurious_texts import AttributeText, LabelledText
from trephine.engine.spurious.examples import read_data

TRAINING = tuple(replace(one, text=f"café {one.text}") for one in ambiguous())
COPIES: dict[str, Callable[[str], str]] = {
    "decomposed": lambda text: normalize("NFD", text),
    "doubled inner spaces": lambda text: text.replace(" ", "  "),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "a trailing zero-width space": lambda text: f"{text}\u200b",
    "a soft hyphen inside": lambda text: f"{text[:2]}\u00ad{text[2:]}",
    "full-width letters": lambda text: text.replace("c", "\uff43", 1),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_that_is_written_otherwise_leaks(name: str):
    """Both rows are named, and both spellings shown."""
    copy = replace(TRAINING[7], text=COPIES[name](TRAINING[7].text))
    with pytest.raises(SplitLeakageError, match="test text 48 is training text 7 but for spaces") as found:
        RemoveSpuriousFeatures(training=TRAINING, test=(*balanced(), copy), attribute_texts=attribute_texts())
    assert found.value.context["field"] == "test[48].text"


def test_a_copy_among_the_examples_leaks_and_one_within_a_split_does_not():
    """As with texts that are the same to the letter; another label of such a copy is no contradiction."""
    spaced = f"{TRAINING[7].text}\u200b"
    example = AttributeText(text=spaced, attribute="X")
    with pytest.raises(SplitLeakageError, match="attribute example 60 is training text 7 but for spaces"):
        RemoveSpuriousFeatures(training=TRAINING, attribute_texts=(*attribute_texts(), example))
    again = (*TRAINING, replace(TRAINING[7], text=spaced))
    asked = RemoveSpuriousFeatures(training=again, test=balanced(), attribute_texts=attribute_texts())
    assert len(asked.training) == 81


def test_texts_that_differ_in_what_is_read_are_no_copies():
    """In case, in words and in accents."""
    texts = ("a cafe", "a caf\u00e9", "A caf\u00e9", "acaf\u00e9", "a caf\u00e9.")
    assert len({as_written(text) for text in texts}) == len(texts)
    assert as_written("\u200b a \n\u2003 b\u00ad") == "a b"


def test_copies_are_held_out_together():
    """Of every text one that is written otherwise stands beside it, and none of them is trained on."""
    spaced = [replace(one, text=f"{one.text}\u200b", attribute=None) for one in TRAINING]
    asked = RemoveSpuriousFeatures(training=(*TRAINING, *spaced), attribute_texts=attribute_texts())
    data = read_data(tiny_hosted("llama"), asked)
    fitted, held_out = ({as_written(one.text) for one in texts} for texts in (data.training, data.held_out))
    assert len(data.held_out) == 32, "a fifth of either label"
    assert not fitted & held_out


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_within_a_split_is_no_more_evidence(name: str):
    """Test texts and an example, written otherwise once more: what is read is what it was, and is told."""
    test = tuple(replace(one, text=f"caf\u00e9 {one.text}") for one in balanced())
    examples = tuple(replace(one, text=f"caf\u00e9 {one.text}") for one in attribute_texts())
    asked = RemoveSpuriousFeatures(
        training=TRAINING,
        test=(*test, *(replace(one, text=COPIES[name](one.text)) for one in test)),
        attribute_texts=(*examples, replace(examples[0], text=COPIES[name](examples[0].text))),
    )
    data = read_data(tiny_hosted("llama"), asked)
    assert [one.text for one in data.test] == [one.text for one in test]
    assert [one.text for one in data.attribute] == [one.text for one in examples]
    assert [said.split(" repeat")[0] for said in data.repeated] == [
        "48 of 96 test texts",
        "1 of 61 examples of the attribute",
    ]


def test_texts_that_become_the_same_tokens_leak():
    """To a model whose tokenizer ignores case, case is no difference; to any other it is."""
    hosted = tiny_hosted("llama")
    shouted = LabelledText(text=TRAINING[7].text.upper(), label=TRAINING[7].label, attribute="Z")
    asked = RemoveSpuriousFeatures(
        training=TRAINING, test=(*balanced(), shouted), attribute_texts=attribute_texts()
    )
    assert len(read_data(hosted, asked).test) == 49
    hosted.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(SplitLeakageError, match=r"test\[\d+\].text and training\[\d+\].text become the same"):
        read_data(hosted, asked)
