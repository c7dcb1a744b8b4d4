"""How much of a behaviour a circuit carries on contexts that it was not found on, random circuits beside it.

Faithfulness is (m(C) - m(0)) / (m(M) - m(0)) with everything outside C ablated, completeness the same of
C's complement (Marks et al. 2025). Intervals are percentiles over resampled contexts, of ratios of means.
Where ablating everything hardly moves m there is nothing to share out: shares are NaN, nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import CurvePoint, Discretion, Faithfulness, NodeAblation
from trephine.domain.findings import Figure
from trephine.domain.interventions import ErrorTerm
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.dataset_circuits.ablated import AblatedModel, Start, keeping, start_at
from trephine.engine.dataset_circuits.packs import Pack, capture_layout
from trephine.engine.dataset_circuits.patches import States, baseline, states_of, twin_states
from trephine.engine.dataset_circuits.selection import random_like, ranked
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel

GOAL = 0.8
FLOOR = 0.01
"""Of the metric's mean size; m(M) - m(0) must be more for a share of it to mean anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is measured: a circuit, its stable core, the strongest nodes in every budget, random circuits."""

    circuit: Tensor
    """int64, nodes."""
    core: Tensor | None
    curve: tuple[Tensor, ...]
    random: tuple[Tensor, ...]

    def all(self) -> list[Tensor]:
        """Every circuit whose complement is measured too, then the random ones."""
        return [self.circuit, *([] if self.core is None else [self.core]), *self.curve, *self.random]

    @property
    def with_complement(self) -> int:
        """How many of `all` have their complement measured."""
        return 1 + (self.core is not None) + len(self.curve)

    @property
    def has_controls(self) -> bool:
        """False where no random circuit differs from the circuit: there were no other nodes to draw."""
        nodes = set(self.circuit.tolist())
        return any(set(other.tolist()) != nodes for other in self.random)


def to_measure(
    space: NodeSpace,
    effects: Tensor,
    circuit: Tensor,
    core: Tensor | None,
    size: Discretion,
    seed: int,
    *,
    all_told: bool = True,
) -> Measured:
    """Lay out what is measured: budgets are 1, 2, 4, ... and all nodes with an effect.

    Where effects were not measured of all nodes (`all_told`), random circuits are drawn from all: of those
    alone that were, they would be the circuit itself.
    """
    order, generator = ranked(effects), torch.Generator().manual_seed(seed)
    allowed = effects != 0 if all_told else torch.ones_like(effects, dtype=torch.bool)
    budgets = [2**k for k in range(len(order).bit_length()) if 2**k < len(order)] + [len(order)]
    return Measured(
        circuit=circuit,
        core=core,
        curve=tuple(order[:budget] for budget in budgets) if size.curve else (),
        random=_random(space, circuit, allowed, size.random_circuits, generator),
    )


def _random(
    space: NodeSpace, circuit: Tensor, allowed: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    if not count:
        return ()
    groups = space.groups(torch.arange(space.count))
    return random_like(circuit, groups, allowed, count=count, generator=generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Metrics of every context of one ablation, `(n_contexts,)` each."""

    whole: Tensor
    empty: Tensor
    inside: Tensor
    """`(n_circuits, n_contexts)`."""
    outside: Tensor
    """`(n_with_complement, n_contexts)`."""


def measure_faithfulness(
    hosted: HostedModel,
    space: NodeSpace,
    packed: Sequence[Pack],
    measured: Measured,
    means: States,
    *,
    ablations: Sequence[NodeAblation],
    error_term: ErrorTerm,
    size: Discretion,
    seed: int,
    stage: str,
) -> Generator[Progress | None, None, tuple[Faithfulness, ...]]:
    """Measure circuits on held-out packs, one pass a quantum."""
    tables: dict[NodeAblation, list[_Table]] = {ablation: [] for ablation in ablations}
    done, total = 0, len(packed) * len(ablations)
    for pack in packed:
        runs = yield from _runs(hosted, space, pack, ablations, error_term)
        for ablation in ablations:
            yield Progress(stage=stage, done=done, total=total, detail=ablation.value)
            replaced = baseline(space, pack, ablation, means=means, twins=runs.twins, like=runs.clean)
            tables[ablation].append(
                (yield from _measure_pack(hosted, space, pack, measured, runs, replaced, error_term))
            )
            done += 1
    yield Progress(stage=stage, done=total, total=total)
    return tuple(
        _result(ablation, _joined(found), measured, size, seed) for ablation, found in tables.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    whole: Tensor
    start: Start
    clean: States
    twins: States | None


def _runs(
    hosted: HostedModel,
    space: NodeSpace,
    pack: Pack,
    ablations: Sequence[NodeAblation],
    error_term: ErrorTerm,
) -> Generator[None, None, _Runs]:
    errors = error_term is not ErrorTerm.LIVE and space.has_sets
    operators = capture_layout(hosted, pack.clean)
    require_finite(operators)
    clean = states_of(hosted, space, operators, errors=errors)
    with torch.inference_mode():
        whole = pack.metric(operators.final).float().cpu()
    start = start_at(operators, min(space.layers))
    del operators  # every layer's values of a pack: more than all that is kept
    yield
    twins = None
    if NodeAblation.RESAMPLE in ablations:
        states = states_of(hosted, space, capture_layout(hosted, pack.twins), errors=errors)
        twins = twin_states(states, pack)
        yield
    return _Runs(whole=whole, start=start, clean=clean, twins=twins)


def _measure_pack(
    hosted: HostedModel,
    space: NodeSpace,
    pack: Pack,
    measured: Measured,
    runs: _Runs,
    replaced: States,
    error_term: ErrorTerm,
) -> Generator[None, None, _Table]:
    model = AblatedModel(hosted, space, error_term)

    def metric(circuit: Tensor) -> Tensor:
        change = keeping(space, pack, circuit, replaced)
        return model.metric(pack, change, clean=runs.clean, replaced=replaced, start=runs.start).float()

    nothing = torch.zeros(space.count, dtype=torch.bool)
    empty, inside, outside = metric(nothing), [], []
    yield
    for number, nodes in enumerate(measured.all()):
        circuit = nothing.clone()
        circuit[nodes] = True
        inside.append(metric(circuit))
        yield
        if number < measured.with_complement:
            outside.append(metric(~circuit))
            yield
    return _Table(whole=runs.whole, empty=empty, inside=torch.stack(inside), outside=torch.stack(outside))


def _joined(tables: Sequence[_Table]) -> _Table:
    return _Table(
        whole=torch.cat([table.whole for table in tables]),
        empty=torch.cat([table.empty for table in tables]),
        inside=torch.cat([table.inside for table in tables], 1),
        outside=torch.cat([table.outside for table in tables], 1),
    )


def _result(
    ablation: NodeAblation, table: _Table, measured: Measured, size: Discretion, seed: int
) -> Faithfulness:
    points = _Points(table, size.bootstrap, seed)
    sizes = [len(nodes) for nodes in measured.all()]
    first_curve = 1 + (measured.core is not None)
    curve = tuple(points.at(k, sizes[k]) for k in range(first_curve, measured.with_complement))
    random = tuple(points.ratio(row) for row in table.inside[measured.with_complement :])
    circuit = points.at(0, sizes[0])
    return Faithfulness(
        ablation=ablation,
        examples=len(table.whole),
        whole=points.mean("whole", table.whole),
        empty=points.mean("empty", table.empty),
        circuit=circuit,
        core=None if measured.core is None else points.at(1, sizes[1]),
        curve=curve,
        random=random,
        p_value=_p_value(circuit.faithfulness.value, random) if measured.has_controls else None,
        nodes_for_80=_reached(curve),
    )


def _p_value(value: float, random: Sequence[float]) -> float | None:
    """Count random circuits at or above the circuit; None without any, and where a share is not finite."""
    if not random or not all(map(isfinite, (value, *random))):
        return None
    return (1 + sum(other >= value for other in random)) / (len(random) + 1)


def _reached(curve: Sequence[CurvePoint]) -> int | None:
    """Return the smallest budget that reaches the goal; a curve may fall again beyond it."""
    return next((point.nodes for point in curve if point.faithfulness.value >= GOAL), None)


class _Points:
    """Ratios of means with bootstrap intervals; every figure resamples the same contexts."""

    def __init__(self, table: _Table, resamples: int, seed: int) -> None:
        contexts = len(table.whole)
        generator = torch.Generator().manual_seed(seed)
        self._table = table
        self._draws = torch.randint(contexts, (resamples, contexts), generator=generator)
        moved = abs(float(table.whole.mean() - table.empty.mean()))
        self._moves = moved > FLOOR * float(torch.maximum(table.whole.abs().mean(), table.empty.abs().mean()))

    def mean(self, name: str, values: Tensor) -> Figure:
        """Mean over contexts, logits."""
        return _figure(name, float(values.mean()), values[self._draws].mean(1), "logits")

    def ratio(self, values: Tensor) -> float:
        """Return (mean - empty) / (whole - empty); NaN where the two hardly differ."""
        return float(self._ratios(values[None], slice(None))[0])

    def at(self, number: int, nodes: int) -> CurvePoint:
        """Describe the circuit of that number."""
        inside, outside = self._table.inside[number], self._table.outside[number]
        return CurvePoint(
            nodes=nodes,
            faithfulness=self._share("faithfulness", inside),
            completeness=self._share("completeness", outside),
            metric=float(inside.mean()),
        )

    def _share(self, name: str, values: Tensor) -> Figure:
        drawn = self._ratios(values[self._draws], self._draws)
        return _figure(name, self.ratio(values), drawn, "")

    def _ratios(self, values: Tensor, draws: Tensor | slice) -> Tensor:
        whole, empty = self._table.whole[draws], self._table.empty[draws]
        base = empty.mean(-1)
        return (values.mean(-1) - base) / (whole.mean(-1) - base) if self._moves else values.mean(-1) * nan


def _figure(name: str, value: float, drawn: Tensor, unit: str) -> Figure:
    finite = drawn[drawn.isfinite()].double()
    if not len(finite):
        return Figure(name=name, value=value, low=nan, high=nan, unit=unit)
    low, high = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Figure(name=name, value=value, low=low, high=high, unit=unit)
