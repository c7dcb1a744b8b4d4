"""The end-to-end phase: 1/2 (D + alpha KL) through the whole model with all layers spliced.

D is how far the residual stream has drifted: behind every layer from the first spliced one on, the squared
difference between the spliced and the plain run over the plain run's variance, summed over layers (the
downstream errors of Braun et al. 2024, arXiv:2405.12241). A layer is so trained to make good for the errors
below it. KL is from the plain model's next-token distribution, in nats per token over positions >= 1.
alpha = D / KL, detached, so that both terms weigh the same whatever their size (Karvonen 2025,
arXiv:2503.17272). Support stays BatchTopK, so L0 does not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.fitting import FitPoint
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.joint import JointTrainee
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import (
    SplicedPass,
    batchwise,
    keep,
    plain_logits,
    unexplained,
)
from trephine.engine.hosted import HostedModel
from trephine.engine.sites import touching

LOGIT_BYTES = 256 << 20
"""A step is cut so that one of its logit tensors takes no more than that."""


class EndToEndTrainee(JointTrainee):
    """Dictionaries that learn from what the spliced model says; batches are contexts `(rows, n_pos)`."""

    def __init__(
        self,
        hosted: HostedModel,
        dictionaries: Sequence[Dictionary],
        *,
        k: int,
        rate: Rate,
        dead_after_tokens: int,
    ) -> None:
        """Train these dictionaries in place; the model itself has no gradients."""
        super().__init__(dictionaries, k=k, rate=rate, dead_after_tokens=dead_after_tokens)
        self._hosted, self._k = hosted, k
        first = min(dictionary.place.layer for dictionary in dictionaries)
        self._streams = [
            Site(kind=SiteKind.RESID_POST, layer=layer) for layer in range(first, hosted.info.n_layers)
        ]

    def step(self, batch: Tensor) -> None:  # type: ignore[override]
        """Run plain and spliced, in pieces that fit into memory, and learn from both losses."""
        rows = max(1, LOGIT_BYTES // (4 * self._hosted.info.d_vocab * batch.shape[1]))
        for part in batch.to(self._hosted.model.device).split(rows):
            self._learn(part, share=len(part) / len(batch))
        self.update()

    def _learn(self, ids: Tensor, share: float) -> None:
        plain, streams = self._plain(ids)
        spliced = SplicedPass(
            dictionaries=self.dictionaries, support=batchwise(self._k), watched=self._streams
        )
        logits = spliced.run(self._hosted, ids)[:, 1:].float()
        kl = kl_from(plain, logits).mean()
        apart = drift(spliced.kept, streams)
        auxiliary = self.auxiliary(spliced.made, spliced.targets)
        alpha = (apart / kl.clamp_min(1e-8)).detach()
        (share * (0.5 * (apart + alpha * kl) + auxiliary)).backward()
        self.note(spliced.made, unexplained(spliced.made, spliced.targets))
        self.means.add("kl", kl)

    @torch.no_grad()
    def _plain(self, ids: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """Return the plain model's log-probabilities `(rows, n_pos - 1, d_vocab)`, and its streams."""
        streams: dict[Site, Tensor] = {}
        with touching(
            self._hosted.architecture, {site: partial(keep, streams, site) for site in self._streams}
        ):
            logits = plain_logits(self._hosted, ids)[:, 1:].float()
        return functional.log_softmax(logits, -1), streams

    def points(self, phase: str, tokens: int) -> list[FitPoint]:
        """Return one point over all layers, with its KL."""
        means = self.means.take()
        if not means:
            return []
        count = len(self.dictionaries)
        dead = [float(firing.dead.float().mean()) for firing in self.firing]
        return [
            FitPoint(
                phase=phase,
                layer=-1,
                tokens=tokens,
                fvu=sum(means[f"fvu/{i}"] for i in range(count)) / count,
                l0=sum(means[f"l0/{i}"] for i in range(count)) / count,
                dead_share=sum(dead) / count,
                kl=means["kl"],
            )
        ]


def kl_from(plain: Tensor, logits: Tensor) -> Tensor:
    """Return KL(plain || spliced) per position `(rows, n_pos)` from log-probabilities and logits."""
    return (plain.exp() * (plain - functional.log_softmax(logits, -1))).sum(-1)


def drift(spliced: Mapping[Site, Tensor], plain: Mapping[Site, Tensor]) -> Tensor:
    """Return squared difference over the plain run's total variance, summed over sites."""
    parts = []
    for site, target in plain.items():
        wide = target.float().flatten(0, 1)
        variance = wide.var(0, correction=0).sum().clamp_min(1e-12)
        parts.append((spliced[site].float().flatten(0, 1) - wide).square().sum(-1).mean() / variance)
    return torch.stack(parts).sum()
