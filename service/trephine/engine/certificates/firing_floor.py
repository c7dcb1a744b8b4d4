"""The tokens on which edited features fire: what the edit moves there, beside their own noise floor.

Over all tokens a rare feature's edit is lost among the tokens that it does not touch, and a copy of the
parent would pass for the edit. So grafts are held against the tokens on which they act, and what the edit
moves there is measured beforehand: where that is less than rounding, nothing can be told from it. Of several
features each is held against its own tokens, and against what it does alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trephine.domain.interventions import Intervention
from trephine.engine.certificates.firing import Acting, masks_by_feature, name_of
from trephine.engine.certificates.leaving_out import Places, among_others, left_out, places_of
from trephine.engine.certificates.noise import NoiseFloor, computing_in
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import RetainText, plain_logits, window_batches, windows_logits

CLEAR = 3.0
"""An edit that moves its firing tokens by fewer floors than this is not told from rounding: a copy of the
parent would come within twice the bound of 1.5 floors."""

_NEGLIGIBLE = 1e-3
"""Share of what a feature does below which rounding decides nothing, be it over a single token."""

FEWEST = 8
"""Rounding in a narrow type is a few large steps: over fewer tokens than this its mean says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFloor:
    """One of several features, on the measured tokens on which it fires itself: at least one."""

    name: str
    """SET:LAYER:INDEX, or SITE:LAYER:interventions[N] of a direction."""
    tokens: int
    floor: float
    """Of these tokens, as in `FiringFloor`."""
    edit: float
    """What the whole edit moves there."""
    alone: float
    """What this feature does of the edit: KL(intervened || intervened without it), over some of them."""
    floor_alone: float
    """Of the same tokens as `alone`."""
    stored: float | None = None
    """Of its tokens, as in `FiringFloor`."""

    @property
    def judged_as_stored(self) -> bool:
        """Whether it fires often enough for its tokens' rounding to have a mean."""
        return self.stored is not None and self.tokens >= FEWEST

    @property
    def told(self) -> bool:
        """Whether what it does stands above rounding, over as many tokens as rounding needs for a mean."""
        clear = self.alone > 0.0 and self.alone >= CLEAR * self.floor_alone
        return clear and (self.tokens >= FEWEST or self.floor_alone <= _NEGLIGIBLE * self.alone)

    @property
    def clear(self) -> bool:
        """Whether what the edit moves on its tokens does."""
        return self.edit > 0.0 and self.edit >= CLEAR * self.floor


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
    apart: tuple[FeatureFloor, ...] = ()
    """Each of those that fire, if the edit does more than one thing."""

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
        if self.clear:
            return "; ".join(one for one in (self._silence, self._drowned) if one)
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

    @property
    def _silence(self) -> str:
        if not self.silent:
            return ""
        return (
            f"nothing is certified about {', '.join(self.silent)}, active on no measured token; "
            "give a text in which every edited feature fires (--text)"
        )

    @property
    def _drowned(self) -> str:
        """Name the features of which the text shows no more than of rounding, be the edit ever so strong."""
        weak = [
            f"{one.name} ({one.alone:.1e} nats on {one.tokens} tokens, and a change of arithmetic alone "
            f"{one.floor_alone:.1e})"
            for one in self.apart
            if not one.told
        ]
        if not weak:
            return ""
        return (
            f"nothing is certified about {', '.join(weak)}: alone it does no more there than rounding may; "
            "load the model in float32, give a text in which it is strong (--text), or leave it out"
        )


def firing_floor(
    hosted: HostedModel,
    retain: RetainText,
    features: Sequence[Acting],
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
    fires = {name: torch.cat(each) for name, each in alone.items()}
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
    noise = noise_per_token(floor, len(masks))
    edit = torch.cat(moved)
    apart = []
    for op in among_others(features, interventions):
        if bool(fires[name_of(op)].any()):
            places = places_of(alone[name_of(op)])
            effect = (yield from left_out(hosted, retain, op, places, interventions)).effect
            own = _larger(floor, rounded, fires[name_of(op)])
            apart.append(_apart(op, fires[name_of(op)], edit, noise, effect, tokens_at(places, retain), own))
    return FiringFloor(
        tokens=tokens,
        floor=float(noise[masks].mean()),
        edit=float(edit[masks].mean()),
        stored=_larger(floor, rounded, masks),
        silent=tuple(name for name, mask in fires.items() if not mask.any()),
        apart=tuple(apart),
    )


def noise_per_token(floor: NoiseFloor, tokens: int) -> Tensor:
    """Sum both floors per token, `(n_tokens,)`."""
    spreads = [one.values for one in (floor.attention, floor.dtype) if one.values.numel()]
    return sum(spreads, torch.zeros(tokens, dtype=torch.float64))


def tokens_at(places: Places, retain: RetainText) -> Tensor:
    """Return places as numbers of tokens of the whole text."""
    starts = [0, *accumulate(map(len, retain.windows))]
    return torch.cat([starts[number] + positions for number, positions in places.items()])


def _apart(
    op: Acting,
    mask: Tensor,
    edit: Tensor,
    noise: Tensor,
    effect: Tensor,
    chosen: Tensor,
    stored: float | None,
) -> FeatureFloor:
    return FeatureFloor(
        name=name_of(op),
        tokens=int(mask.sum()),
        floor=float(noise[mask].mean()),
        edit=float(edit[mask].mean()),
        alone=float(effect.mean()),
        floor_alone=float(noise[chosen].mean()),
        stored=stored,
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
