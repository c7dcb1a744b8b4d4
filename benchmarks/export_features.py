"""Which features an export benchmark ablates: drawn by seed from those that matter, over all depths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.replacements import NAME
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Operation
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.divergence import kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked

LEAST_KL = 1e-2
"""Nats on the tokens on which a feature fires, if it is ablated."""
DENSITY = (1e-3, 0.2)
WINDOW = 128
DRAW_WINDOWS = 4
Windows = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Parts of one text: features are chosen and grafts fitted on the first, figures are of the second."""

    fit: Windows
    measured: Windows


def split(hosted: HostedModel, text: str, fit: int, measured: int) -> Texts:
    """Cut a text into windows."""
    tokens: list[int] = list(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    windows = [tuple(tokens[n * WINDOW : (n + 1) * WINDOW]) for n in range(fit + measured)]
    return Texts(fit=windows[:fit], measured=windows[fit:])


# --- which features ------------------------------------------------------------------------------


def draw(hosted: HostedModel, texts: Texts, count: int, seed: int) -> list[FeatureRef]:
    """Draw features that matter, spread over thirds of the layers; each is confirmed by its real ablation.

    A layer's candidates are the quarter of those of fitting density that write most where they fire: the
    others hardly ever reach `LEAST_KL`, and trying them all would take hours.
    """
    n_layers, generator = hosted.info.n_layers, random.Random(seed)
    windows = texts.fit[:DRAW_WINDOWS]
    plain = windows_logits(hosted, windows)
    sites = [Site(kind=SiteKind.MLP_IN, layer=layer) for layer in range(n_layers)]
    inputs = finish(captured(hosted, windows, sites, ()))
    chosen: list[FeatureRef] = []
    for third in range(3):
        wanted = (count + 2 - third) // 3
        layers = [n for n in range(n_layers) if n * 3 // n_layers == third]
        for _ in range(20):
            generator.shuffle(layers)
            for layer in layers[: wanted - sum(f.layer * 3 // n_layers == third for f in chosen)]:
                x = stacked(inputs[sites[layer]])
                found = _candidate(hosted, layer, x, windows, plain, generator, chosen)
                chosen += [] if found is None else [found]
    return sorted(chosen)


def _candidate(
    hosted: HostedModel,
    layer: int,
    inputs: Tensor,
    windows: Windows,
    plain: Sequence[Tensor],
    generator: random.Random,
    taken: Sequence[FeatureRef],
) -> FeatureRef | None:
    """Try up to six features of a layer."""
    with opened(hosted, NAME, [layer]) as layers:
        code = layers[layer].encode(inputs)
        size = code.activations.abs().sum(0) / code.active.sum(0).clamp_min(1) * layers[layer].decoder_norms()
    active = code.active
    density = active.double().mean(0)
    fits = (density >= DENSITY[0]) & (density <= DENSITY[1]) & (active.sum(0) >= 2)
    strong = fits & (size >= size[fits].quantile(0.75)) if bool(fits.any()) else fits
    indices = strong.nonzero()[:, 0].tolist()
    generator.shuffle(indices)
    for index in indices[:6]:
        ref = FeatureRef(replacement=NAME, layer=layer, index=index)
        fires = active[:, index]
        if ref in taken:
            continue
        if all(
            float(_effect(hosted, windows[:n], plain[:n], ref)[fires[: n * WINDOW]].mean()) >= LEAST_KL
            for n in (_enough(fires, len(windows)), len(windows))  # few windows first: most features fail
        ):
            return ref
    return None


def _enough(fires: Tensor, most: int) -> int:
    """Return the least number of windows in which a feature fires."""
    return next((n for n in range(1, most) if bool(fires[: n * WINDOW].any())), most)


def _effect(hosted: HostedModel, windows: Windows, plain: Sequence[Tensor], ref: FeatureRef) -> Tensor:
    """Return KL(original || ablated) per position."""
    changed = windows_logits(hosted, windows, (intervention(ref, Ablate()),))
    return torch.cat([kl_divergence(p, c) for p, c in zip(plain, changed, strict=True)])


def intervention(feature: FeatureRef, operation: Operation) -> Intervention:
    """Change a feature everywhere."""
    return Intervention(target=FeatureTarget(feature=feature), operation=operation)


def firing(hosted: HostedModel, windows: Windows, features: Sequence[FeatureRef]) -> dict[FeatureRef, Tensor]:
    """Return where each feature is active, bool `(n_windows, n_pos)`."""
    sites = {ref: Site(kind=SiteKind.MLP_IN, layer=ref.layer) for ref in features}
    inputs = finish(captured(hosted, windows, sorted(set(sites.values())), ()))
    masks: dict[FeatureRef, Tensor] = {}
    for ref, site in sites.items():
        with opened(hosted, NAME, [ref.layer]) as layers:
            active = layers[ref.layer].encode_features(stacked(inputs[site]), [ref.index])[:, 0] != 0
        masks[ref] = active.reshape(len(windows), -1).cpu()
    return masks


def telling(masks: Sequence[Tensor], most: int) -> list[int]:
    """Choose windows: half of them the first ones of the text, the others where features fire most.

    A feature that fires on one token in a thousand would otherwise be judged by one or two. What is left out
    only costs: every cell of a feature is measured on the same windows, and the table counts its tokens.

    Args:
        masks: Of features that are ablated together, each `(n_windows, n_pos)`.
        most: How many windows; all of them if there are no more.
    """
    counts = torch.stack(list(masks)).any(0).sum(1).tolist()
    plain = list(range(min(most // 2, len(counts))))
    others = sorted(set(range(len(counts))) - set(plain), key=lambda n: (-counts[n], n))
    return sorted(plain + others[: most - len(plain)])
