"""What an edit does beside features of sets: neurons, heads and directions, each held against what it does.

Where all of an edit is exact, KL from the runtime holds all of it. Beside grafts and fits, which are granted
a share of the whole edit's KL, a step that is lost or wrong may be less than that share. What is one thing is
one part: a layer's neurons, a layer's heads, one direction wherever it is changed alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.interventions.changes import Affine, affine
from trephine.engine.weights.linear import MapOp
from trephine.engine.weights.operations import NeuronOp, Operations

_PARALLEL = 1 - 1e-9
_WINDOWS, _TOKENS = 2, 32
"""Of what acts everywhere: the windows where it does most, and the tokens in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change of one number per token, or of all of them."""

    site: Site
    coordinate: int | Tensor | None
    """A neuron, a unit vector float64 `(width,)`, or all that is there."""
    change: Affine

    def size(self, x: Tensor) -> Tensor:
        """Return how far it moves each token of `x (n_pos, width)`, squared, float64 `(n_pos,)`."""
        wide = x.to(torch.float64)
        if self.coordinate is None:
            values = wide
        elif isinstance(self.coordinate, int):
            values = wide[:, [self.coordinate]]
        else:
            values = wide @ self.coordinate.to(x.device)[:, None]
        return (self.change(values, wide, ()) - values).square().sum(-1).cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that an edit does."""

    name: str
    """SITE:LAYER:interventions[N], of the first of its sites."""
    numbers: tuple[int, ...]
    """Which interventions of the edit it is, ascending."""
    steps: tuple[Step, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it acts."""
        return tuple(dict.fromkeys(step.site for step in self.steps))

    def masks(self, values: dict[Site, list[Tensor]]) -> list[Tensor]:
        """Choose tokens on which it does most, of the windows where that is most.

        Args:
            values: Per site, per window, `(n_pos, width)`.

        Returns:
            Per window, bool `(n_pos,)`; position 0, an attention sink, is left out.
        """
        n_windows = len(values[self.steps[0].site])
        sizes = [
            sum(
                (step.size(values[step.site][window])[1:] for step in self.steps[1:]),
                self._first(values, window),
            )
            for window in range(n_windows)
        ]
        masks = [torch.zeros(len(size) + 1, dtype=torch.bool) for size in sizes]
        tops = [size.topk(min(_TOKENS, len(size))) for size in sizes]
        for window in sorted(range(n_windows), key=lambda n: -float(tops[n].values.sum()))[:_WINDOWS]:
            masks[window][tops[window].indices[tops[window].values > 0.0] + 1] = True
        return masks

    def _first(self, values: dict[Site, list[Tensor]], window: int) -> Tensor:
        step = self.steps[0]
        return step.size(values[step.site][window])[1:]


def parts_of(ops: Operations) -> tuple[Part, ...]:
    """List what an edit does beside features and bounds, which have tokens of their own."""
    neurons = sorted((op for op in ops.neurons if op.factor != 1.0 or op.shift), key=lambda op: op.layer)
    found = [_neurons(list(each)) for _, each in groupby(neurons, key=lambda op: op.layer)]
    fitted = [op for op in ops.fits if isinstance(op, MapOp) and op.is_affine]
    maps = sorted((*ops.maps, *fitted), key=lambda op: op.number)
    changing = [op for op in maps if float(op.change.factor) != 1.0 or float(op.change.shift)]
    return (*found, *map(_maps, _together(changing)))


def _together(maps: Sequence[MapOp]) -> list[list[MapOp]]:
    groups: list[list[MapOp]] = []
    for op in maps:
        group = next((each for each in groups if _is_same(each[0], op)), None)
        if group is None:
            groups.append([op])
        else:
            group.append(op)
    return groups


def _is_same(one: MapOp, other: MapOp) -> bool:
    """True for the heads of one layer, and for one direction that is changed alike."""
    if SiteKind.ATTN_Z in (one.origin.kind, other.origin.kind):
        return one.origin == other.origin
    if one.unit is None or other.unit is None or one.unit.shape != other.unit.shape:
        return False
    alike = bool(one.change.factor == other.change.factor)
    return alike and one.is_shift == other.is_shift and abs(float(one.unit @ other.unit)) > _PARALLEL


def _neurons(ops: Sequence[NeuronOp]) -> Part:
    site = Site(kind=SiteKind.NEURONS, layer=ops[0].layer)
    steps = tuple(Step(site=site, coordinate=op.index, change=affine(op.factor, op.shift)) for op in ops)
    return _part(site, (n for op in ops for n in op.numbers), steps)


def _maps(ops: Sequence[MapOp]) -> Part:
    steps = tuple(Step(site=op.origin, coordinate=op.unit, change=op.change) for op in ops)
    return _part(ops[0].origin, (op.number for op in ops), steps)


def _part(site: Site, numbers: Iterable[int], steps: tuple[Step, ...]) -> Part:
    ordered = tuple(sorted(numbers))
    runs = [[n for _, n in run] for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    spelled = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    name = f"{site.kind.value}:{site.layer}:interventions[{spelled}]"
    return Part(name=name, numbers=ordered, steps=steps)
