"""Our own training loop: dictionaries that reconstruct together, from stored activations.

It trains cross-layer transcoders, for which SAELens has no trainer, and the local-only control of the
end-to-end phase. The loss is the sum over sites of squared error over variance; dead features learn from
what is left over, as in Gao et al. (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trephine.domain.fitting import FitPoint
from trephine.domain.sites import Site
from trephine.engine.fitting.activations import Activations
from trephine.engine.fitting.checkpoints import State, prefixed, under
from trephine.engine.fitting.dictionary import Dictionary, strongest
from trephine.engine.fitting.optimiser import Rate, adam, optimiser_tensors, restore_optimiser
from trephine.engine.fitting.reconstruction import Reconstruction, batchwise, reconstruct, unexplained
from trephine.engine.fitting.trainee import Firing, Means, load_weights

AUXILIARY = 1.0
"""Weight of the dead features' loss beside the main one."""


class JointTrainee:
    """Dictionaries under one optimiser."""

    def __init__(
        self, dictionaries: Sequence[Dictionary], *, k: int, rate: Rate, dead_after_tokens: int
    ) -> None:
        """Train these dictionaries in place."""
        self._dictionaries = list(dictionaries)
        self._support, self._rate, self.steps = batchwise(k), rate, 0
        self.optimiser = adam([p for d in self._dictionaries for p in d.parameters()])
        self.firing = [Firing.of(d, dead_after_tokens) for d in self._dictionaries]
        self.means = Means()

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """The dictionaries themselves."""
        return self._dictionaries

    def step(self, batch: Activations) -> None:
        """Reconstruct every site from the model's own activations and learn from the error."""
        made = reconstruct(self._dictionaries, batch, self._support)
        losses = unexplained(made, batch)
        total = torch.stack(list(losses.values())).sum()
        (total + self.auxiliary(made, batch)).backward()
        self.update()
        self.note(made, losses)

    def update(self) -> None:
        """Let the optimiser take a step at the rate of this one."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate.at(self.steps)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1

    def auxiliary(self, made: Reconstruction, targets: Mapping[Site, Tensor]) -> Tensor | float:
        """Let the strongest dead features reconstruct what is left over."""
        losses = [self._auxiliary(index, made, targets) for index in range(len(self._dictionaries))]
        found = [loss for loss in losses if loss is not None]
        return AUXILIARY * torch.stack(found).sum() if found else 0.0

    def _auxiliary(self, index: int, made: Reconstruction, targets: Mapping[Site, Tensor]) -> Tensor | None:
        dictionary, dead = self._dictionaries[index], self.firing[index].dead.nonzero().flatten()
        if len(dead) == 0:
            return None
        wanted = dictionary.W_dec.shape[2] // 2
        active = strongest(made.pre[index][..., dead], wanted)
        place, errors = dictionary.place, []
        for number, (site, variance) in enumerate(zip(place.sites_out, place.variances, strict=True)):
            left = (targets[site] - made.outputs[site]).detach()
            errors.append((dictionary.write(active, number, dead) - left).square().sum(-1).mean() / variance)
        return min(len(dead) / wanted, 1.0) * torch.stack(errors).sum()

    def note(self, made: Reconstruction, losses: Mapping[Site, Tensor]) -> None:
        """Remember figures and who fired."""
        for index, dictionary in enumerate(self._dictionaries):
            active = made.activations[index]
            self.firing[index].see(active)
            self.means.add(f"l0/{index}", (active > 0).sum(-1).float().mean())
            self.means.add(f"fvu/{index}", losses[dictionary.place.sites_out[0]])

    def points(self, phase: str, tokens: int) -> list[FitPoint]:
        """Return one point per layer; of a cross-layer transcoder, the FVU of each layer's own site."""
        means = self.means.take()
        return [
            FitPoint(
                phase=phase,
                layer=dictionary.place.layer,
                tokens=tokens,
                fvu=means[f"fvu/{index}"],
                l0=means[f"l0/{index}"],
                dead_share=float(self.firing[index].dead.float().mean()),
                kl=None,
            )
            for index, dictionary in enumerate(self._dictionaries)
            if means
        ]

    def state(self) -> State:
        """Return weights, moments and firing counters."""
        tensors = prefixed("adam", optimiser_tensors(self.optimiser))
        for index, dictionary in enumerate(self._dictionaries):
            tensors |= prefixed(f"weights/{index}", dictionary.weights())
            tensors[f"since_fired/{index}"] = self.firing[index].since
        return State(tensors=tensors, facts={"steps": self.steps, "means": self.means.facts()})

    def restore(self, state: State) -> None:
        """Put everything back."""
        for index, dictionary in enumerate(self._dictionaries):
            load_weights(dictionary, under(f"weights/{index}", state.tensors))
            since = state.tensors[f"since_fired/{index}"]
            self.firing[index].since = since.to(self.firing[index].since.device)
        restore_optimiser(self.optimiser, under("adam", state.tensors))
        self.steps, self.means = int(state.facts["steps"]), Means.of(state.facts["means"])
