"""Perturbation faithfulness: take a feature away in the true model and in spliced ones, compare what follows.

The same perturbations are put to every set: the same contexts, positions, directions and sizes. They are
contributions of active features of one reference set, subtracted from the residual stream behind their
layer at one position. Compared is how the stream behind every later layer changes, at that position and all
later ones. Whatever differs between sets is then the sets' doing, and not the choice of perturbations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import resumed
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.reconstruction import SplicedPass, calibrated, plain_logits
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

CONTEXTS = 32
"""Run at once."""

Streams = Mapping[Site, Tensor]
"""The residual stream `(contexts, n_pos, d_model)` behind layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """One for every context, behind one layer."""

    layer: int
    positions: Tensor
    """`(contexts,)`, from 1 on: position 0 is an attention sink."""
    changes: Tensor
    """`(contexts, d_model)`, added to the stream at that position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What perturbations do, and how far a spliced model is from it."""

    errors: Tensor
    """`(contexts, perturbations, depths)`: squared error of the change; depth 0 is one layer on."""
    sizes: Tensor
    """The same for the true change's square. Both are 0 where there is no such layer."""

    @property
    def count(self) -> int:
        """Perturbations, over all contexts."""
        return self.sizes.shape[0] * self.sizes.shape[1]

    def by_depth(self) -> list[float]:
        """Return squared error over squared change at each depth, both summed over all perturbations."""
        ratios: Tensor = self.errors.sum((0, 1)) / self.sizes.sum((0, 1))
        return ratios.tolist()


@torch.no_grad()
def perturbations(
    hosted: HostedModel, reference: Sequence[Dictionary], rows: Tensor, *, per_context: int, seed: int
) -> list[Perturbation]:
    """Choose active features of all layers but the last at random, so many in every context and layer.

    Args:
        hosted: The model.
        reference: Per-layer transcoders, calibrated, whose features are taken away.
        rows: Contexts `(n, n_pos)`.
        per_context: Perturbations of each layer in each context.
        seed: Of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for dictionary in reference[:-1]:
        x = read_sites(hosted, rows, [dictionary.place.site_in])[dictionary.place.site_in]
        active = calibrated(dictionary, dictionary.pre(x)).view(len(rows), -1, dictionary.d_sae)
        for _ in range(per_context):
            chosen.append(_chosen(dictionary, active, generator))
    return chosen


def _chosen(dictionary: Dictionary, active: Tensor, generator: torch.Generator) -> Perturbation:
    """Take one feature in each context, all that are active anywhere in it being equally likely."""
    positions, alone = [], torch.zeros(len(active), dictionary.d_sae)
    for row, activations in enumerate(active):
        firing = activations.nonzero()
        position, feature = firing[int(torch.randint(len(firing), (1,), generator=generator))].tolist()
        positions.append(position + 1)
        alone[row, feature] = activations[position, feature]
    return Perturbation(
        layer=dictionary.place.layer,
        positions=torch.tensor(positions),
        changes=-dictionary.write(alone, 0),
    )


@torch.no_grad()
def answered(
    hosted: HostedModel,
    sets: Mapping[str, Sequence[Dictionary]],
    rows: Tensor,
    asked: Sequence[Perturbation],
) -> dict[str, Answers]:
    """Put perturbations to the true model and to each set of per-layer transcoders, spliced whole.

    Args:
        hosted: The model.
        sets: By name.
        rows: Contexts `(n, n_pos)` that the perturbations were chosen in.
        asked: The perturbations.
    """
    depths = hosted.info.n_layers - 1
    sizes = torch.zeros(len(rows), len(asked), depths, dtype=torch.float64)
    errors = {name: torch.zeros_like(sizes) for name in sets}
    for some in torch.arange(len(rows)).split(CONTEXTS):
        true = _changes(hosted, (), rows[some], [_at(each, some) for each in asked])
        spliced = {
            name: _changes(hosted, dictionaries, rows[some], [_at(each, some) for each in asked])
            for name, dictionaries in sets.items()
        }
        for number in range(len(asked)):
            change = next(true)
            _add_squares(sizes, some, number, change)
            for name, changes in spliced.items():
                answer = next(changes)
                wrong = {site: answer[site] - change[site] for site in change}
                _add_squares(errors[name], some, number, wrong)
    return {name: Answers(errors=wrong, sizes=sizes) for name, wrong in errors.items()}


def _at(perturbation: Perturbation, contexts: Tensor) -> Perturbation:
    return Perturbation(
        layer=perturbation.layer,
        positions=perturbation.positions[contexts],
        changes=perturbation.changes[contexts],
    )


def _add_squares(sums: Tensor, contexts: Tensor, number: int, change: Streams) -> None:
    """Note the squares of a change behind each later layer; `change` begins one layer on."""
    for depth, value in enumerate(change[site] for site in sorted(change, key=lambda site: site.layer)):
        sums[contexts, number, depth] = value.square().sum((1, 2)).double()


def _changes(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, asked: Sequence[Perturbation]
) -> Iterator[Streams]:
    """Yield what each perturbation changes, one after the other."""
    plain = _streams(hosted, dictionaries, rows, range(hosted.info.n_layers))
    for perturbation in asked:
        perturbed = _perturbed(hosted, dictionaries, rows, plain, perturbation)
        yield {site: value - plain[site] for site, value in perturbed.items()}


def _perturbed(
    hosted: HostedModel,
    dictionaries: Sequence[Dictionary],
    rows: Tensor,
    plain: Streams,
    perturbation: Perturbation,
) -> Streams:
    """Go on from the perturbed stream: what lies below is what it was, and does not run."""
    layer = perturbation.layer
    stream = plain[Site(kind=SiteKind.RESID_POST, layer=layer)].clone()
    stream[torch.arange(len(stream)), perturbation.positions] += perturbation.changes
    above = [dictionary for dictionary in dictionaries if dictionary.place.layer > layer]
    with resumed(hosted.architecture, layer + 1, stream):
        return _streams(hosted, above, rows, range(layer + 1, hosted.info.n_layers))


def _streams(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, layers: Sequence[int]
) -> Streams:
    """Run contexts, spliced if there are dictionaries, and keep the stream behind layers."""
    kept: dict[Site, Tensor] = {}
    sites = [Site(kind=SiteKind.RESID_POST, layer=layer) for layer in layers]
    with touching(hosted.architecture, {site: partial(_keep, kept, site) for site in sites}):
        if dictionaries:
            SplicedPass(dictionaries=dictionaries, support=calibrated).run(hosted, rows, last_only=True)
        else:
            plain_logits(hosted, rows, last_only=True)
    return kept


def _keep(kept: dict[Site, Tensor], site: Site, x: Tensor) -> None:
    kept[site] = x.clone()
