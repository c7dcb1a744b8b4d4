"""What a group of dictionaries reconstructs, site by site: from stored activations, or inside a forward pass.

Per-layer dictionaries write one site each, cross-layer ones write their own layer and every later one; a
site's reconstruction is the sum over all that write there. Position 0 is an attention sink: no dictionary
is trained there, and in a spliced pass it keeps its true activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trephine.domain.sites import Site
from trephine.engine.fitting.dictionary import Dictionary, batch_topk, jump_relu, smallest
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import Touch, touching

Support = Callable[[Dictionary, Tensor], Tensor]
"""Turns pre-activations into activations."""


def calibrated(dictionary: Dictionary, pre: Tensor) -> Tensor:
    """Support by the dictionary's threshold, as it is saved."""
    return jump_relu(pre, dictionary.threshold)


def batchwise(k: float) -> Support:
    """Support by BatchTopK, as it is trained."""
    return lambda dictionary, pre: batch_topk(pre.flatten(0, -2), k).view_as(pre)


def sites_of(dictionaries: Sequence[Dictionary]) -> tuple[Site, ...]:
    """List every site that is read or reconstructed."""
    places = [dictionary.place for dictionary in dictionaries]
    return tuple(dict.fromkeys(site for p in places for site in (p.site_in, *p.sites_out)))


@dataclass(slots=True, kw_only=True)
class Reconstruction:
    """Sums up what dictionaries write as their inputs become known, in the order of the layers."""

    dictionaries: Sequence[Dictionary]
    support: Support
    pre: dict[int, Tensor] = field(default_factory=dict)
    """By index of the dictionary, `(..., d_sae)`."""
    activations: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[Site, Tensor] = field(default_factory=dict)
    """Sum so far, `(..., d_out)`."""

    def read(self, index: int, x: Tensor) -> None:
        """Encode the input of one dictionary and add what it writes everywhere."""
        dictionary = self.dictionaries[index]
        self.pre[index] = pre = dictionary.pre(x)
        self.activations[index] = active = self.support(dictionary, pre)
        for number, site in enumerate(dictionary.place.sites_out):
            written = dictionary.write(active, number)
            if number == 0:
                written = written + dictionary.base(x)
            self.outputs[site] = self.outputs[site] + written if site in self.outputs else written

    def carry(self, dictionary: Dictionary, activations: Tensor, layer: int) -> None:
        """Add what a dictionary below writes above a layer, if it is a cross-layer one."""
        for number, site in enumerate(dictionary.place.sites_out):
            if site.layer > layer:
                written = dictionary.write(activations, number)
                self.outputs[site] = self.outputs[site] + written if site in self.outputs else written


def reconstruct(
    dictionaries: Sequence[Dictionary], activations: Mapping[Site, Tensor], support: Support
) -> Reconstruction:
    """Reconstruct from the model's own activations `(rows, width)`, each dictionary by itself."""
    made = Reconstruction(dictionaries=dictionaries, support=support)
    for index, dictionary in enumerate(dictionaries):
        made.read(index, activations[dictionary.place.site_in])
    return made


@dataclass(slots=True, kw_only=True)
class SplicedPass:
    """A forward pass in which reconstructions take the place of what they reconstruct."""

    dictionaries: Sequence[Dictionary]
    support: Support
    made: Reconstruction = field(init=False)
    targets: dict[Site, Tensor] = field(default_factory=dict)
    """What each replaced site would have held on top of the spliced layers below; without position 0."""

    def __post_init__(self) -> None:
        self.made = Reconstruction(dictionaries=self.dictionaries, support=self.support)

    def run(self, hosted: HostedModel, ids: Tensor, *, last_only: bool = False) -> Tensor:
        """Run contexts `(rows, n_pos)` of equal length; return logits `(rows, n_pos, d_vocab)`."""
        with touching(hosted.architecture, self._touches()):
            return plain_logits(hosted, ids, last_only=last_only)

    def above(self, layer: int, rows: int) -> SplicedPass:
        """Return a pass for what lies above a layer, on the first rows, after this one has run.

        Thresholds are this pass's, so that both passes choose features alike; what dictionaries below write
        above the layer is what they have written here.
        """
        floors = {id(d): smallest(self.made.activations[i]) for i, d in enumerate(self.dictionaries)}
        upper = [dictionary for dictionary in self.dictionaries if dictionary.place.layer > layer]
        run = SplicedPass(dictionaries=upper, support=lambda d, pre: jump_relu(pre, floors[id(d)]))
        for index, dictionary in enumerate(self.dictionaries):
            if dictionary.place.layer <= layer:
                run.made.carry(dictionary, self.made.activations[index][:rows], layer)
        return run

    def _touches(self) -> dict[Site, Touch]:
        steps: dict[Site, list[Touch]] = {}
        for index, dictionary in enumerate(self.dictionaries):
            steps.setdefault(dictionary.place.site_in, []).append(partial(self._read, index))
        for dictionary in self.dictionaries:
            site = dictionary.place.sites_out[0]
            steps.setdefault(site, []).append(partial(self._replace, site))
        return {site: partial(_each, touches) for site, touches in steps.items()}

    def _read(self, index: int, x: Tensor) -> None:
        dtype = self.dictionaries[index].W_enc.dtype
        self.made.read(index, x[:, 1:].to(dtype, copy=True))

    def _replace(self, site: Site, x: Tensor) -> None:
        output = self.made.outputs[site]
        self.targets[site] = x[:, 1:].detach().to(output.dtype, copy=True)
        first = x[:, :1].detach().clone()  # depends on nothing that is spliced: the pass is causal
        if not x._is_view():
            x.detach_()  # what computed it is replaced, so nothing flows back that way
        x.copy_(torch.cat([first, output.to(x.dtype)], dim=1))


def _each(touches: Sequence[Touch], x: Tensor) -> None:
    for touch in touches:
        touch(x)


def plain_logits(hosted: HostedModel, ids: Tensor, *, last_only: bool = False) -> Tensor:
    """Run contexts `(rows, n_pos)` without padding; autograd is as the caller has it.

    Args:
        hosted: The model.
        ids: Token ids of equal length.
        last_only: Compute the last position's logits alone, where only activations are wanted.
    """
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    keep: dict[str, Any] = {"logits_to_keep": 1} if last_only else {}
    output = hosted.model(
        input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False, **keep
    )
    logits: Tensor = output.logits
    return logits


def unexplained(made: Reconstruction, targets: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Return squared error over total variance, per site: the training loss, near FVU."""
    variances = {
        site: variance
        for dictionary in made.dictionaries
        for site, variance in zip(dictionary.place.sites_out, dictionary.place.variances, strict=True)
    }
    return {
        site: (made.outputs[site] - target).square().sum(-1).mean() / variances[site]
        for site, target in targets.items()
        if site in made.outputs
    }
