"""Several contexts as one row: positions restart, attention is block-diagonal, nothing is padded.

The frozen network of a pack has the shape of one prompt's, so that every adjoint of the engine works on it
unchanged; contexts do not see each other because their patterns are 0 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.dataset_circuits.contexts import Context
from trephine.engine.models.hosted import HostedModel

PACK_TOKENS = 256
"""Tokens of one pass; a longer context is a pack of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the contexts of a pack lie."""

    ids: tuple[int, ...]
    position: Tensor
    """int64 `(n_rows,)`, position within its context."""
    owner: Tensor
    """int64 `(n_rows,)`, number of the context within the pack."""
    last: Tensor
    """int64 `(n_contexts,)`, row of each context's last token."""
    lengths: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Tokens of the pack."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Contexts that run together, their twins, and which row of the twins stands for which."""

    first: int
    """Number of its first context within the split."""
    contexts: tuple[Context, ...]
    clean: Layout
    twins: Layout
    donor: Tensor
    """int64 `(n_rows,)`, rows of `twins`, aligned from the end of each context."""
    directions: Tensor
    """`(n_contexts, d_model)`."""
    biases: Tensor
    """`(n_contexts,)`."""

    @property
    def count(self) -> int:
        """Contexts."""
        return len(self.contexts)

    def metric(self, final: Tensor) -> Tensor:
        """Read the metric `(n_contexts,)`, before a soft cap, off the final norm's output."""
        chosen = final[self.clean.last].to(self.directions.dtype)
        return (chosen * self.directions).sum(-1) + self.biases

    def per_context(self, rows: Tensor) -> Tensor:
        """Sum `(n_rows, n)` over each context's tokens: `(n_contexts, n)`."""
        sums = rows.new_zeros(self.count, rows.shape[1])
        return sums.index_add_(0, self.clean.owner, rows)


def lay_out(prompts: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """Lay prompts side by side."""
    lengths = tuple(len(ids) for ids in prompts)
    counts = torch.tensor(lengths)
    owner = torch.repeat_interleave(torch.arange(len(prompts)), counts)
    position = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[owner]
    return Layout(
        ids=tuple(token for ids in prompts for token in ids),
        position=position.to(device),
        owner=owner.to(device),
        last=(counts.cumsum(0) - 1).to(device),
        lengths=lengths,
    )


def packs(
    contexts: Sequence[Context], donors: Sequence[Sequence[int]], device: torch.device
) -> Iterator[Pack]:
    """Split contexts into packs of at most `PACK_TOKENS` tokens, in order.

    Args:
        contexts: The split.
        donors: Per context the ids that resampling takes activations from.
        device: Where the model is.
    """
    start, tokens = 0, 0
    for number, context in enumerate(contexts):
        length = max(len(context.ids), len(donors[number]))
        if tokens and tokens + length > PACK_TOKENS:
            yield _pack(start, contexts[start:number], donors[start:number], device)
            start, tokens = number, 0
        tokens += length
    if tokens:
        yield _pack(start, contexts[start:], donors[start:], device)


def _pack(
    first: int, contexts: Sequence[Context], donors: Sequence[Sequence[int]], device: torch.device
) -> Pack:
    clean, twins = lay_out([c.ids for c in contexts], device), lay_out(donors, device)
    return Pack(
        first=first,
        contexts=tuple(contexts),
        clean=clean,
        twins=twins,
        donor=_aligned(clean, twins),
        directions=torch.stack([c.direction for c in contexts]).to(device),
        biases=torch.tensor([c.bias for c in contexts], device=device),
    )


def _aligned(clean: Layout, twins: Layout) -> Tensor:
    """Align from the end; what has no counterpart takes the twin's first token after the sink."""
    longer = torch.tensor(clean.lengths) - torch.tensor(twins.lengths)
    starts = twins.last.cpu() + 1 - torch.tensor(twins.lengths)
    position, owner = clean.position.cpu(), clean.owner.cpu()
    at = (position - longer[owner]).clamp_min(1)
    at = torch.where(position == 0, torch.zeros_like(at), at)
    return (starts[owner] + at).to(clean.position.device)


def capture_layout(hosted: HostedModel, layout: Layout, top: int | None = None) -> FrozenOperators:
    """Run a pack once, up to block `top` or through, and keep its frozen network, `n_rows` positions long."""
    with torch.inference_mode():
        return capture(hosted.model, hosted.architecture, layout.ids, positions=layout.position, top=top)


def donor_ids(contexts: Sequence[Context], *, seed: int, same_length: bool) -> list[tuple[int, ...]]:
    """Choose where each context resamples from: its twin, else another context, drawn at random.

    Args:
        contexts: The split.
        seed: Of the draw.
        same_length: Take contexts of the same number of tokens only (its own ids if there is none).
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[int, ...]] = []
    for number, context in enumerate(contexts):
        if context.twin is not None:
            found.append(context.twin)
            continue
        others = [
            other.ids
            for place, other in enumerate(contexts)
            if place != number and (not same_length or len(other.ids) == len(context.ids))
        ]
        draw = int(torch.randint(max(1, len(others)), (1,), generator=generator))
        found.append(others[draw] if others else context.ids)
    return found
