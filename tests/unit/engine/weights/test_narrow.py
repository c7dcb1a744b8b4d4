"""The bfloat16 law of grafts on every family: 1.5 floors, or 1.5 of what shows that none can have that.

Every family with a ReLU and a JumpReLU; clamps and four features of three layers in each of the ways in which
a module holds a bend: with biases, on a nearly constant direction, behind a norm. `make bench-families`
prints all 30 rows.
"""

from __future__ import annotations

import pytest

from tests.unit.engine.weights.families import FAMILIES
from tests.unit.engine.weights.narrow import KINDS, MOST, WINDOWS, narrow_scene, row

HELD = {
    ("llama", "JumpReLU", False): "runtime",
    ("gpt2", "JumpReLU", False): "runtime",
    ("qwen2", "JumpReLU", False): "runtime",
    ("qwen3", "JumpReLU", False): "reach",
    ("gemma2", "JumpReLU", False): "reach",
    ("gemma2", "ReLU", True): "reach",
}
"""What is not held to the unedited model's floor, as `held to` of `make bench-families` has it: to the
intervened runtime's own, computing in bfloat16, which jumps on the wrong side of a threshold as often; or to
what is left where modules answer as well as any weights let them."""
SEVERAL = ("llama", "qwen2", "gemma2")
"""Families of which clamps, and four features of ReLUs at once, are held as well."""
FEWER = {"gpt2": 80, "qwen2": 80, "gemma2": 80}
"""Windows, where these tell as much of a jump as all that the benchmark takes."""
ROWS = [
    *((family, kind, False) for family in FAMILIES for kind in KINDS if kind != "clamp" or family in SEVERAL),
    *((family, "ReLU", True) for family in SEVERAL),
]


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Each family's parent, made once."""
    made = {}

    def parent(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "parent"
            made[family] = narrow_scene(family, folder, count=FEWER.get(family, WINDOWS))
        return made[family]

    return parent


@pytest.mark.parametrize(
    ("family", "kind", "several"),
    ROWS,
    ids=[f"{family}-{kind}-{'several' if several else 'single'}" for family, kind, several in ROWS],
)
def test_a_bfloat16_graft_is_within_rounding_where_its_features_fire(
    parents, family, kind, several, tmp_path
):
    """Against the narrowest bound that holds it, which a copy of the parent misses."""
    held = HELD.get((family, kind, several), "floor")
    found = row(parents(family), kind, tmp_path / "exported", several=several)
    bound = found.bound(held)
    assert found.tokens > 50
    assert found.edit > 3 * found.floor  # else no share could be told
    assert found.graft <= MOST * bound
    assert (found.held_to == "floor") == (held == "floor")  # what holds the floor is held to it
    assert found.idle > 2 * MOST * bound
    assert found.recovery_same >= 1 - 2 * MOST * bound / found.edit  # beside a runtime that is rounded itself
    if held != "floor":
        assert bound > 1.25 * found.floor  # what stands in the way is no export's doing
    if held == "reach":
        assert found.program.fitted
