"""What a dataset circuit is found on: contexts that count once, by what the model reads, and one set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.dataset_examples import request
from tests.resident_sets import resident_set
from trephine.domain.circuits import GraphSet
from trephine.domain.errors import InvalidRequestError
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session


@pytest.mark.parametrize("side", ["training", "held_out"])
def test_a_context_counts_once(side):
    """What is repeated is no evidence: refused by place. With another answer it is another context."""
    good = request()
    split = getattr(good, side)
    with pytest.raises(InvalidRequestError, match=f"{side} context 6 is context 1 again") as caught:
        replace(good, **{side: (*split, split[1])})
    assert caught.value.context["field"] == f"{side}[6]"
    other = replace(split[1], wrong=(" of",))
    assert getattr(replace(good, **{side: (*split, other)}), side)[6] == other


@pytest.mark.parametrize(
    ("change", "said", "field"),
    [
        (
            lambda good: {
                "training": (*good.training, replace(good.training[1], clean=f"{good.training[1].clean} "))
            },
            "training context 6 becomes the same tokens as context 1",
            "training[6]",
        ),
        (
            lambda good: {
                "held_out": (
                    *good.held_out,
                    replace(good.held_out[0], clean=good.training[2].corrupted + " "),
                )
            },
            "tokens of a text of training context",
            "held_out[6]",
        ),
        (
            lambda good: {
                "held_out": (
                    *good.held_out,
                    replace(good.held_out[0], corrupted=good.held_out[0].clean + " "),
                )
            },
            "and its twin are the same tokens",
            "held_out[6].corrupted",
        ),
    ],
)
def test_texts_that_become_the_same_tokens_are_one_text(change, said, field):
    """However they are written: what the model reads decides what is repeated, and what leaks."""
    plain = tiny_hosted("llama")
    # One that reads no space at the end of a text.
    hosted = replace(plain, tokenizer=lambda text, **how: plain.tokenizer(text.rstrip(), **how))
    good = request()
    command = replace(good, **change(good))
    with pytest.raises(InvalidRequestError, match=said) as caught:
        finish(discover_dataset_circuit(Session(hosted=hosted), command))
    assert caught.value.context["field"] == field


def test_a_set_that_is_exchanged_meanwhile_changes_nothing():
    """The work goes on with the set that it began with, and says which that was, and in which layers."""
    calm, hosted = tiny_hosted("llama"), tiny_hosted("llama")
    command = request(8, replacement=resident_set(calm, "relu"))
    resident_set(hosted, "relu")
    expected = finish(discover_dataset_circuit(Session(hosted=calm), command))
    work = discover_dataset_circuit(Session(hosted=hosted), command)
    for _ in range(8):
        next(work)
    resident_set(hosted, "jumprelu")
    assert finish(work).circuits == expected.circuits
    assert expected.sets == (GraphSet(name=command.replacement, content_hash="set"),)
    assert expected.layers == (0, 1, 2)
    heads = finish(discover_dataset_circuit(Session(hosted=calm), request(8, layers=(2, 1))))
    assert (heads.sets, heads.layers) == ((), (1, 2))
