"""What is wrong with a question is told by its field, also where the work itself finds it out."""

from __future__ import annotations

import pytest

from tests.builders import tiny_hosted
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.errors import (
    EmptyPromptError,
    NonFiniteValueError,
    PromptTooLongError,
    TargetNotOneTokenError,
    TokenOutOfRangeError,
)
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import DirectionValue, TokenLogits
from trephine.engine.graphs.discover import discover_circuit, validate
from trephine.engine.models.quanta import finish

PROMPT = "When Mary went to the store John gave a drink to"
SITE = Site(kind=SiteKind.RESID_POST, layer=1)
MARY = LogitTarget(token=" Mary")


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"prompt": ""}, EmptyPromptError, "prompt"),
        ({"prompt": PROMPT * 60}, PromptTooLongError, "prompt"),
        ({"target": LogitTarget(token=" Mary John")}, TargetNotOneTokenError, "target.token"),
        ({"target": LogitTarget(token="#99999")}, TokenOutOfRangeError, "target.token"),
        (
            {"target": LogitTarget(token=" Mary", against=" a b")},
            TargetNotOneTokenError,
            "target.against",
        ),
        (
            {"target": TokenLogits(tokens=(" Mary", " a b"))},
            TargetNotOneTokenError,
            "target.tokens[1]",
        ),
        (
            {"target": DirectionValue(site=SITE, vector=(1e39,) * 32)},
            NonFiniteValueError,
            "target.vector",
        ),
    ],
)
def test_the_field_is_named(changes, error, field):
    """Of the prompt, of every token, of a direction that becomes infinite."""
    hosted = tiny_hosted("llama")
    with pytest.raises(error) as caught:
        validate(hosted, DiscoverCircuit(**{"prompt": PROMPT, "target": MARY, **changes}))
    assert caught.value.context["field"] == field


def test_a_value_that_overflows_breaks_no_law():
    """A direction that fits, and a product with the stream that does not: that is no defect of the model."""
    hosted = tiny_hosted("llama")
    target = DirectionValue(site=SITE, vector=(3e38,) * 32)
    command = DiscoverCircuit(prompt=PROMPT, target=target, verify_nodes=0)
    with pytest.raises(NonFiniteValueError, match="scale a direction down"):
        finish(discover_circuit(hosted, command))
