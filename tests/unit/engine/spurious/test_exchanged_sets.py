"""A set that is unloaded, or exchanged for another one of its name, while a removal runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import (
    Override,
    RemovalBudget,
    RemoveSpuriousFeatures,
    SpuriousRemoval,
)
from trephine.engine.models.session import Session
from trephine.engine.spurious.removal import remove_spurious_features

NAME = "exchanged"
GONE = tuple(
    Override(feature=FeatureRef(replacement=NAME, layer=layer, index=index), remove=True, reason="so it goes")
    for layer in (0, 1)
    for index in range(8)
)
COMMAND = RemoveSpuriousFeatures(
    training=ambiguous(24),
    test=balanced(8),
    attribute_texts=attribute_texts(10),
    decision=ProbeHead(layer=1, pooling=Pooling.MEAN),
    replacement=NAME,
    budget=RemovalBudget(candidates=80, exact=0, counts=(1, 5), effect_texts=32, random_sets=1),
    overrides=GONE,
    resamples=10,
)


def _run(meanwhile: Callable[[Session], None], after: int | None) -> tuple[SpuriousRemoval, int]:
    """Remove with a set; something happens after so many quanta. Return how many there were, too."""
    session = Session(hosted=tiny_hosted("llama"))
    resident_set(session.require_model(), "relu", name=NAME)
    steps = remove_spurious_features(session, COMMAND)
    for number in count():
        if number == after:
            meanwhile(session)
        try:
            next(steps)
        except StopIteration as stop:
            return replace(stop.value, seconds=0.0), number
    raise AssertionError("count() has no end")


def test_the_report_is_of_the_set_that_it_began_with():
    """Figures of half of the one and half of the other would be of no set that there is."""
    undisturbed, quanta = _run(lambda _: None, None)
    assert undisturbed.set_hash == NAME, "the set's content, which its builder calls by its name"
    for after in (quanta // 3, 2 * quanta // 3):
        exchanged, _ = _run(
            lambda session: resident_set(session.require_model(), "topk", name=NAME) and None, after
        )
        assert exchanged == undisturbed
    unloaded, _ = _run(lambda session: session.require_model().replacements.clear(), quanta // 2)
    assert unloaded == undisturbed
