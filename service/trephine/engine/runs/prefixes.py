"""The beginning that all rows of a command share is computed once; its keys and values serve every row.

Rows are laid out as without it, padded on the left: the columns that hold nothing but the shared beginning
come from the cache, all others are computed. Layout, positions and mask are those of the whole batch, so
that a row's logits differ from its own only as with other neighbours in a batch (law 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.forward import Batch, Pass, forward, left_padded
from trephine.engine.runs.rows import RowInput

FEWEST_TOKENS = 16
"""A shorter beginning is not worth a forward pass of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What attention layers remember of a plain beginning."""

    n_tokens: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values per layer, `(1, n_kv_heads, n_tokens, d_head)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """A batch whose shared beginning came from the cache."""

    batch: Batch
    """As if all of it had been computed."""
    cache: Any
    """A transformers cache with every column."""
    logits: Tensor
    """`(rows, computed columns or keep_last, d_vocab)`, of the last columns."""


def shared_tokens(rows: Sequence[RowInput]) -> int:
    """Return how many first tokens may be computed once for all rows; 0 if that is not worth it.

    The last token of every prompt is left out: what follows it is read from its logits. Rows with
    interventions share nothing.
    """
    if len(rows) < 2 or any(row.interventions for row in rows):
        return 0
    most = min(row.prompt_length for row in rows) - 1
    first, *others = (row.ids for row in rows)
    count = next(
        (place for place in range(most) if any(ids[place] != first[place] for ids in others)), max(most, 0)
    )
    return count if count >= FEWEST_TOKENS else 0


def read_prefix(hosted: HostedModel, ids: Sequence[int]) -> Prefix:
    """Run the plain model on a beginning and keep its keys and values."""
    cache = DynamicCache()  # whole layers even where the model attends to a sliding window only
    forward(hosted, left_padded(hosted, [(ids, len(ids))]), Pass(cache=cache, keep_last=1))
    return Prefix(n_tokens=len(ids), layers=tuple((layer.keys, layer.values) for layer in cache.layers))


def continue_prefix(
    hosted: HostedModel, prefix: Prefix, rows: Sequence[RowInput], *, keep_last: int | None = None
) -> Continued:
    """Run rows that all begin with the prefix, computing what comes after it.

    Args:
        hosted: The model.
        prefix: Their shared beginning.
        rows: Without interventions.
        keep_last: Compute logits of that many last columns only.
    """
    batch = left_padded(hosted, [(row.ids, row.prompt_length) for row in rows])
    offsets = [span.offset for span in batch.spans]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.layers):
        cache.update(_shifted(keys, offsets), _shifted(values, offsets), layer)
    rest = replace(
        batch,
        input_ids=batch.input_ids[:, prefix.n_tokens :],
        position_ids=batch.position_ids[:, prefix.n_tokens :],
    )
    logits = forward(hosted, rest, Pass(cache=cache, keep_last=keep_last))
    return Continued(batch=batch, cache=cache, logits=logits)


def _shifted(remembered: Tensor, offsets: Sequence[int]) -> Tensor:
    """Place the prefix behind each row's padding; the columns are as many as the prefix has tokens.

    What falls off the end is computed anew with the row's other tokens, whose columns it shares.
    """
    n_tokens = remembered.shape[2]
    if not any(offsets):
        return remembered.expand(len(offsets), -1, -1, -1)
    moved = [
        functional.pad(remembered[0, :, : max(n_tokens - offset, 0)], (0, 0, min(offset, n_tokens), 0))
        for offset in offsets
    ]
    return torch.stack(moved)
