"""One forward pass over a batch of rows, each with its own plan: the only place that calls the model.

Hooks and the tape of patterns are installed and removed inside (law 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from trephine.domain.interventions import Condition
from trephine.domain.sites import NEURONS, Site
from trephine.engine.interventions.selection import Span, selected_positions
from trephine.engine.models.attention import PatternTape, pattern_tape
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.sets import opened
from trephine.engine.replacements.writing import Arrival, PlacedLayerWrite, activations_of
from trephine.engine.runs.partial_passes import ending_at
from trephine.engine.runs.plans import RowPlan, Write
from trephine.engine.runs.refusals import feature_site
from trephine.engine.runs.resumption import CleanRun, resumed


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
    before: bool = False
    """Read before writes at the same site."""
    tape: PatternTape | None = None
    cache: Any = None
    """A transformers cache; None computes without one."""
    keep_last: int | None = None
    """Compute logits of that many last columns only; 0: none, and nothing above the deepest of `reads`."""
    clean: CleanRun | None = None
    """A clean run of what is in every row: layers below the first that is touched are taken from it."""
    values: dict[Site, Tensor] = field(default_factory=dict)
    """Filled in: what was read, `(rows, columns, width)`, after writes at the same site or before them."""


def forward(hosted: HostedModel, batch: Batch, request: Pass) -> Tensor:
    """Run the model once; return logits `(rows, columns or keep_last, d_vocab)`.

    Raises:
        PositionOutOfRangeError: If a donor is shorter than where it is used.
    """
    options: dict[str, Any] = {"use_cache": request.cache is not None, "past_key_values": request.cache}
    if request.keep_last is not None:
        options["logits_to_keep"] = request.keep_last
    touches = _touches(hosted, batch, request)
    with (
        torch.inference_mode(),
        resumed(hosted.architecture, request.clean, _first_touched(hosted, touches)),
        touching(hosted.architecture, touches),
        pattern_tape(request.tape or PatternTape()),
        _end(hosted, request),
    ):
        logits: Tensor = hosted.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            **options,
        ).logits
        return logits
    return hosted.architecture.W_U.new_empty(len(batch.spans), 0, hosted.info.d_vocab)  # ended before


def _end(hosted: HostedModel, request: Pass) -> AbstractContextManager[object]:
    """End the pass where nothing is left to read, if no logits are wanted."""
    if request.keep_last != 0:
        return nullcontext()
    deepest = max((site.layer for site in request.reads), default=0)
    return ending_at(hosted.architecture.blocks[deepest].module)


def _first_touched(hosted: HostedModel, touches: Iterable[Site]) -> int:
    """Return the first block that cannot be skipped."""
    return min((site.layer for site in touches), default=hosted.info.n_layers - 1)


def _touches(hosted: HostedModel, batch: Batch, request: Pass) -> dict[Site, Touch]:
    scene = _Scene(hosted)
    actions: dict[Site, list[_Action]] = {}
    for plan, span in zip(request.plans, batch.spans, strict=bool(request.plans)):
        for site, action in _actions(plan, span, batch.input_ids.device, scene):
            actions.setdefault(site, []).append(action)
    for of_site in actions.values():
        of_site.sort(key=lambda action: action.order)
    sites = dict.fromkeys([*actions, *scene.watched, *request.reads])
    return {site: partial(_touch, site, actions.get(site, ()), scene, request) for site in sites}


@dataclass(frozen=True, slots=True)
class _Action:
    """Something done to one row at one site; lower orders first, rows do not see each other."""

    order: float
    act: Callable[[Tensor], None]
    """Given the row's live `(columns, width)`."""
    row: int


def _actions(
    plan: RowPlan, span: Span, device: torch.device, scene: _Scene
) -> Iterator[tuple[Site, _Action]]:
    """Yield what a row does where, in this pass. Reading a set's layer comes last at its input site."""
    for site, writes in plan.writes.items():
        for write in writes:
            placed = _Placed(write, span, device)
            if placed.positions:
                scene.watch(write.condition)
                yield site, _Action(write.tallies[0].index, partial(placed.apply, scene), span.row)
    for of_layer in plan.layer_writes:
        arriving = PlacedLayerWrite(of_layer, span, device)
        if not arriving.positions:
            continue
        for change in of_layer.changes:
            scene.watch(change.condition)
        order = of_layer.changes[0].tally.index
        inside = of_layer.source in of_layer.outputs
        yield of_layer.source, _Action(order if inside else inf, partial(scene.read, arriving), span.row)
        for site in of_layer.outputs:
            yield site, _Action(order, partial(scene.arrive, arriving, site), span.row)


class _Placed:
    """A write and the columns of its row where it happens in this pass, unless a condition forbids."""

    def __init__(self, write: Write, span: Span, device: torch.device) -> None:
        self.write, self.row = write, span.row
        self.positions = selected_positions(write.selector, span)
        shift = span.offset - span.first
        self.columns = torch.tensor([p + shift for p in self.positions], dtype=torch.long, device=device)

    def apply(self, scene: _Scene, x: Tensor) -> None:
        """Write into the row's `x (columns, width)`."""
        columns, positions = self.columns, self.positions
        if self.write.condition is not None:
            holds = scene.holds(self.row, self.write.condition, columns)
            columns = columns[holds]
            positions = [p for p, held in zip(positions, holds.tolist(), strict=True) if held]
        if positions:
            self.write.apply(x, columns, positions)


class _Scene:
    """What the running pass has seen so far: live sites that conditions ask about, features on their way."""

    def __init__(self, hosted: HostedModel) -> None:
        self._hosted = hosted
        self.watched: dict[Site, None] = {}
        self._latest: dict[Site, Tensor] = {}
        self._arrivals: dict[tuple[PlacedLayerWrite, Site], Arrival] = {}

    def watch(self, condition: Condition | None) -> None:
        """Remember that a condition will ask about its feature."""
        if condition is not None:
            self.watched[feature_site(self._hosted, condition.feature)] = None

    def see(self, site: Site, x: Tensor) -> None:
        """Remember a watched site: the live tensor, so that writes to come are seen too."""
        if site in self.watched:
            self._latest[site] = x

    def holds(self, row: int, condition: Condition, columns: Tensor) -> Tensor:
        """Say where in a row the condition's feature is large enough, bool `(len(columns),)`."""
        feature = condition.feature
        x = self._latest[feature_site(self._hosted, feature)][row, columns]
        if feature.replacement == NEURONS:
            return x[:, feature.index] >= condition.at_least
        with opened(self._hosted, feature.replacement, [feature.layer]) as layers:
            _, found = activations_of(layers[feature.layer], x, [feature.index])
        return found[:, 0] >= condition.at_least

    def read(self, placed: PlacedLayerWrite, x: Tensor) -> None:
        """Encode a layer's input in one row and keep what its outputs will receive."""
        found = placed.read(self._hosted, x, partial(self.holds, placed.row))
        self._arrivals |= {(placed, site): arrival for site, arrival in found.items()}

    def arrive(self, placed: PlacedLayerWrite, site: Site, x: Tensor) -> None:
        """Write what a layer's changed features bring to an output site."""
        self._arrivals.pop((placed, site)).apply(x)


def _touch(site: Site, actions: Sequence[_Action], scene: _Scene, request: Pass, x: Tensor) -> None:
    scene.see(site, x)
    if request.before and site in request.reads:
        request.values[site] = x.clone()
    for action in actions:
        action.act(x[action.row])
    if site in request.reads and not request.before:
        request.values[site] = x.clone()
