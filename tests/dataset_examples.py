"""Contexts over the words of the tiny tokenizer, and a request over them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from trephine.domain.dataset_circuits import DiscoverDatasetCircuit, Discretion, Example, Subsampling

_PEOPLE = (" Mary", " John", " cat", " dog", " Paris", " France")
_VERBS = (" went", " gave", " is", " of")


def example(first: str, second: str, verb: str = " went", *, paired: bool = True) -> Example:
    """A context of four tokens whose twin swaps the people."""
    return Example(
        clean=f"When{first}{second}{verb}",
        corrupted=f"When{second}{first}{verb}" if paired else None,
        answers=(first,),
        wrong=(second,),
    )


def examples(count: int, *, paired: bool = True) -> tuple[Example, ...]:
    """Different contexts; one whose text is another's twin comes right behind it."""
    found = [
        example(*people, verb, paired=paired)
        for verb in _VERBS
        for a, b in combinations(_PEOPLE, 2)
        for people in ((a, b), (b, a))
    ]
    return tuple(found[:count])


def request(count: int = 12, *, paired: bool = True, **options: Any) -> DiscoverDatasetCircuit:
    """Half of the contexts to find a circuit on, half held out; everything small."""
    split = examples(count, paired=paired)
    options.setdefault(
        "size", Discretion(nodes=8, edge_nodes=4, edge_examples=4, random_circuits=3, bootstrap=20)
    )
    options.setdefault("stability", Subsampling(draws=4))
    return DiscoverDatasetCircuit(training=split[: count // 2], held_out=split[count // 2 :], **options)
