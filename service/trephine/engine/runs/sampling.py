"""Choosing the next token, by a generator of the row's own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from trephine.domain.generation import Sampling


class Sampler:
    """Draws one row's tokens. The same (seed, row) draws the same numbers whatever else runs."""

    def __init__(self, sampling: Sampling, row: int) -> None:
        """Seed a generator with (seed, row); the global one is never touched."""
        self._sampling = sampling
        digest = hashlib.sha256(f"{sampling.seed}:{row}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def choose(self, logits: Tensor) -> tuple[int, float]:
        """Return a token and its log-probability in nats, temperature and top_p left aside.

        Args:
            logits: `(d_vocab,)`.
        """
        wide = logits.to("cpu", torch.float64)
        token = int(wide.argmax()) if self._sampling.temperature == 0 else self._draw(wide)
        return token, float(wide[token] - wide.logsumexp(-1))

    def _draw(self, logits: Tensor) -> int:
        probabilities = (logits / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            probabilities = nucleus(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def nucleus(probabilities: Tensor, mass: float) -> Tensor:
    """Keep the fewest tokens that hold at least `mass` (Holtzman et al. 2020); others become 0."""
    ranked, order = probabilities.sort(descending=True, stable=True)
    kept = ranked.cumsum(-1) - ranked < mass
    return torch.zeros_like(probabilities).index_put((order[kept],), ranked[kept])
