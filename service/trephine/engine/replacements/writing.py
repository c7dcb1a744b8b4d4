"""Changing features of a loaded set during a forward pass: read at one site, written at its outputs.

With the error term `live` an output becomes y + (f' - f) W_dec, f read off the current input: whatever the
dictionary does not explain stays as it is. With `frozen` and `drop` it becomes the reconstruction with f',
plus the clean run's error or nothing (DESIGN 5.3). f' is worked out once per layer and row, so that several
operations on one feature act one after the other and not each on a freshly encoded output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from trephine.domain.interventions import Condition, ErrorTerm, Selector
from trephine.domain.replacements import SupportRule
from trephine.domain.sites import Site
from trephine.engine.interventions.changes import Change
from trephine.engine.interventions.selection import Span, selected_positions
from trephine.engine.interventions.tallies import Tally
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import Code, ReplacementLayer
from trephine.engine.replacements.sets import opened

Holds = Callable[[Condition, Tensor], Tensor]
"""Says where, among some columns of a row, a condition holds: bool `(len(columns),)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureChange:
    """One intervention on one feature of the layer."""

    index: int
    selector: Selector
    condition: Condition | None
    change: Change
    tally: Tally


@dataclass(frozen=True, kw_only=True)
class LayerWrite:
    """All changes of one replacement layer's features in one row."""

    replacement: str
    layer: int
    source: Site
    outputs: tuple[Site, ...]
    error_term: ErrorTerm
    changes: tuple[FeatureChange, ...]
    errors: Mapping[Site, Tensor]
    """With `frozen`: the clean run's error `(n_pos, width)` at the output site, by absolute position."""

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The features, each once, in the order in which they are first named."""
        return tuple(dict.fromkeys(change.index for change in self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What reaches an output site in one row: added, or put in the place of what is there."""

    columns: Tensor
    values: Tensor
    """`(len(columns), width)`."""
    replaces: bool

    def apply(self, x: Tensor) -> None:
        """Write into one row's `x (columns, width)` in place."""
        if self.replaces:
            x[self.columns] = self.values.to(x.dtype)
        else:
            x[self.columns] = (x[self.columns].to(torch.float64) + self.values).to(x.dtype)


class PlacedLayerWrite:
    """A layer's changes and the columns of their row in this pass."""

    def __init__(self, write: LayerWrite, span: Span, device: torch.device) -> None:
        self.write, self.row = write, span.row
        places = [selected_positions(change.selector, span) for change in write.changes]
        self.positions = sorted({position for chosen in places for position in chosen})
        place = {position: number for number, position in enumerate(self.positions)}
        self._chosen = [torch.tensor([place[p] for p in chosen], dtype=torch.long) for chosen in places]
        shift = span.offset - span.first
        self.columns = torch.tensor([p + shift for p in self.positions], dtype=torch.long, device=device)

    def read(self, hosted: HostedModel, x: Tensor, holds: Holds) -> dict[Site, Arrival]:
        """Encode the row's `x (columns, d_in)` at the source and work out what each output receives."""
        write, old = self.write, x[self.columns]
        with opened(hosted, write.replacement, [write.layer]) as layers:
            layer = layers[write.layer]
            code, before = activations_of(layer, old, write.indices)
            after = self._changed(before, old, holds)
            if write.error_term is ErrorTerm.LIVE:
                return self._added(layer, code, after - before)
            return self._replaced(layer, old, after)

    def _changed(self, before: Tensor, old: Tensor, holds: Holds) -> Tensor:
        """Apply the changes one after the other to float64 `(n, k)`."""
        after = before.clone()
        for change, chosen in zip(self.write.changes, self._chosen, strict=True):
            rows = chosen.to(before.device)
            if change.condition is not None:
                rows = rows[holds(change.condition, self.columns[rows])]
            if rows.numel() == 0:
                continue
            place = self.write.indices.index(change.index)
            values = after[rows, place, None]
            new = change.change(values, old[rows], [self.positions[i] for i in rows.tolist()])
            after[rows, place] = new[:, 0]
            change.tally.add((new - values).abs()[:, 0])
        return after

    def _added(self, layer: ReplacementLayer, code: Code, difference: Tensor) -> dict[Site, Arrival]:
        scale = code.scale_out.to(torch.float64) if isinstance(code.scale_out, Tensor) else code.scale_out
        return {
            site: Arrival(
                columns=self.columns,
                values=difference @ layer.decoders(self.write.indices, site).to(torch.float64) * scale,
                replaces=False,
            )
            for site in self.write.outputs
        }

    def _replaced(self, layer: ReplacementLayer, old: Tensor, after: Tensor) -> dict[Site, Arrival]:
        code = layer.encode(old)
        activations = code.activations.clone()
        activations[:, list(self.write.indices)] = after.to(activations.dtype)
        changed = replace(code, activations=activations)
        (site,) = self.write.outputs
        values = layer.decode(changed)[site]
        skip = layer.skip(old, changed)
        if skip is not None:
            values = values + skip
        if self.write.error_term is ErrorTerm.FROZEN:
            values = values + self.write.errors[site][self.positions].to(values)
        return {site: Arrival(columns=self.columns, values=values, replaces=True)}


def activations_of(layer: ReplacementLayer, x: Tensor, indices: Sequence[int]) -> tuple[Code, Tensor]:
    """Return the code's scale and float64 activations `(n, k)` of some features at `x (n, d_in)`.

    Where the support rule looks at one feature at a time and the input is not normalised, only these
    features are computed; the code then holds nothing but them.
    """
    info = layer.info
    alone = info.support not in (SupportRule.TOPK, SupportRule.ABS_TOPK)
    if alone and info.normalisation == "none":
        found = layer.encode_features(x, indices)
        code = Code(pre=found, activations=found, active=found != 0)
        return code, found.to(torch.float64)
    code = layer.encode(x)
    return code, code.activations[:, list(indices)].to(torch.float64)
