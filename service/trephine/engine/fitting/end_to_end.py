"""The end-to-end phase: 1/2 (MSE + alpha KL + beta NMSE) through the whole model with all layers spliced.

MSE is each layer's error over its variance: partly on-policy, against what the true module gives for the
activations of the spliced run, and partly on the plain run's activations, for some of the contexts. Without
that part features drift apart from what they are on plain text: they fire more there and less in the spliced
run. KL is from the plain model's next-token distribution, in nats per token over positions >= 1. NMSE is of
what changes of the stream do to later layers, for some of the contexts: without it, what is gained in KL is
partly lost in how truly features act. alpha = MSE / KL, detached, so that both terms weigh the same whatever
their size (Karvonen 2025, arXiv:2503.17272); beta = CHANGES MSE / NMSE likewise. Support stays BatchTopK.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.fitting import FitPoint
from trephine.domain.sites import Site
from trephine.engine.fitting.activations import Activations, seeded
from trephine.engine.fitting.changes import Change, streams_behind
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.joint import JointTrainee
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import (
    SplicedPass,
    batchwise,
    plain_logits,
    reconstruct,
    sites_of,
    unexplained,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

LOGIT_BYTES = 256 << 20
"""A step is cut so that one of its logit tensors takes no more than that."""
PLAIN_WEIGHT = 0.7
"""Share of the errors on the plain run in MSE; changes move L0 on the two runs apart, this moves it back."""
PLAIN_ROWS = 3
"""One in so many contexts of a step is reconstructed on the plain run too: all of them cost as much again."""
CHANGES = 0.3
"""Weight of NMSE beside MSE and KL."""
CHANGED_ROWS = 4
"""One in so many contexts of a step is changed: what lies above the change runs once more, in both models."""


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
        seed: int = 0,
    ) -> None:
        """Train these dictionaries in place; the model has no gradients, `seed` is of the changes."""
        super().__init__(dictionaries, k=k, rate=rate, dead_after_tokens=dead_after_tokens)
        self._hosted, self._k, self._seed = hosted, k, seed

    def step(self, batch: Tensor) -> None:  # type: ignore[override]
        """Run plain and spliced, in pieces that fit into memory, and learn from all three losses."""
        rows = max(1, LOGIT_BYTES // (4 * self._hosted.info.d_vocab * batch.shape[1]))
        for number, part in enumerate(batch.to(self._hosted.model.device).split(rows)):
            change = self._change(len(part), seeded(self._seed, self.steps, number))
            self._learn(part, change, share=len(part) / len(batch))
        self.update()

    def _change(self, rows: int, generator: torch.Generator) -> Change | None:
        """Draw where the stream is changed; None if there is no layer below a dictionary."""
        covered = [dictionary.place.layer for dictionary in self.dictionaries]
        first, last = max(0, min(covered) - 1), max(covered)
        if first == last:
            return None
        layer = int(torch.randint(first, last, (), generator=generator))
        return Change(layer=layer, rows=-(-rows // CHANGED_ROWS), generator=generator)

    def _learn(self, ids: Tensor, change: Change | None, share: float) -> None:
        behind = range(0) if change is None else range(change.layer, self._hosted.info.n_layers)
        with streams_behind(self._hosted, behind) as plain:
            expected, kept = self._plain(ids)
        run = SplicedPass(dictionaries=self.dictionaries, support=batchwise(self._k))
        with streams_behind(self._hosted, behind) as spliced:
            kl = kl_from(expected, run.run(self._hosted, ids)[:, 1:].float()).mean()
        losses = unexplained(run.made, run.targets)
        mse = (1 - PLAIN_WEIGHT) * torch.stack(list(losses.values())).sum()
        mse = mse + PLAIN_WEIGHT * self._error_on(kept)
        loss = mse + as_heavy_as(mse, kl)
        if change is not None:
            loss = loss + CHANGES * as_heavy_as(mse, change.error(self._hosted, ids, plain, spliced, run))
        (share * (0.5 * loss + self.auxiliary(run.made, run.targets))).backward()
        self.note(run.made, losses)
        self.means.add("kl", kl)

    def _plain(self, ids: Tensor) -> tuple[Tensor, Activations]:
        """Run the plain model: log-probabilities, and some contexts' activations, both without position 0."""
        kept: dict[Site, Tensor] = {}
        rows = -(-len(ids) // PLAIN_ROWS)
        touches = {site: partial(_keep, kept, site, rows) for site in sites_of(self.dictionaries)}
        with torch.no_grad(), touching(self._hosted.architecture, touches):
            logits = plain_logits(self._hosted, ids)[:, 1:].float()
        return functional.log_softmax(logits, -1), kept

    def _error_on(self, activations: Activations) -> Tensor:
        """Return the sum over sites of each dictionary's error on the plain run, over variance."""
        made = reconstruct(self.dictionaries, activations, batchwise(self._k))
        return torch.stack(list(unexplained(made, activations).values())).sum()

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


def _keep(kept: dict[Site, Tensor], site: Site, rows: int, x: Tensor) -> None:
    kept[site] = x[:rows, 1:].to(torch.float32, copy=True)  # (rows, n_pos - 1, width)


def as_heavy_as(first: Tensor, second: Tensor) -> Tensor:
    """Scale the second loss to the size of the first, which takes no part in its gradient."""
    return (first / second.clamp_min(1e-8)).detach() * second


def kl_from(plain: Tensor, logits: Tensor) -> Tensor:
    """Return KL(plain || spliced) per position `(rows, n_pos)` from log-probabilities and logits."""
    return (plain.exp() * (plain - functional.log_softmax(logits, -1))).sum(-1)
