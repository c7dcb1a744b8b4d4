"""MLP neurons that compute a feature's change: their gains chosen by the error after rounding.

A unit is a stock neuron phi(kappa (p - t)) * alpha, p = w.x + b the feature's pre-activation, its down column
s d / (kappa alpha): it adds s * relu(p - t) * d, rounded off at the knee (SiLU: by 0.2785 / kappa at most). A
jump of height J is the difference of two units that are `width` apart. What is best depends on the
arithmetic: steep and narrow in float32; in bfloat16 the two large numbers of a narrow jump lose their
difference, and a bias kappa (b - t) above 64 is off by up to a quarter, above 128 by up to a half (in float16
above 512 and above 1024). So gain,
width and offset are searched in units of the feature's own threshold and range, and each candidate is carried
out on captured activations as the server will: weights rounded, products rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import inf, log2
from operator import itemgetter

import torch
from torch import Tensor

from trephine.domain.exports import GgufType
from trephine.engine.weights.knees import Moved, moved_near, unmoved
from trephine.engine.weights.piecewise import Difference, Knot
from trephine.engine.weights.replicas import copies_for, spread_rows

LARGEST = 2.0**12
"""No unit may answer more than this on the text: float16, whose largest number is 65504, keeps a margin."""
_WIDTHS = {torch.float32: range(2, 15), torch.float64: range(2, 15)}
_NARROW_WIDTHS = tuple(half / 2 for half in range(0, 15))
_QUANTISED_WIDTHS = range(0, 8)
"""Halvings of the feature's scale that a jump is wide."""
LARGEST_BIAS = {torch.bfloat16: 100.0, torch.float16: 800.0}
"""Of |kappa (b - t)|: bfloat16 rounds one below 128 by up to a quarter, and by a half and more above 128;
float16, which has three bits more, does the same below and above 1024."""
_NARROW = tuple(LARGEST_BIAS)
_SHARPNESS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
"""kappa times width."""
_OFFSETS = (0.0, -0.25, 0.25, -0.5, 0.5)
"""In units of the width."""
_RELU_GAINS = tuple(2.0 ** (quarter / 4) for quarter in range(4, 49))
"""kappa times the scale of the feature."""
_NEAR = 64
"""Tokens next to the knee over which a rounded gate's mean error is moved into its bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What a unit reads and writes: p = w.x + b on the MLP's input, d at its output."""

    w: Tensor
    """float64 `(d_in,)`."""
    b: float
    d: Tensor
    """float64 `(d_out,)`."""
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The MLP that units join, and the inputs that they are tried on."""

    x: Tensor
    """float32 `(n, d_in)`, MLP inputs captured in the intervened model; values of the serving dtype."""
    runtime: Tensor | None = None
    """The same `(n, d_in)` as the runtime computes them: what is wanted is what the feature makes of these.
    None: of `x`."""
    dtype: torch.dtype
    """What is stored and served."""
    activation: Callable[[Tensor], Tensor]
    gated: bool
    constant: Tensor | None
    """float64 `(d_in,)`, u with u.x nearly 1 everywhere, where the MLP has no biases; None where it has."""
    kind: GgufType | None = None
    """What block quantiser the units must survive; None: none."""
    rms_down: float
    """Of the down projection's entries: new columns are given the same size, for block quantisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One neuron, rounded to the stored dtype. All float64."""

    gate: Tensor
    """`(d_in,)`; of a plain MLP its only input row."""
    gate_bias: float
    up: Tensor | None
    """`(d_in,)`; None: zeros."""
    up_bias: float
    down: Tensor
    """`(d_out,)`."""
    amount: float
    """What the gate's answer counts: it adds `amount * gate * up * d`, an up of 1 taken for granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Units of one feature and what the search found."""

    units: tuple[Unit, ...]
    gain: float
    """Largest kappa."""
    bias_size: float
    """Largest |kappa (b - t)|, as stored."""
    beyond: bool
    """True if no gain keeps the biases within what bfloat16 and float16 round finely: the least was taken."""
    error: float | None
    """Mean squared error over mean squared change, on the captured inputs; None: nothing changes there."""
    misfires: float
    """Share of inputs that lie beyond a knee where the feature does not, or the reverse."""
    chosen: tuple[_Chosen, ...] = ()
    """What the search settled on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What units do on inputs that they were not chosen by; as in `Fit`."""

    error: float | None
    misfires: float


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One bend or jump: where it is, and the units that make it."""

    place: float
    gain: float
    knees: tuple[_Knee, ...]


@dataclass(frozen=True, slots=True)
class _Knee:
    """A unit before its gain is fixed: slope times relu(p - place)."""

    place: float
    slope: float


def fit_units(feature: Feature, bench: Bench) -> Fit:
    """Choose gains for every knot of a feature's change."""
    truth = bench.x if bench.runtime is None else bench.runtime
    p = truth.to(torch.float64) @ feature.w + feature.b
    wanted = feature.difference(p)
    units: list[Unit] = []
    total = torch.full_like(p, feature.difference.constant)
    gains, sizes, missed, chosen = [0.0], [0.0], [0.0], list[_Chosen]()
    for knot in feature.difference.knots:
        found = _search(feature, bench, p, knot)
        total += found.answer
        units += found.units
        gains.append(found.gain)
        sizes.append(found.bias_size)
        missed.append(found.misfires)
        chosen += found.chosen
    size = float(wanted.square().mean())
    error = float((total - wanted).square().mean())
    return Fit(
        units=tuple(units),
        gain=max(gains),
        bias_size=max(sizes),
        beyond=max(sizes) > LARGEST_BIAS.get(bench.dtype, inf),
        error=error / size if size else None,
        misfires=max(missed),
        chosen=tuple(chosen),
    )


def trial_of(feature: Feature, fit: Fit, bench: Bench) -> Trial:
    """Carry units out on other inputs; of MLPs without biases, which would be fitted to these inputs."""
    truth = bench.x if bench.runtime is None else bench.runtime
    p = truth.to(torch.float64) @ feature.w + feature.b
    wanted, gates = feature.difference(p), _Gates(feature, bench, p)
    total = torch.full_like(p, feature.difference.constant)
    missed = 0.0
    for each in fit.chosen:
        for knee in each.knees:
            total += knee.slope * gates.answer(each.gain, knee.place)
        missed = max(missed, _misfires(gates, each, p))
    size = float(wanted.square().mean())
    return Trial(error=float((total - wanted).square().mean()) / size if size else None, misfires=missed)


def _misfires(gates: _Gates, chosen: _Chosen, p: Tensor) -> float:
    """Return the share of inputs on which the gates and the feature disagree about a knot."""
    middle = sum(knee.place for knee in chosen.knees) / len(chosen.knees)
    beyond = (p > chosen.place)[:, None]
    return float(((gates.gate(chosen.gain, middle) > 0) != beyond).double().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    units: tuple[Unit, ...]
    answer: Tensor
    gain: float
    bias_size: float
    misfires: float
    chosen: tuple[_Chosen, ...]


def _search(feature: Feature, bench: Bench, p: Tensor, knot: Knot) -> _Found:
    """Try jump and bend apart: the jump's two units then cancel exactly beyond it."""
    beyond = p > knot.place
    excess = (p - knot.place)[beyond]
    scale = float(excess.mean()) if excess.numel() else max(abs(knot.place), float(p.std(correction=0)))
    scale = scale or 1.0  # a text of one token over and over: nothing says how far it may go
    gates = _Gates(feature, bench, p)
    best: dict[str, tuple[float, float, tuple[_Knee, ...]]] = {}
    most = LARGEST / max(float((p - knot.place).max()), scale)
    # Judged next to the knot by more than the few tokens that lie there; in wide types nothing misfires.
    fine = bench.dtype not in _NARROW or bench.kind is not None
    tried = unmoved(p) if fine else moved_near(gates.served, knot.place, scale)
    excess = p[tried.rows] + tried.shift - knot.place
    for name, gain, knees in _allowed(_candidates(knot, scale, bench), gates, most):
        answer = sum((knee.slope * gates.answer(gain, knee.place, tried) for knee in knees), torch.zeros(1))
        wanted = (excess > 0) * (knot.jump if name == "jump" else knot.bend * excess)
        error = float((tried.weight * (answer - wanted).square()).sum())
        if name not in best or error < best[name][0]:
            best[name] = (error, gain, knees)
    units, answers, sizes = [], torch.zeros_like(p), [0.0]
    chosen = tuple(_Chosen(knot.place, gain, knees) for _, gain, knees in best.values())
    for each in chosen:
        alpha = _alpha(feature, bench, each.gain * copies_for(bench.kind), each.knees)
        for knee in each.knees:
            units += gates.units(each.gain, knee, alpha)
            answers += knee.slope * gates.answer(each.gain, knee.place)
            sizes.append(gates.bias_size(each.gain, knee.place))
    return _Found(
        units=tuple(units),
        answer=answers,
        gain=max((each.gain for each in chosen), default=0.0),
        bias_size=max(sizes),
        misfires=max((_misfires(gates, each, p) for each in chosen), default=0.0),
        chosen=chosen,
    )


_Candidate = tuple[str, float, tuple[_Knee, ...]]
"""`bend` or `jump`, kappa, and the knees of its units."""


def _allowed(candidates: Iterable[_Candidate], gates: _Gates, most: float) -> list[_Candidate]:
    """Keep what rounds finely and answers little; where nothing does, what has the least gain.

    Args:
        candidates: Of one knot.
        gates: Their rows and biases.
        most: The largest gain whose answers stay below `LARGEST`.
    """
    kept: list[_Candidate] = []
    for _, alike in groupby(candidates, key=itemgetter(0)):
        tried = list(alike)
        allowed = [
            (name, gain, knees)
            for name, gain, knees in tried
            if gain <= most and all(gates.fine(gain, knee.place) for knee in knees)
        ]
        least = min(gain for _, gain, _ in tried)
        kept += allowed or [one for one in tried if one[1] == least]
    return kept


def _candidates(knot: Knot, scale: float, bench: Bench) -> Iterator[_Candidate]:
    kind = bench.kind
    if knot.bend:
        for relative in _RELU_GAINS:
            yield "bend", relative / scale, (_Knee(knot.place, knot.bend),)
    if knot.jump:
        for halvings in _QUANTISED_WIDTHS if kind else _WIDTHS.get(bench.dtype, _NARROW_WIDTHS):
            width = scale * 2.0**-halvings
            for sharpness in _SHARPNESS[:: 2 if kind else 1]:
                for offset in _OFFSETS if bench.dtype in _WIDTHS and not kind else _OFFSETS[:3]:
                    low = knot.place + (offset - 0.5) * width
                    height = knot.jump / width
                    yield "jump", sharpness / width, (_Knee(low, height), _Knee(low + width, -height))


class _Gates:
    """Gate rows of one feature at different gains, rounded, with their answers to the captured inputs."""

    def __init__(self, feature: Feature, bench: Bench, p: Tensor) -> None:
        self._feature, self._bench = feature, bench
        self.served = bench.x.to(torch.float64) @ feature.w + feature.b
        """float64 `(n,)`, exact pre-activations of the inputs as served."""
        self._rows: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
        self._biases: dict[tuple[float, float], float] = {}
        self._ups = None if bench.constant is None else spread_rows(bench.constant, bench.kind, bench.dtype)
        self._signal = None if self._ups is None else bench.x @ self._ups.float().T

    def units(self, gain: float, knee: _Knee, alpha: float) -> list[Unit]:
        """Build the neuron, or its copies."""
        bench, (rows, _) = self._bench, self._rows_of(gain, knee.place)
        with_bias = bench.constant is None
        amount = knee.slope / gain / len(rows)
        column = amount * self._feature.d / (alpha if bench.gated else 1.0)
        return [
            Unit(
                gate=row,
                gate_bias=self._bias(gain, knee.place) if with_bias else 0.0,
                up=None if self._ups is None else _rounded(alpha * self._ups[copy], bench.dtype).double(),
                up_bias=alpha if with_bias else 0.0,
                down=_rounded(column, bench.dtype).to(torch.float64),
                amount=amount,
            )
            for copy, row in enumerate(rows)
        ]

    def fine(self, gain: float, place: float) -> bool:
        """Return whether the stored type rounds the bias finely."""
        most = LARGEST_BIAS.get(self._bench.dtype)
        if most is None:
            return True
        exact = abs(gain * (self._feature.b - place))  # spares most steep candidates their rounding
        return exact <= 2 * most and self.bias_size(gain, place) <= most

    def bias_size(self, gain: float, place: float) -> float:
        """Return |kappa (b - t)|: of the stored bias, or of what the row holds in its stead."""
        if self._bench.constant is None:
            return abs(self._bias(gain, place))
        return abs(gain * (self._feature.b - place))

    def gate(self, gain: float, place: float) -> Tensor:
        """Return the gates' pre-activations as the server computes them, float32 `(n, copies)`."""
        return _rounded(self._read(gain, place), self._bench.dtype)

    def answer(self, gain: float, place: float, tried: Moved | None = None) -> Tensor:
        """Return what a unit of slope 1 makes of relu(p - place), float64 `(n,)`; of moved tokens `(m,)`."""
        bench, read, signal = self._bench, self._read(gain, place), self._signal
        if tried is not None:
            read = read[tried.rows] + (gain * tried.shift)[:, None].to(read.dtype)
            signal = None if signal is None else signal[tried.rows]
        hidden = _rounded(bench.activation(_rounded(read, bench.dtype)), bench.dtype)
        if signal is not None:
            hidden = _rounded(hidden * _rounded(signal, bench.dtype), bench.dtype)
        return hidden.to(torch.float64).mean(1) / gain

    def _read(self, gain: float, place: float) -> Tensor:
        """Return pre-activations `(n, copies)` before they are rounded."""
        read = self._rows_of(gain, place)[1]
        return read if self._bench.constant is not None else read + self._bias(gain, place)

    def _rows_of(self, gain: float, place: float) -> tuple[Tensor, Tensor]:
        feature, bench = self._feature, self._bench
        key = (gain, 0.0 if bench.constant is None else place)
        if key not in self._rows:
            row = gain * feature.w
            if bench.constant is not None:
                row = row + gain * (feature.b - place) * bench.constant
            rounded = spread_rows(row, bench.kind, bench.dtype)
            self._rows = {key: (rounded, bench.x @ rounded.float().T)} | dict(list(self._rows.items())[:64])
        return self._rows[key]

    def _bias(self, gain: float, place: float) -> float:
        """Return the rounded bias, with the rounded row's mean error near the knee taken out."""
        if (gain, place) in self._biases:
            return self._biases[gain, place]
        near = (self.served - place).abs().topk(min(_NEAR, self.served.numel()), largest=False).indices
        exact = gain * (self.served[near] - self._feature.b)
        drift = float((exact - self._rows_of(gain, place)[1][near, 0].double()).mean())
        bias = torch.tensor(gain * (self._feature.b - place) + drift, dtype=torch.float64)
        self._biases[gain, place] = float(_rounded(bias, self._bench.dtype))
        return self._biases[gain, place]


def _alpha(feature: Feature, bench: Bench, gain: float, knees: tuple[_Knee, ...]) -> float:
    """Return the power of two that brings the down column to the size of its neighbours.

    In float16 none above 1: it multiplies what a unit answers, which is to keep its margin.
    """
    if not bench.gated:
        return 1.0
    highest = 0.0 if bench.dtype == torch.float16 else 3.0
    size = max(abs(knee.slope) for knee in knees) * float(feature.d.square().mean().sqrt()) / gain
    if size == 0.0 or bench.rms_down == 0.0:
        return 1.0
    return float(2.0 ** round(min(max(log2(size / bench.rms_down), -8.0), highest)))


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a dtype and return float32 (float64 for float64)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return tensor.to(dtype).to(wide)
