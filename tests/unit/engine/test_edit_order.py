"""What no conflict forbids gives the same in either order; what does not is a conflict."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, reside, resident_set, sae
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.edit_conflicts import ConflictKind, EditInUse, find_conflicts
from trephine.domain.edit_order import LayerPlaces, Places
from trephine.domain.edits import Edit
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    Condition,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Operation,
    ProjectOut,
    Resample,
    Scale,
    SetTo,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.rows import RowInput, run_rows

IDS = [5, 17, 44, 9, 9, 301]
DONOR = " Paris is the capital of France and a store"
UP = [1.0, 1.0] + [0.0] * 30
DOWN = [1.0, -1.0] + [0.0] * 30
"""Orthogonal to `UP`."""
ASKEW = [1.0, 0.2, 0.5] + [0.0] * 29
RESID, MLP = Site(kind=SiteKind.RESID_POST, layer=1), Site(kind=SiteKind.MLP_OUT, layer=1)


def feature(name: str, index: int, operation: Operation, **rest: Any) -> Intervention:
    """Change a feature of layer 1 of a set."""
    ref = FeatureRef(replacement=name, layer=1, index=index)
    return Intervention(target=FeatureTarget(feature=ref), operation=operation, **rest)


def asking(name: str, index: int, at_least: float = -0.5) -> Condition:
    """Ask about a feature of layer 1."""
    return Condition(feature=FeatureRef(replacement=name, layer=1, index=index), at_least=at_least)


POOL = (
    neuron(1, 7, Ablate()),
    neuron(1, 8, SetTo(value=2.0)),
    neuron(1, 7, ProjectOut()),
    neuron(1, 8, ProjectOut()),
    neuron(1, 9, Add(amount=3.0), condition=asking("neurons", 10)),
    direction(SiteKind.NEURONS, 1, [1.0] * 64, Add(amount=1.0)),
    direction(SiteKind.NEURONS, 1, [1.0] * 64, Ablate()),
    *(direction(SiteKind.RESID_POST, 1, v, Add(amount=2.0)) for v in (UP, DOWN)),
    direction(SiteKind.RESID_PRE, 2, UP, SetTo(value=1.5)),
    direction(SiteKind.RESID_POST, 1, [-x for x in UP], SetTo(value=-1.5)),
    direction(SiteKind.RESID_POST, 1, DOWN, Ablate()),
    direction(SiteKind.RESID_POST, 1, ASKEW, Clamp(low=-0.1, high=0.1)),
    direction(SiteKind.RESID_POST, 1, [-x for x in ASKEW], Clamp(low=-0.1, high=0.1)),
    direction(SiteKind.RESID_POST, 1, DOWN, AddNormScaled(fraction=0.5)),
    direction(SiteKind.RESID_POST, 1, UP, Add(amount=2.0), condition=asking("stream", 4)),
    direction(SiteKind.MLP_IN, 1, ASKEW, Scale(factor=3.0)),
    direction(SiteKind.MLP_OUT, 1, UP, Add(amount=1.0)),
    direction(SiteKind.MLP_OUT, 1, DOWN, ProjectOut()),
    whole(SiteKind.MLP_OUT, 1, Scale(factor=0.5)),
    whole(SiteKind.RESID_POST, 1, Resample(donor=DONOR)),
    whole(SiteKind.ATTN_OUT, 1, MeanAblate(text=DONOR)),
    *(feature("stream", index, Add(amount=4.0)) for index in (3, 4)),
    *(feature("other", index, SetTo(value=4.0)) for index in (3, 4)),
    *(feature(NAME, index, Add(amount=4.0)) for index in (3, 4)),
    feature(NAME, 5, Ablate(), condition=asking(NAME, 4)),
    feature(NAME, 6, SetTo(value=3.0), error_term=ErrorTerm.DROP),
    feature(NAME, 6, ProjectOut()),
    feature("crossed", 5, Add(amount=4.0), condition=asking(NAME, 5)),
)
"""`stream` and `other` encode the residual stream that they write, `set` and `crossed` are transcoders."""


TOLERANCE = 2e-4
"""Of logits of order one, float32 rounding on the way of two orders apart; what order does is larger."""


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A tiny Llama with four sets."""
    found = tiny_hosted("llama")
    found.replacements["crossed"] = found.replacements.pop(resident_set(found, "clt"))
    resident_set(found, "jumprelu")
    for name in ("stream", "other"):
        reside(found, [sae(found, RESID)], name)
    return found


def places(hosted: HostedModel) -> Places:
    """Where features of its sets are read and written."""
    return {
        (name, layer.layer): LayerPlaces(source=layer.site_in, outputs=layer.sites_out)
        for name, loaded in hosted.replacements.items()
        for layer in loaded.admitted.layers
    }


def in_use(name: str, *interventions: Intervention) -> EditInUse:
    """An edit at strength 1."""
    edit = Edit(
        name=name, version=1, content_hash="c", interventions=interventions, reason="", author="",
        model="tiny", weight_hash="w", evidence=(), create_time="",
    )  # fmt: skip
    return EditInUse(edit=edit, strength=1.0, interventions=interventions)


def test_edits_without_conflict_act_alike_in_either_order(hosted):
    """Every two of the pool: no conflict means equal logits, and a conflict of order shows in most of them.

    Not in all: what the domain cannot tell, as whether an encoder notices a change, counts as a conflict.
    """
    rows, found = [], []
    for one, other in combinations(POOL, 2):
        conflicts = find_conflicts([in_use("a", one), in_use("b", other)], places(hosted))
        if conflicts and conflicts[0].kind is not ConflictKind.ORDER:
            continue
        found.append((bool(conflicts), one, other))
        rows += [RowInput(IDS, (one, other)), RowInput(IDS, (other, one))]
    with torch.inference_mode():
        logits = run_rows(hosted, rows).logits
    differences = [(a - b).abs().max().item() for a, b in zip(logits[::2], logits[1::2], strict=True)]
    for (conflict, one, other), difference in zip(found, differences, strict=True):
        assert conflict or difference < TOLERANCE, (one, other, difference)
    ordered = [difference for (conflict, *_), difference in zip(found, differences, strict=True) if conflict]
    assert 60 < len(ordered) < len(found) / 2
    assert sum(difference > TOLERANCE for difference in ordered) > 2 * len(ordered) / 3
