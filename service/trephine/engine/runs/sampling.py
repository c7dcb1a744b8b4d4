"""Choosing the next token, by a generator of the row's own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from trephine.domain.generation import Sampling
from trephine.engine.runs.overflow import is_overflow


class Sampler:
    """Draws one row's tokens. The same (seed, row) draws the same numbers whatever else runs."""

    def __init__(self, sampling: Sampling, row: int) -> None:
        """Seed a generator with (seed, row); the global one is never touched."""
        self._sampling = sampling
        digest = hashlib.sha256(f"{sampling.seed}:{row}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def choose(self, logits: Tensor) -> tuple[int, float] | None:
        """Return a token and its log-probability in nats, temperature and top_p left aside.

        None: the logits overflow, so that there is nothing to choose from.

        Args:
            logits: `(d_vocab,)`.
        """
        wide = logits.to("cpu", torch.float64)
        if bool(is_overflow(wide)):
            return None
        token = int(wide.argmax()) if self._sampling.temperature == 0 else self._draw(wide)
        return token, float(wide[token] - wide.logsumexp(-1))

    def _draw(self, logits: Tensor) -> int:
        tempered = logits / self._sampling.temperature
        if not tempered.max().isfinite():
            # So small a temperature leaves no numbers. Differences to the largest stay, and -inf means never.
            tempered = (logits - logits.max()) / self._sampling.temperature
        probabilities = tempered.softmax(-1)
        if self._sampling.top_p < 1:
            probabilities = nucleus(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def nucleus(probabilities: Tensor, mass: float) -> Tensor:
    """Keep the fewest tokens that hold at least `mass` (Holtzman et al. 2020); others become 0."""
    ranked, order = probabilities.sort(descending=True, stable=True)
    kept = ranked.cumsum(-1) - ranked < mass
    return torch.zeros_like(probabilities).index_put((order[kept],), ranked[kept])
