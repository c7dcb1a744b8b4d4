"""Rows whose answers overflow: such a row ends and says so, and its neighbours go on.

NaN and infinity are easily seen in logits. What a norm does with numbers that are too large is not: their
squares overflow, it divides by infinity, and finite logits come out that are everybody's and mean nothing.
What is too large stays in the residual stream, so that stream is looked at behind the last block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan

import torch
from torch import Tensor

from trephine.domain.errors import NonFiniteValueError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.interventions.selection import Span
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.rows import RowInput


def reads(hosted: HostedModel, rows: Iterable[RowInput]) -> tuple[Site, ...]:
    """Return where a pass over rows is to be read; nowhere if nothing is done to any of them."""
    if not any(row.interventions for row in rows):
        return ()
    return (Site(kind=SiteKind.RESID_POST, layer=hosted.info.n_layers - 1),)


def marked(logits: Tensor, stream: Tensor) -> Tensor:
    """Put NaN in the place of logits that are computed of what overflows.

    Args:
        logits: `(n_last, d_vocab)` of one row.
        stream: Its `(n_pos, d_model)` behind the last block; later positions hear all before them.
    """
    broken = _is_broken(stream)
    if not bool(broken.any()):
        return logits
    heard = broken.cummax(0).values[-len(logits) :]
    return logits.masked_fill(heard[:, None], nan)


def marked_last(logits: Tensor, values: dict[Site, Tensor], spans: Sequence[Span]) -> Tensor:
    """Do so for the last position of every row, `(rows, d_vocab)`, of a stream `(rows, columns, d_model)`."""
    for stream in values.values():
        if bool(_is_broken(stream).any()):
            rows = [marked(logits[span.row][None], stream[span.row, span.offset :]) for span in spans]
            logits = torch.cat(rows)
    return logits


def _is_broken(stream: Tensor) -> Tensor:
    """Norms compute in float32, whatever the type of what they read."""
    return ~stream.float().square().sum(-1).isfinite()


def is_overflow(logits: Tensor) -> Tensor:
    """Return where logits `(..., d_vocab)` are no distribution; a token that is ruled out may be -inf."""
    return ~logits.logsumexp(-1).isfinite()


def told(hosted: HostedModel, number: int, row: RowInput, where: str) -> str:
    """Say which row overflows, where, and what to do."""
    if row.interventions:
        return (
            f"rows[{number}]: under its interventions and edits the activations overflow {hosted.info.dtype} "
            f"{where}; lower the strength of what they set, add or scale"
        )
    return (
        f"rows[{number}]: the model computes NaN or infinity {where}: either its weights hold some, or it "
        f"overflows {hosted.info.dtype} on this text. Load it as float32, or check the checkpoint"
    )


def require_an_answer(said: Sequence[str]) -> None:
    """Refuse a request of which every row overflows; of others each row says it itself.

    Args:
        said: Of every row what `told` says, empty where it does not overflow.

    Raises:
        NonFiniteValueError: Naming the first row.
    """
    if said and all(said):
        raise NonFiniteValueError(said[0], field="rows[0]", row=0)
