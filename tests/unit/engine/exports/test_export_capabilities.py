"""What a model is said to be able to export is what plans know."""

from __future__ import annotations

from typing import get_args

from tests.builders import hosted_from, tiny_model
from trephine.domain.exports import Tier
from trephine.domain.models import DescribeCapabilities
from trephine.engine.models.capabilities import describe_capabilities
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session


def test_every_tier_of_a_plan_is_a_capability():
    """Each available, with what it is; a client that asks is not told of an older release."""
    session = Session(hosted=hosted_from(tiny_model("llama")))
    listed = finish(describe_capabilities(session, DescribeCapabilities())).capabilities
    found = {one.name: one for one in listed}
    for tier in set(get_args(Tier)) - {"noop"}:
        assert found[f"export.{tier}"].available
        assert len(found[f"export.{tier}"].note) > 20
    assert not found["export.lora"].available
