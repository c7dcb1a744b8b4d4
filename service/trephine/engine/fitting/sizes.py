"""How large a fit is, by arithmetic: which layers, in which groups, in how much memory and disk."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from trephine.domain.errors import InvalidRequestError, OverBudgetError, UnsupportedOptionError
from trephine.domain.fitting import FitRecipe
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import require_layer, require_site, site_width

FLOAT = 4
CHUNK_BYTES = 1 << 30
"""Activations of a chunk take no more than that, as long as it holds a batch."""
MAX_SAMPLED_TOKENS = 500_000
"""The model writes no more text than that; beyond it the samples are trained on several times."""
SAMPLED_ROWS = 64
TRAINED = 4
"""Copies of every weight: itself, its gradient, Adam's two moments."""
ALIVE = 6
"""Tensors `(batch, d_sae)` that are alive in a step, about."""
_SAE_SITES = (
    SiteKind.RESID_PRE,
    SiteKind.RESID_MID,
    SiteKind.RESID_POST,
    SiteKind.ATTN_Z,
    SiteKind.ATTN_OUT,
    SiteKind.MLP_IN,
    SiteKind.MLP_OUT,
)
_SHARE = 0.5
"""Of the free memory, which a group of layers may take."""


def fitted_layers(hosted: HostedModel, recipe: FitRecipe) -> tuple[int, ...]:
    """Return the layers of a recipe, ascending, once the recipe is known to fit the model.

    Raises:
        LayerOutOfRangeError: If the model lacks a layer.
        InvalidRequestError: If site or contexts do not go with the kind or the model.
        UnsupportedOptionError: If a cross-layer transcoder leaves layers out, or the model lacks the site.
    """
    everything = tuple(range(hosted.info.n_layers))
    layers = (
        tuple(sorted({require_layer(hosted.architecture, layer) for layer in recipe.layers})) or everything
    )
    if not 8 <= recipe.context_tokens <= hosted.info.context_length:
        raise InvalidRequestError(
            f"context_tokens must be from 8 to {hosted.info.context_length}, the model's context",
            field="recipe.context_tokens",
        )
    if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER and layers != everything:
        raise UnsupportedOptionError(
            "a cross-layer transcoder is fitted to all layers; leave recipe.layers empty",
            field="recipe.layers",
        )
    allowed = _SAE_SITES if recipe.kind is LayerKind.SAE else (SiteKind.MLP_IN,)
    if recipe.site not in allowed:
        raise InvalidRequestError(
            f"a {recipe.kind.value} cannot read {recipe.site.value}; it can read "
            f"{', '.join(site.value for site in allowed)}",
            field="recipe.site",
        )
    for layer in layers:
        require_site(hosted.architecture, Site(kind=recipe.site, layer=layer))
    return layers


def weights_of(hosted: HostedModel, recipe: FitRecipe, layer: int, last: int) -> int:
    """Count the trained numbers of one layer."""
    d_in = site_width(hosted.architecture, Site(kind=recipe.site, layer=layer))
    d_out = d_in if recipe.kind is LayerKind.SAE else hosted.info.d_model
    outputs = last - layer + 1 if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER else 1
    skip = d_in * d_out if recipe.kind is LayerKind.SKIP_TRANSCODER else 0
    return recipe.d_sae * (d_in + 2 + d_out * outputs) + d_out + skip


def layer_bytes(hosted: HostedModel, recipe: FitRecipe, layer: int, last: int) -> int:
    """Return what one layer takes while it is trained."""
    batch = ALIVE * recipe.batch_tokens * recipe.d_sae
    return FLOAT * (TRAINED * weights_of(hosted, recipe, layer, last) + batch)


def groups(hosted: HostedModel, recipe: FitRecipe, layers: Sequence[int]) -> list[list[int]]:
    """Split layers into groups that are trained in one pass over the text, as memory allows.

    Raises:
        OverBudgetError: If a layer alone, or what must be trained together, does not fit.
    """
    room = int(_SHARE * free_bytes(hosted))
    sizes = {layer: layer_bytes(hosted, recipe, layer, max(layers)) for layer in layers}
    together = recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER or recipe.end_to_end.tokens > 0
    needed = sum(sizes.values()) if together else max(sizes.values())
    if needed > room:
        raise OverBudgetError(
            f"fitting needs about {needed >> 20} MiB at once and {room >> 20} MiB may be used; choose a "
            "smaller d_sae, fewer layers, smaller batches, or no end-to-end phase",
            needed_bytes=needed,
            budget_bytes=room,
        )
    found: list[list[int]] = []
    for layer in layers:
        if found and (together or sum(sizes[i] for i in found[-1]) + sizes[layer] <= room):
            found[-1].append(layer)
        else:
            found.append([layer])
    return found


def free_bytes(hosted: HostedModel) -> int:
    """Return the free memory of the model's device."""
    if hosted.model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(hosted.model.device)[0])
    return int(psutil.virtual_memory().available)
