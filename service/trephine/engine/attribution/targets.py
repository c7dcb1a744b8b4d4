"""What a graph explains, on one prompt: weighted read-outs of the residual stream, and how to measure them.

Each read-out enters the stream at one place (an attention score at two). The graph follows its derivative
with norm scales frozen; effects follow the exact one; ablations measure the quantity itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Selector
from trephine.domain.sites import NEURONS, FeatureRef, Site
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import AFTER, BEFORE, PER_BLOCK
from trephine.engine.attribution.readouts import LogitReadout, StreamRead, Targets
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.rows import RowInput, run_rows

Cotangents = Mapping[int, Tensor]
"""Derivative of a quantity by the stream, `(n_pos, d_model)`, by the place that it is read at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart:
    """Where a read-out enters the stream."""

    place: int
    """As in `trephine.engine.attribution.places`."""
    position: int
    adjoint: Tensor
    """`(d_model,)`, the derivative by the stream with norm scales frozen."""
    constant: float
    """What constants between stream and read-out add."""
    total: float
    """What everything that enters must sum to."""
    live: Tensor
    """`(d_model,)`, the exact derivative, nothing frozen."""


class Gauge(Protocol):
    """Measures a read-out on a run of the model."""

    @property
    def site(self) -> Site | None:
        """What is read; None: the logits."""
        ...

    @property
    def position(self) -> int:
        """Where."""
        ...

    @property
    def reads_changed(self) -> bool:
        """True if what is written at the site by a dictionary or mask there counts, not what stood before."""
        ...

    def measure(self, values: Tensor) -> Tensor:
        """Return the quantity, a scalar, for what stands at the site, `(n_pos, width)`, or `(d_vocab,)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitGauge:
    """Reads a logit, or a difference, at a position."""

    readout: LogitReadout
    position: int

    @property
    def site(self) -> None:
        """The logits."""
        return

    @property
    def reads_changed(self) -> bool:
        """Nothing is written at logits."""
        return False

    def measure(self, values: Tensor) -> Tensor:
        """Undo a soft cap and read."""
        return self.readout.measure(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGauge:
    """Multiplies what stands at a site by a vector."""

    site: Site
    position: int
    vector: Tensor
    """`(width,)`."""

    @property
    def reads_changed(self) -> bool:
        """A feature reads what arrives, and so does a direction."""
        return False

    def measure(self, values: Tensor) -> Tensor:
        """Read."""
        return values[self.position].to(self.vector.dtype) @ self.vector


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReadout:
    """One target node."""

    about: ExplainedTarget
    parts: tuple[ReadPart, ...]
    gauge: Gauge
    feature: int
    """Vocabulary id of a logit, index of a feature; -1 otherwise."""
    activation: float
    """What its node shows: a logit's (difference of) probability, else its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Everything that a graph explains; the quantity is the sum of its targets, each times its share."""

    targets: tuple[TargetReadout, ...]
    n_pos: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights, in the order of the targets."""
        return tuple(target.about.share for target in self.targets)

    @property
    def baseline(self) -> float:
        """The quantity on the clean prompt."""
        return sum(target.about.share * target.about.value for target in self.targets)

    @property
    def softcap(self) -> bool:
        """True if a logit is read before the model's soft cap."""
        gauges = [target.gauge for target in self.targets]
        return any(isinstance(g, LogitGauge) and g.readout.softcap is not None for g in gauges)

    @property
    def last_logits_only(self) -> bool:
        """True if logits at the last position decide the quantity."""
        return all(t.gauge.site is None and t.gauge.position == self.n_pos - 1 for t in self.targets)

    @property
    def gains(self) -> tuple[float, ...]:
        """What the quantity loses where what enters a target's row is removed, per unit of the row."""
        return tuple(target.about.share * target.about.slope for target in self.targets)

    def cotangents(self, *, live: bool) -> Cotangents:
        """Return the derivative of the quantity, exact or with norm scales frozen."""
        if live:
            shares = zip(self.targets, self.shares, strict=True)
            return self._summed((part, part.live, share) for one, share in shares for part in one.parts)
        gains = zip(self.targets, self.gains, strict=True)
        return self._summed((part, part.adjoint, gain) for one, gain in gains for part in one.parts)

    def roots(self) -> Cotangents:
        """Return what rows begin with, norm scales frozen: products with it add up to the quantity."""
        return self._summed(
            (part, part.adjoint, target.about.share) for target in self.targets for part in target.parts
        )

    def _summed(self, parts: Iterable[tuple[ReadPart, Tensor, float]]) -> Cotangents:
        found: dict[int, Tensor] = {}
        for part, vector, weight in parts:
            if part.place not in found:
                found[part.place] = vector.new_zeros(self.n_pos, len(vector))
            found[part.place][part.position] += weight * vector
        return found

    def of_last_logits(self, logits: Tensor) -> Tensor:
        """Measure the quantity on last logits `(rows, d_vocab)`: `(rows,)`."""
        parts = [target.about.share * target.gauge.measure(logits) for target in self.targets]
        return torch.stack(parts).sum(0)

    def on_rows(self, hosted: HostedModel, rows: Sequence[RowInput]) -> Tensor:
        """Run rows of the prompt and measure the quantity in each, float64 `(rows,)`, on the CPU."""
        gauges = [target.gauge for target in self.targets]
        sites = sorted({gauge.site for gauge in gauges if gauge.site is not None})
        first = min((g.position for g in gauges if g.site is None), default=self.n_pos - 1)
        changed = any(gauge.reads_changed for gauge in gauges)  # all alike: a circuit explains one kind
        output = run_rows(hosted, rows, reads=sites, reads_before=not changed, keep_last=self.n_pos - first)
        found = torch.zeros(len(rows), dtype=torch.float64)
        for row in range(len(rows)):
            for gauge, share in zip(gauges, self.shares, strict=True):
                values = (
                    output.logits[row][gauge.position - first]
                    if gauge.site is None
                    else output.values[row][gauge.site]
                )
                found[row] += share * float(gauge.measure(values))
        return found


def target_caveats(explained: Explained) -> list[str]:
    """Say what a reader must know of the targets."""
    kinds = {target.about.kind for target in explained.targets}
    said = []
    if len(explained.targets) > 1:
        said.append(
            f"{len(explained.targets)} targets are explained together: figures, influences and effects are "
            "of their sum, each times its share."
        )
    if TargetKind.ATTENTION in kinds:
        said.append(
            "The attention score's row is an estimate: half of what each source adds to the query's side and "
            "half of what it adds to the key's; norm scales are held, and the row sums to the score. "
            "Effects of nodes are by the exact gradient of the score, before soft cap and softmax."
        )
    estimated = {t.about.replacement == NEURONS for t in explained.targets if t.about.estimated}
    if TargetKind.FEATURE in kinds and True in estimated:
        said.append(
            "The target is a neuron: its row follows relp_half, sums to its activation, and is an estimate."
        )
    if TargetKind.FEATURE in kinds and False in estimated:
        said.append(
            "The target is read off an MLP's output: its row goes through the MLP linearised by the half "
            "rule, sums to the feature's value, and is an estimate."
        )
    return said


def cotangents_of(operators: FrozenOperators, readout: LogitReadout) -> Cotangents:
    """Return the exact derivative of a logit read-out at the last position."""
    cotangent = torch.zeros_like(operators.embedding)
    cotangent[-1] = readout.direction.to(cotangent.dtype)
    return {top_place(operators): operators.final_norm.pull_back_live(cotangent)}


def top_place(operators: FrozenOperators) -> int:
    """Return the place above all blocks, which the final norm reads."""
    return PER_BLOCK * len(operators.layers)


def neuron_targets_of(operators: FrozenOperators, parts: Sequence[ReadPart]) -> Targets:
    """Make read-outs, sorted from the top down, the targets of a sweep over neurons."""
    where = [_block_of(part.place) for part in parts]
    dtype, device = operators.dtype, operators.device
    return Targets(
        layer=torch.tensor([layer for layer, _ in where]),
        position=torch.tensor([part.position for part in parts]),
        direction=torch.stack([part.adjoint for part in parts]),
        constant=torch.tensor([part.constant for part in parts], dtype=dtype, device=device),
        total=torch.tensor([part.total for part in parts], dtype=dtype, device=device),
        reads=tuple(read for _, read in where),
    )


def _block_of(place: int) -> tuple[int, StreamRead]:
    """Return the block in which a sweep over neurons starts a read-out, and before what."""
    layer, within = divmod(place, PER_BLOCK)
    if within == AFTER:  # no dictionary stands between it and what the next block reads
        return layer + 1, StreamRead.BEFORE
    return layer, StreamRead.BEFORE if within == BEFORE else StreamRead.MIDDLE


def removing(feature: FeatureRef, position: int) -> Intervention:
    """Set one feature to zero at one position."""
    return Intervention(
        target=FeatureTarget(feature=feature),
        operation=Ablate(),
        selector=Selector(positions=(position,)),
    )
