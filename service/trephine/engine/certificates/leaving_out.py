"""What each edited feature does of an edit: the intervened runtime beside itself with this one left alone.

One feature of ten that a checkpoint does not carry is a tenth of what is measured of all of them, or less. So
each is also measured alone, on the tokens on which it fires: how far the edit without it lies from the edit,
and how much of the way from the one to the other the checkpoint has gone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.interventions import Intervention
from trephine.engine.certificates.firing import Acting, masks_by_feature, name_of, numbers_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.staging import full_disk_refused
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import RetainText, windows_logits

MOST_TOKENS = 64
"""Of one feature: their answers are kept, and all logits of a token make a megabyte in large vocabularies."""
_MOST_WINDOWS = 2

Op = TypeVar("Op", bound=Acting)
Places = Mapping[int, Tensor]
"""Window -> positions, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One feature, on some of the tokens on which it fires."""

    places: Places
    logits: Mapping[int, Tensor]
    """Window -> what the runtime answers at these positions without this feature's operations, float32
    `(n, d_vocab)`."""
    effect: Tensor
    """KL(intervened || intervened without it), float64 `(n,)`, windows one after the other."""


def among_others(features: Sequence[Op], interventions: Sequence[Intervention]) -> list[Op]:
    """List features beside which the edit does something else; of one alone, the edit is all that it does."""
    return [op for op in features if 0 < len(numbers_of(op)) < len(interventions)]


def places_of(masks: Sequence[Tensor]) -> Places:
    """Choose tokens on which a feature fires, of the windows with most; position 0 if there are no others.

    Args:
        masks: Per window, bool `(n_pos,)`.
    """
    later = [mask & (torch.arange(len(mask)) > 0) for mask in masks]
    masks = later if any(bool(mask.any()) for mask in later) else masks
    order = sorted(range(len(masks)), key=lambda number: -int(masks[number].sum()))[:_MOST_WINDOWS]
    found, room = {}, MOST_TOKENS
    for number in order:
        positions = masks[number].nonzero()[:, 0][:room]
        room -= len(positions)
        if len(positions):
            found[number] = positions
    return found


def left_out(
    hosted: HostedModel,
    retain: RetainText,
    op: Acting,
    places: Places,
    interventions: tuple[Intervention, ...],
) -> Generator[None, None, LeftOut]:
    """Run the edit with and without one feature's operations, one window a quantum."""
    rest = tuple(one for number, one in enumerate(interventions) if number not in numbers_of(op))
    logits, effects = {}, [torch.zeros(0, dtype=torch.float64)]
    for number, positions in places.items():
        window = [retain.windows[number]]
        (after,) = windows_logits(hosted, window, interventions)
        (without,) = windows_logits(hosted, window, rest)
        logits[number] = without[positions].contiguous()
        effects.append(kl_divergence(after[positions], logits[number]).double())
        yield
    return LeftOut(places=places, logits=logits, effect=torch.cat(effects))


def write_left_out(
    hosted: HostedModel,
    retain: RetainText,
    features: Sequence[Acting],
    interventions: tuple[Intervention, ...],
    folder: Path,
) -> Generator[Progress | None, None, None]:
    """Write where each of several features fires and what the runtime answers without it.

    `features-NNNN.safetensors` holds of a window `firing`, bool `(n_features, n_pos)`; `without-FFF-NNNN`
    holds `positions` and `logits` of one feature in it.

    Raises:
        DiskFullError: If there is no room.
    """
    several = among_others(features, interventions)
    if not several:
        return
    masks = yield from masks_by_feature(hosted, retain.windows, several, interventions)
    for number in range(len(retain.windows)):
        firing = torch.stack([masks[name_of(op)][number] for op in several])
        with full_disk_refused():
            save_file({"firing": firing}, folder / f"features-{number:04d}.safetensors")
    for place, op in enumerate(several):
        found = yield from left_out(hosted, retain, op, places_of(masks[name_of(op)]), interventions)
        for number, logits in found.logits.items():
            answers = {"positions": found.places[number], "logits": logits}
            with full_disk_refused():
                save_file(answers, folder / f"without-{place:03d}-{number:04d}.safetensors")
        yield Progress(stage="evidence: features", done=place + 1, total=len(several))


def left_out_bytes(
    hosted: HostedModel, features: Sequence[Acting], interventions: Sequence[Intervention]
) -> int:
    """Predict the size of these files."""
    return 4 * MOST_TOKENS * hosted.info.d_vocab * len(among_others(features, interventions))


def names_apart(features: Sequence[Acting], interventions: Sequence[Intervention]) -> list[str]:
    """List the features that are measured apart, in the order of their files."""
    return [name_of(op) for op in among_others(features, interventions)]
