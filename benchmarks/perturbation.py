"""Perturbation faithfulness: take a feature away in the spliced and in the true model, compare what follows.

The feature's contribution is subtracted from the residual stream behind its layer at one position, in both
models; changes of the stream behind later layers are compared at that position and all later ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.reconstruction import SplicedPass, calibrated, plain_logits
from trephine.engine.hosted import HostedModel
from trephine.engine.sites import touching


@torch.no_grad()
def perturbation_nmse(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, *, per_layer: int, seed: int
) -> dict[int, float]:
    """Return squared error over squared true change by depth (layers between), summed over perturbations.

    Args:
        hosted: The model.
        dictionaries: Per-layer transcoders, calibrated.
        rows: Contexts `(n, n_pos)`.
        per_layer: Perturbations of each layer.
        seed: Of their choice.
    """
    errors: dict[int, float] = defaultdict(float)
    sizes: dict[int, float] = defaultdict(float)
    generator = torch.Generator().manual_seed(seed)
    for dictionary in dictionaries[:-1]:
        chosen = rows[torch.randint(len(rows), (per_layer,), generator=generator)]
        layer = dictionary.place.layer
        change = _changes(hosted, dictionary, chosen, generator)
        later = [Site(kind=SiteKind.RESID_POST, layer=j) for j in range(layer + 1, hosted.info.n_layers)]
        true = _difference(hosted, (), chosen, layer, change, later)
        spliced = _difference(hosted, dictionaries, chosen, layer, change, later)
        for site in later:
            depth = site.layer - layer
            errors[depth] += float((spliced[site] - true[site]).square().sum())
            sizes[depth] += float(true[site].square().sum())
    return {depth: errors[depth] / sizes[depth] for depth in sorted(sizes)}


def _changes(hosted: HostedModel, dictionary: Dictionary, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Choose an active feature in each row at random; return minus what it writes, `(n, n_pos, d)`."""
    site = dictionary.place.site_in
    x = read_sites(hosted, rows, [site])[site].view(len(rows), -1, dictionary.W_enc.shape[0])
    active = calibrated(dictionary, dictionary.pre(x))
    change = torch.zeros(len(rows), rows.shape[1], dictionary.W_dec.shape[2])
    for row in range(len(rows)):
        firing = active[row].nonzero()
        position, feature = firing[int(torch.randint(len(firing), (1,), generator=generator))].tolist()
        alone = torch.zeros(dictionary.d_sae)
        alone[feature] = active[row, position, feature]
        change[row, position + 1] = -dictionary.write(alone, 0)
    return change


def _difference(
    hosted: HostedModel,
    dictionaries: Sequence[Dictionary],
    rows: Tensor,
    layer: int,
    change: Tensor,
    later: Sequence[Site],
) -> dict[Site, Tensor]:
    plain = _streams(hosted, dictionaries, rows, layer, torch.zeros_like(change), later)
    perturbed = _streams(hosted, dictionaries, rows, layer, change, later)
    return {site: perturbed[site] - plain[site] for site in later}


def _streams(
    hosted: HostedModel,
    dictionaries: Sequence[Dictionary],
    rows: Tensor,
    layer: int,
    change: Tensor,
    later: Sequence[Site],
) -> Mapping[Site, Tensor]:
    kept: dict[Site, Tensor] = {}
    touches = {site: partial(_keep, kept, site) for site in later}
    touches[Site(kind=SiteKind.RESID_POST, layer=layer)] = partial(_add, change)
    with touching(hosted.architecture, touches):
        if dictionaries:
            SplicedPass(dictionaries=dictionaries, support=calibrated).run(hosted, rows)
        else:
            plain_logits(hosted, rows)
    return kept


def _keep(kept: dict[Site, Tensor], site: Site, x: Tensor) -> None:
    kept[site] = x.clone()


def _add(change: Tensor, x: Tensor) -> None:
    x += change
