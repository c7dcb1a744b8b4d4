"""What each part of an edit beside its features does alone, and the parent's own noise floor there.

As of features that fire apart (`firing_floor`), of neurons, heads and directions in an edit of which
something is grafted or fitted: only what does more than rounding may be called carried.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from trephine.domain.interventions import Intervention
from trephine.engine.certificates.firing import masks_by_feature
from trephine.engine.certificates.firing_floor import FeatureFloor, noise_per_token, tokens_at
from trephine.engine.certificates.leaving_out import among_others, left_out, places_of
from trephine.engine.certificates.noise import NoiseFloor
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.retain import RetainText
from trephine.engine.weights.parts import Part


def part_floors(
    hosted: HostedModel,
    retain: RetainText,
    parts: Sequence[Part],
    interventions: tuple[Intervention, ...],
    floor: NoiseFloor,
) -> Generator[None, None, tuple[FeatureFloor, ...]]:
    """Measure them on the parent, intervened in with and without each, one batch or window a quantum.

    Args:
        hosted: The model.
        retain: What the export is measured on, and the floor was.
        parts: Of the edit; one that is all of it is measured as the edit.
        interventions: The whole edit.
        floor: The parent's, with its values per token.
    """
    several = among_others(parts, interventions)
    masks = yield from masks_by_feature(hosted, retain.windows, several, interventions)
    found = []
    for part in several:
        name = part.name
        places = places_of(masks[name])
        effect = (yield from left_out(hosted, retain, part, places, interventions)).effect
        if not len(effect):
            found.append(FeatureFloor(name=name, tokens=0, floor=0.0, edit=0.0, alone=0.0, floor_alone=0.0))
            continue
        noise = noise_per_token(floor, len(torch.cat(masks[name])))[tokens_at(places, retain)]
        at, alone = float(noise.mean()), float(effect.mean())
        found.append(
            FeatureFloor(name=name, tokens=len(effect), floor=at, edit=alone, alone=alone, floor_alone=at)
        )
    return tuple(found)


def parts_doubt(floors: Sequence[FeatureFloor]) -> str:
    """Name the parts of which the text shows no more than of rounding, and what to do; empty if none."""
    weak = [
        f"{one.name} ({one.alone:.1e} nats on {one.tokens} tokens, and a change of arithmetic alone "
        f"{one.floor_alone:.1e})"
        for one in floors
        if not one.told
    ]
    if not weak:
        return ""
    return (
        f"nothing is certified about {', '.join(weak)}: alone it does no more there than rounding may; load "
        "the model in float32, give a text on which it does more (--text), make it stronger, or leave it out"
    )
