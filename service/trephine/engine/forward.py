"""One forward pass over a batch of rows, each with its own plan: the only place that calls the model.

Hooks and the tape of patterns are installed and removed inside (law 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trephine.domain.interventions import Condition
from trephine.domain.sites import Site
from trephine.engine.attention import PatternTape, pattern_tape
from trephine.engine.hosted import HostedModel
from trephine.engine.neurons import neuron_site
from trephine.engine.plans import RowPlan, Write
from trephine.engine.selection import Span, selected_positions
from trephine.engine.sites import Touch, touching


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The input of one forward pass. Rows are padded on the left."""

    input_ids: Tensor
    """int64 `(rows, columns)`."""
    attention_mask: Tensor
    """int64 `(rows, cached + columns)`, 1 for tokens and 0 for padding."""
    position_ids: Tensor
    """int64 `(rows, columns)`, absolute positions; 0 for padding."""
    spans: tuple[Span, ...]
    """One per row."""


def left_padded(hosted: HostedModel, rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
    """Lay out rows of `(ids, n_prompt)` so that all end in the last column."""
    width = max(len(ids) for ids, _ in rows)
    pad = hosted.tokenizer.pad_token_id or 0
    device = hosted.model.device
    offsets = [width - len(ids) for ids, _ in rows]
    columns = torch.arange(width, device=device)
    starts = torch.tensor(offsets, device=device)[:, None]
    padded = [[pad] * offset + list(ids) for offset, (ids, _) in zip(offsets, rows, strict=True)]
    return Batch(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=(columns >= starts).long(),
        position_ids=(columns - starts).clamp_min(0),
        spans=tuple(
            Span(row=row, ids=ids, first=0, offset=offset, n_prompt=n_prompt)
            for row, (offset, (ids, n_prompt)) in enumerate(zip(offsets, rows, strict=True))
        ),
    )


@dataclass(slots=True, kw_only=True)
class Pass:
    """What a forward pass is asked to do beside computing logits."""

    plans: Sequence[RowPlan] = ()
    """One per row of the batch, or none at all."""
    reads: Sequence[Site] = ()
    tape: PatternTape | None = None
    cache: Any = None
    """A transformers cache; None computes without one."""
    keep_last: int | None = None
    """Compute logits of that many last columns only."""
    values: dict[Site, Tensor] = field(default_factory=dict)
    """Filled in: what was read, `(rows, columns, width)`, after writes at the same site."""


def forward(hosted: HostedModel, batch: Batch, request: Pass) -> Tensor:
    """Run the model once; return logits `(rows, columns or keep_last, d_vocab)`.

    Raises:
        PositionOutOfRangeError: If a donor is shorter than where it is used.
    """
    options: dict[str, Any] = {"use_cache": request.cache is not None, "past_key_values": request.cache}
    if request.keep_last is not None:
        options["logits_to_keep"] = request.keep_last
    touches = _touches(batch, request)
    with (
        torch.inference_mode(),
        touching(hosted.architecture, touches),
        pattern_tape(request.tape or PatternTape()),
    ):
        output = hosted.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            **options,
        )
    logits: Tensor = output.logits
    return logits


def _touches(batch: Batch, request: Pass) -> dict[Site, Touch]:
    writes: dict[Site, list[_Placed]] = {}
    for plan, span in zip(request.plans, batch.spans, strict=bool(request.plans)):
        for site, of_row in plan.writes.items():
            placed = [_Placed(write, span, batch.input_ids.device) for write in of_row]
            writes.setdefault(site, []).extend(p for p in placed if p.positions)
    watched = _Watched(p.write.condition for of_site in writes.values() for p in of_site)
    sites = dict.fromkeys([*writes, *watched.sites, *request.reads])
    return {site: partial(_touch, site, writes.get(site, ()), watched, request) for site in sites}


class _Placed:
    """A write and the columns of its row where it happens in this pass, unless a condition forbids."""

    def __init__(self, write: Write, span: Span, device: torch.device) -> None:
        self.write, self.row = write, span.row
        self.positions = selected_positions(write.selector, span)
        shift = span.offset - span.first
        self.columns = torch.tensor([p + shift for p in self.positions], dtype=torch.long, device=device)

    def apply(self, x: Tensor, watched: _Watched) -> None:
        """Write into `x (rows, columns, width)`."""
        columns, positions = self.columns, self.positions
        if self.write.condition is not None:
            holds = watched.holds(self.write.condition, self.row, columns)
            columns = columns[holds]
            positions = [p for p, held in zip(positions, holds.tolist(), strict=True) if held]
        if positions:
            self.write.apply(x[self.row], columns, positions)


class _Watched:
    """Activations of the neurons that conditions ask about, in the running pass."""

    def __init__(self, conditions: Iterable[Condition | None]) -> None:
        self.sites = {neuron_site(c.feature.layer) for c in conditions if c is not None}
        self._latest: dict[int, Tensor] = {}

    def see(self, site: Site, x: Tensor) -> None:
        """Remember a layer's neurons: the live tensor, so that writes to come are seen too."""
        if site in self.sites:
            self._latest[site.layer] = x

    def holds(self, condition: Condition, row: int, columns: Tensor) -> Tensor:
        """Say where in a row the condition's neuron is large enough, bool `(len(columns),)`."""
        feature = condition.feature
        return self._latest[feature.layer][row, columns, feature.index] >= condition.at_least


def _touch(site: Site, writes: Sequence[_Placed], watched: _Watched, request: Pass, x: Tensor) -> None:
    watched.see(site, x)
    for write in writes:
        write.apply(x, watched)
    if site in request.reads:
        request.values[site] = x.clone()
