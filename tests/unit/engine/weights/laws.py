"""What an export of each tier is called on each family, and what its plan says: for tests and benchmark."""

from __future__ import annotations

from tests.unit.engine.weights.families import TIERS

NEAR, POST, OTHER, OWN = "nearly constant", "a norm behind the module", "reads resid_post", "reads mlp_out"
BEHIND = "the norm behind the MLP rescales"
EXACT, GRAFT = ("exact", ""), ("graft", "")
LAWS = {
    "llama": {"ridge, dense": ("refused", OWN)},  # a constant is part of it, and there are no biases
    "gpt2": {},
    "qwen2": dict.fromkeys(
        ("constant, MLP", "constant, attention", "graft, ReLU", "graft, JumpReLU", "graft, clamp", "delta"),
        ("fitted", NEAR),
    ),
    "qwen3": dict.fromkeys(
        ("constant, MLP", "graft, ReLU", "graft, JumpReLU", "graft, clamp", "delta"), ("fitted", NEAR)
    ),
    "gemma2": dict.fromkeys(("graft, ReLU", "graft, JumpReLU", "graft, clamp", "delta"), ("fitted", BEHIND))
    | dict.fromkeys(("constant, attention", "direction out of every writer"), ("fitted", POST))
    | {"constant, MLP": ("refused", POST)}  # no weights in front of that norm reach 0.9 of it
    | {"ridge, dense": ("refused", OWN)},
}
"""Where a family has a law of its own: what a folder is called, and what the plan says of it."""
COMMONLY = {tier: GRAFT if tier.startswith("graft") or tier == "delta" else EXACT for tier in TIERS} | {
    "ridge": ("refused", OTHER),
    "ridge, dense": ("fitted", OWN),
    "no-op": ("fails", ""),
}


def law(family: str, tier: str) -> tuple[str, str]:
    """Return what a folder is called, and what the plan says of what it does not carry."""
    return LAWS[family].get(tier, COMMONLY[tier])
