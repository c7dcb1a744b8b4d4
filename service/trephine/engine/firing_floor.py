"""The tokens on which edited features fire: what the edit moves there, beside their own noise floor.

Over all tokens a rare feature's edit is lost among the tokens that it does not touch, and a copy of the
parent would pass for the edit. So grafts are held against the tokens on which they act, and what the edit
moves there is measured beforehand: where that is less than rounding, nothing can be told from it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.interventions import Intervention
from trephine.engine.divergence import kl_divergence
from trephine.engine.firing import masks_by_feature
from trephine.engine.hosted import HostedModel
from trephine.engine.noise import NoiseFloor, computing_in
from trephine.engine.retain import RetainText, plain_logits, window_batches, windows_logits
from trephine.engine.weights.operations import FeatureOp

CLEAR = 3.0
"""An edit that moves its firing tokens by fewer floors than this is not told from rounding: a copy of the
parent would come within twice the bound of 1.5 floors."""

FEWEST = 8
"""Rounding in a narrow type is a few large steps: over fewer tokens than this its mean says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringFloor:
    """Nats per token, over the measured tokens on which an edited feature fires."""

    tokens: int
    """How many; 0: nothing was measured, and the rest is 0."""
    floor: float
    """KL(parent || parent under other arithmetic), both floors together."""
    edit: float
    """KL(intervened || original)."""
    stored: float | None = None
    """KL(parent || parent in the type of its files), or the intervened parent's where that is more; None: the
    model computes in that type. An edit may leave a model that rounding moves further than the unedited one,
    and no export comes closer to it than it comes to itself."""
    silent: tuple[str, ...] = ()
    """Edited features that fire on none of the measured tokens, as SET:LAYER:INDEX."""

    @property
    def clear(self) -> bool:
        """Whether what the edit moves stands above rounding."""
        return self.edit > 0.0 and self.edit >= CLEAR * self.floor

    @property
    def judged_as_stored(self) -> bool:
        """Whether the folder, run in the type of its files, can be held against `stored`."""
        return self.stored is not None and self.tokens >= FEWEST

    @property
    def unjudged(self) -> tuple[str, ...]:
        """What is measured of the folder as it is stored, and not judged; empty if all of it is."""
        if self.stored is None or self.judged_as_stored:
            return ()
        return (
            "How the folder runs in the type of its files is measured and not judged where the edit acts: "
            f"its features fire on {self.tokens} of the measured tokens, and {FEWEST} are the fewest whose "
            "rounding has a mean; give a text in which they fire more often (--text)",
        )

    @property
    def doubt(self) -> str:
        """What cannot be certified, and what to do; empty if all can be."""
        if self.clear and self.silent:
            return (
                f"nothing is certified about {', '.join(self.silent)}, active on no measured token; "
                "give a text in which every edited feature fires (--text)"
            )
        if self.clear:
            return ""
        if not self.tokens:
            return (
                "no edited feature fires on the measured text: nothing is certified about "
                "the edit itself; give a text in which they fire (--text)"
            )
        return (
            "the edit moves less than rounding: nothing is certified about the edit itself. On "
            f"the {self.tokens} measured tokens on which its features fire it moves {self.edit:.2e} nats, "
            f"and a change of arithmetic alone {self.floor:.2e}; load the model in float32, or give a text "
            "in which they are strong (--text)"
        )


def firing_floor(
    hosted: HostedModel,
    retain: RetainText,
    features: Sequence[FeatureOp],
    interventions: tuple[Intervention, ...],
    floor: NoiseFloor,
    stored: torch.dtype | None = None,
) -> Generator[None, None, FiringFloor]:
    """Measure them on the parent, unedited and intervened in, one batch a quantum.

    Args:
        hosted: The model.
        retain: What the export is measured on, and the floor was.
        features: The edited features of sets; at least one.
        interventions: The whole edit.
        floor: The parent's, with its values per token.
        stored: Type of the parent's files, which `floor.stored` is of.
    """
    alone = yield from masks_by_feature(hosted, retain.windows, features, interventions)
    fires = {ref: torch.cat(each) for ref, each in alone.items()}
    masks = torch.stack(list(fires.values())).any(0)
    tokens = int(masks.sum())
    if not tokens:
        return FiringFloor(tokens=0, floor=0.0, edit=0.0, stored=None if floor.stored is None else 0.0)
    plain = yield from plain_logits(hosted, retain)
    moved: list[Tensor] = []
    rounded: list[Tensor] = []
    for part in window_batches(retain.windows):
        after = windows_logits(hosted, [retain.windows[number] for number in part], interventions)
        moved += [kl_divergence(p, plain[number]) for number, p in zip(part, after, strict=True)]
        yield
        if floor.stored is not None and stored is not None:
            rounded += _served(hosted, retain, part, interventions, after, stored)
            yield
    spreads = [one.values for one in (floor.attention, floor.dtype) if one.values.numel()]
    return FiringFloor(
        tokens=tokens,
        floor=sum(float(values[masks].mean()) for values in spreads),
        edit=float(torch.cat(moved)[masks].mean()),
        stored=_larger(floor, rounded, masks),
        silent=tuple(f"{ref.replacement}:{ref.layer}:{ref.index}" for ref in fires if not fires[ref].any()),
    )


def _served(
    hosted: HostedModel,
    retain: RetainText,
    part: Sequence[int],
    interventions: tuple[Intervention, ...],
    after: Sequence[Tensor],
    stored: torch.dtype,
) -> list[Tensor]:
    """Return KL(intervened || intervened, computing in the type of the files) per window of a batch."""
    with computing_in(stored, hosted.model):
        narrow = windows_logits(hosted, [retain.windows[number] for number in part], interventions)
    return [kl_divergence(p, q.float()) for p, q in zip(after, narrow, strict=True)]


def _larger(floor: NoiseFloor, rounded: Sequence[Tensor], masks: Tensor) -> float | None:
    """Return what the files' type costs the parent, unedited or intervened in, where features fire."""
    if floor.stored is None:
        return None
    own = float(torch.cat(list(rounded))[masks].mean()) if rounded else 0.0
    return max(float(floor.stored.values[masks].mean()), own)
