"""The ridge tier: what no neuron can compute, fitted on what the module that writes there reads.

Per fitted operation the wanted change is a number per token times a direction, c(t) d. The module's own
input k cannot give c exactly; the best linear guess is a.k with a = (K'K + rho I)^-1 K'c over all tokens,
those where nothing is to change included, so that they are preserved. Solved in float64 in the order of the
layers, each on activations captured with the earlier deltas in place; position 0, whose norm would rule the
sums, is left out. What the fit leaves over is measured on windows that it has not seen, and that have not
chosen its ridge either (`held_out`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trephine.domain.interventions import Intervention
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.weights.behind import behind, fit_behind
from trephine.engine.weights.capture import Deltas, Windows, captured, stacked
from trephine.engine.weights.held_out import Split, best_ridge, split
from trephine.engine.weights.linear import MapOp, When, later, when
from trephine.engine.weights.operations import FeatureOp, Operations, places_of
from trephine.engine.weights.placing import post_normed, writer_of, writers_before

_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the mean diagonal of K'K. Long texts want the least, short ones more; windows kept back decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedDelta:
    """A low-rank delta of one module."""

    place: Site
    """Output of the module."""
    module: nn.Module
    left: Tensor
    """float64 `(d_out, k)`."""
    right: Tensor
    """float64 `(k, d_in)`."""
    explained: Mapping[int, float | None]
    """First intervention of each operation -> R^2 on the windows that test; None: it changes nothing there.
    Behind a norm, whose answer all operations share, it is that of all of them together."""
    parts: Split
    """Which windows these were, and whether the fit had seen them."""
    acting: frozenset[int]
    """Those of them that change something on the calibration text."""
    floor: float = 0.0
    """Share of the change's square that no weights in front of a norm leave less of."""
    arrivals: tuple[When, ...] = ()
    """When each column of `left` arrives: maps of the same output that act later map it too. Empty behind a
    norm, where there are none."""

    def carries(self, number: int) -> bool:
        """True if an operation, by its first intervention, changed something on the calibration text."""
        return number in self.acting and bool(self.right.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """One operation's change at one output."""

    number: int
    direction: Tensor
    """float64 `(d_out,)`."""
    amounts: list[Tensor]
    """Per window, float64 `(n_pos,)`."""
    arrives: When


def fit_deltas(
    hosted: HostedModel,
    ops: Operations,
    windows: Windows,
    interventions: Mapping[int, Intervention],
) -> Generator[None, None, tuple[FittedDelta, ...]]:
    """Fit every operation, output by output, from the first layer to the last.

    Args:
        hosted: The model.
        ops: All of the edit's.
        windows: The calibration text.
        interventions: By number, those that are not fitted.
    """
    by_place: dict[Site, list[FeatureOp | MapOp]] = {}
    for op in ops.fits:
        for place in places_of(hosted, op):
            by_place.setdefault(place, []).append(op)
    found: list[FittedDelta] = []
    for place in sorted(by_place, key=lambda site: len(writers_before(hosted, site))):
        deltas: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        for done in found:
            deltas[done.module] = (done.left, done.right)
        found.append((yield from _fit(hosted, place, by_place[place], ops, windows, interventions, deltas)))
    return tuple(found)


def module_of(hosted: HostedModel, place: Site) -> tuple[nn.Module, Site]:
    """Return the linear module that writes a place, and the site that it reads."""
    block = hosted.architecture.blocks[place.layer]
    if place.kind is SiteKind.ATTN_OUT:
        return block.attention.out, Site(kind=SiteKind.ATTN_Z, layer=place.layer)
    return block.mlp.down, Site(kind=SiteKind.NEURONS, layer=place.layer)


def _fit(
    hosted: HostedModel,
    place: Site,
    mine: Sequence[FeatureOp | MapOp],
    ops: Operations,
    windows: Windows,
    interventions: Mapping[int, Intervention],
    deltas: Deltas,
) -> Generator[None, None, FittedDelta]:
    module, site_in = module_of(hosted, place)
    values = yield from _found(hosted, mine, ops, windows, interventions, deltas)
    wanted = [_wanted(hosted, op, place, ops.maps, x) for op, x in zip(mine, values, strict=True)]
    # The delta reads what reaches the module: neurons and heads are scaled by the matrix, not in front of it.
    kept = tuple(interventions.values())
    read = (yield from captured(hosted, windows, [site_in], kept, deltas, before=True))[site_in]
    yield
    parts = split(len(windows))
    floor, arrivals = 0.0, tuple(each.arrives for each in wanted)
    if post_normed(hosted, place):
        changes = [_together(wanted, window) for window in range(len(windows))]
        fit = fit_behind(behind(hosted, place), read, changes, parts)
        left, right, floor, arrivals = fit.left, fit.right, fit.floor, ()
        explained = {each.number: fit.explained for each in wanted}
    else:
        right = _solved(read, wanted, parts)
        left = torch.stack([each.direction for each in wanted], dim=1)
        explained = {
            each.number: _explained(read, each, row, parts.testing)
            for each, row in zip(wanted, right, strict=True)
        }
    acting = {each.number for each in wanted if any(bool(each.amounts[n][1:].any()) for n in parts.taken)}
    return FittedDelta(
        place=place,
        module=module,
        left=left,
        right=right,
        explained=explained,
        parts=parts,
        acting=frozenset(acting),
        floor=floor,
        arrivals=arrivals,
    )


def _found(
    hosted: HostedModel,
    mine: Sequence[FeatureOp | MapOp],
    ops: Operations,
    windows: Windows,
    interventions: Mapping[int, Intervention],
    deltas: Deltas,
) -> Generator[None, None, list[list[Tensor]]]:
    """Return what each operation finds, per window `(n_pos, width)`; what acts later there has not acted."""
    asked: dict[frozenset[int], list[Site]] = {}
    for op in mine:
        asked.setdefault(_still_to_come(hosted, op, ops), []).append(_source(hosted, op))
    found: dict[frozenset[int], Mapping[Site, list[Tensor]]] = {}
    for left_out, sites in asked.items():
        rest = tuple(one for number, one in interventions.items() if number not in left_out)
        found[left_out] = yield from captured(hosted, windows, tuple(dict.fromkeys(sites)), rest, deltas)
    return [found[_still_to_come(hosted, op, ops)][_source(hosted, op)] for op in mine]


def _still_to_come(hosted: HostedModel, op: FeatureOp | MapOp, ops: Operations) -> frozenset[int]:
    """List what acts where an operation reads, and after it; a set that writes elsewhere reads last."""
    source = _source(hosted, op)
    if isinstance(op, FeatureOp):
        ref = op.feature
        if source not in layer_info(hosted, ref.replacement, ref.layer).sites_out:
            return frozenset()
    moment = _arrives(op, source)
    later_maps = {one.number for one in ops.maps if one.origin == source and one.when > moment}
    grafts = (
        one
        for one in ops.grafts
        if source == Site(kind=SiteKind.MLP_OUT, layer=one.feature.layer) and _arrives(one, source) > moment
    )
    return frozenset(later_maps.union(*(one.numbers for one in grafts)))


def _arrives(op: FeatureOp | MapOp, site: Site) -> When:
    """Return when an operation acts at a site that it writes."""
    return op.when if isinstance(op, MapOp) else when(site, op.arrives)


def number_of(op: FeatureOp | MapOp) -> int:
    """Return the first intervention of an operation."""
    return op.number if isinstance(op, MapOp) else op.numbers[0]


def _source(hosted: HostedModel, op: FeatureOp | MapOp) -> Site:
    if isinstance(op, MapOp):
        return op.site
    return layer_info(hosted, op.feature.replacement, op.feature.layer).site_in


def _wanted(
    hosted: HostedModel, op: FeatureOp | MapOp, place: Site, maps: Sequence[MapOp], values: Sequence[Tensor]
) -> _Wanted:
    if isinstance(op, MapOp):
        if op.unit is None:
            raise ValueError("a whole site is scaled exactly, never fitted")
        unit = op.unit
        coordinates = [x.to(torch.float64) @ unit for x in values]
        amounts = [op.change(c[:, None], c, ())[:, 0] - c for c in coordinates]
        if op.site.kind is SiteKind.ATTN_Z:
            output = hosted.architecture.blocks[op.site.layer].attention.W_O
            unit = output.flatten(1).to(torch.float64).cpu() @ later(len(unit), maps, op.site, op.when)(unit)
        return _Wanted(number=op.number, direction=unit, amounts=amounts, arrives=op.when)
    ref = op.feature
    info = layer_info(hosted, ref.replacement, ref.layer)
    site = next(s for s in info.sites_out if writer_of(hosted, s) == place)
    with opened(hosted, ref.replacement, [ref.layer]) as layers:
        layer = layers[ref.layer]
        direction = layer.decoders([ref.index], site)[0].to(torch.float64).cpu()
        amounts = []
        for x in values:
            code = layer.encode(x.to(layer.decoder_norms().device))
            before = code.activations[:, ref.index].to(torch.float64)
            after = before
            for change, at_least in op.changes:
                new = change(after[:, None], after, ())[:, 0]
                after = new if at_least is None else torch.where(before >= at_least, new, after)
            scale = code.scale_out
            wide = scale.to(torch.float64)[:, 0] if isinstance(scale, Tensor) else scale
            amounts.append(((after - before) * wide).cpu())
    return _Wanted(number=op.numbers[0], direction=direction, amounts=amounts, arrives=_arrives(op, site))


def _together(wanted: Sequence[_Wanted], window: int) -> Tensor:
    """Sum all operations' changes of a window, float64 `(n_pos, d_out)`."""
    return sum(
        (each.amounts[window][:, None] * each.direction for each in wanted[1:]),
        wanted[0].amounts[window][:, None] * wanted[0].direction,
    )


def _solved(inputs: Sequence[Tensor], wanted: Sequence[_Wanted], parts: Split) -> Tensor:
    """Return `(k, d_in)`, one row of coefficients per operation, each under the ridge that explains most.

    The ridge is chosen on windows that the fit which it is tried in has not seen. What changes nothing there
    has too few tokens to be trusted, and the strongest.
    """
    system = _System.of(inputs, wanted, parts.fitting)
    scores = [
        [_explained(inputs, each, row, parts.choosing) for each, row in zip(wanted, rows, strict=True)]
        for rows in map(system.solved, _RIDGES)
    ]
    chosen = [best_ridge(_RIDGES, column) for column in zip(*scores, strict=True)]
    final = _System.of(inputs, wanted, parts.taken)
    solved = {ridge: final.solved(ridge) for ridge in set(chosen)}
    return torch.stack([solved[ridge][place] for place, ridge in enumerate(chosen)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """The normal equations of all operations of a place, on some windows."""

    gram: Tensor
    """float64 `(d_in, d_in)`."""
    moments: Tensor
    """`(d_in, k)`."""

    @classmethod
    def of(cls, inputs: Sequence[Tensor], wanted: Sequence[_Wanted], chosen: Sequence[int]) -> _System:
        """Set them up."""
        K = stacked([inputs[number] for number in chosen], after_first=True).to(torch.float64)
        C = torch.stack(
            [stacked([each.amounts[number] for number in chosen], after_first=True) for each in wanted], dim=1
        )
        return cls(gram=K.T @ K, moments=K.T @ C)

    def solved(self, ridge: float) -> Tensor:
        """Return the coefficients `(k, d_in)` under a ridge."""
        loaded = self.gram.clone()
        loaded.diagonal().add_(ridge * self.gram.diagonal().mean())
        return torch.cholesky_solve(self.moments, torch.linalg.cholesky(loaded)).T.contiguous()


def _explained(inputs: Sequence[Tensor], wanted: _Wanted, row: Tensor, chosen: Sequence[int]) -> float | None:
    """Return 1 - squared error over squared change on some windows; None where nothing is to change."""
    K = stacked([inputs[number] for number in chosen], after_first=True).to(torch.float64)
    c = stacked([wanted.amounts[number] for number in chosen], after_first=True)
    size = float(c.square().sum())
    return 1.0 - float((K @ row - c).square().sum()) / size if size else None
