"""Activations to train on: one forward pass feeds every layer, chunk by chunk, in a fixed random order.

A chunk is a number of contexts out of a permutation of the corpus; its positions are shuffled and split into
batches. What a chunk holds is a function of its number and the seed alone, so a checkpoint between two chunks
needs no buffer of activations, and a resumed fit sees what an uninterrupted one sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trephine.domain.sites import Site
from trephine.engine.fitting.reconstruction import plain_logits
from trephine.engine.fitting.sizes import CHUNK_BYTES
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import site_width, touching

FORWARD_TOKENS = 4096
BATCHES_PER_CHUNK = 8

Activations = Mapping[Site, Tensor]
"""`(rows, width)` float32 by site, rows aligned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a number of tokens is cut into chunks and batches."""

    contexts: int
    """Per chunk."""
    batches: int
    """Per chunk."""
    chunks: int
    positions: int
    """Per context."""

    @property
    def steps(self) -> int:
        """Batches over all chunks."""
        return self.chunks * self.batches

    def tokens(self, chunks: int) -> int:
        """Positions in so many chunks."""
        return chunks * self.contexts * self.positions

    @property
    def batch_tokens(self) -> int:
        """Positions in a batch, about."""
        return max(1, self.contexts * self.positions // self.batches)


def plan(*, tokens: int, batch_tokens: int, positions: int, bytes_per_token: int) -> Plan:
    """Cut `tokens` into chunks of up to eight batches that stay within `CHUNK_BYTES`."""
    fit = max(1, CHUNK_BYTES // (bytes_per_token * batch_tokens))
    chunks = math.ceil(tokens / (min(BATCHES_PER_CHUNK, fit) * batch_tokens))
    contexts = math.ceil(tokens / (chunks * positions))
    batches = max(1, round(contexts * positions / batch_tokens))
    return Plan(contexts=contexts, batches=batches, chunks=chunks, positions=positions)


def chunk_rows(n_rows: int, number: int, size: int, seed: int) -> list[int]:
    """Return the contexts of a chunk: the corpus in random order, in another one each time it is used up."""
    wanted = range(number * size, (number + 1) * size)
    orders = {epoch: _order(n_rows, epoch, seed) for epoch in {i // n_rows for i in wanted}}
    return [orders[i // n_rows][i % n_rows] for i in wanted]


def _order(n_rows: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(n_rows, generator=seeded(seed, epoch)).tolist()


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator that these numbers alone decide on."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStream:
    """Batches of activations of some sites."""

    hosted: HostedModel
    rows: Tensor
    """Contexts `(n, context_tokens)`."""
    sites: Sequence[Site]
    plan: Plan
    seed: int

    def chunk(self, number: int) -> Iterator[Activations]:
        """Compute a chunk and yield its batches."""
        chosen = chunk_rows(len(self.rows), number, self.plan.contexts, self.seed)
        values = read_sites(self.hosted, self.rows[chosen], self.sites)
        count = len(chosen) * self.plan.positions
        order = torch.randperm(count, generator=seeded(self.seed, number, 7))
        for part in order.tensor_split(self.plan.batches):
            yield {site: value[part.to(value.device)] for site, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextStream:
    """Batches of whole contexts, for the end-to-end phase."""

    rows: Tensor
    plan: Plan
    seed: int

    def chunk(self, number: int) -> Iterator[Tensor]:
        """Yield batches of contexts `(rows, context_tokens)`."""
        chosen = self.rows[chunk_rows(len(self.rows), number, self.plan.contexts, self.seed)]
        yield from (part for part in chosen.tensor_split(self.plan.batches) if len(part))


def bytes_per_token(hosted: HostedModel, sites: Sequence[Site]) -> int:
    """Return what one position's activations take, float32, twice: as read and as shuffled."""
    return 8 * sum(site_width(hosted.architecture, site) for site in sites)


@torch.no_grad()
def read_sites(hosted: HostedModel, rows: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Run contexts `(n, n_pos)`; return `(n * (n_pos - 1), width)` float32 per site, position 0 left out."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    batch = max(1, FORWARD_TOKENS // rows.shape[1])
    for some in rows.split(batch):
        with touching(hosted.architecture, {site: partial(_keep, parts[site]) for site in sites}):
            plain_logits(hosted, some.to(hosted.model.device), last_only=True)
    return {site: torch.cat(values) for site, values in parts.items()}


def _keep(kept: list[Tensor], x: Tensor) -> None:
    kept.append(x[:, 1:].to(torch.float32, copy=True).flatten(0, 1))
