"""Running contexts plain, spliced and ablated, and counting: what the figures of an evaluation are made of.

Everything is kept per context in float64, so that figures and intervals are sums over contexts. Plain
activations of a context are read once and shared by all dictionaries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.replacements import Dictionary, ReplacementLayerInfo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import (
    LayerSource,
    Values,
    constants,
    encoded,
    resumed,
    run_context,
    run_copies,
    silenced,
    watch_spliced,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import Code
from trephine.engine.replacements.positions import ALL_LATER, Rows, Scope
from trephine.engine.replacements.scores import PlainRun, Ratio, RunScore, mean_of

LAYER_CONTEXTS = 8
"""Contexts on which layers are spliced and ablated one by one: each takes layers x dictionaries passes."""

_LOGITS = 1 << 25
"""Logits that one pass may answer with: 128 MB in float32."""

ALL = -1
"""Stands for all layers at once."""
MEAN, ZERO, PLAIN = "mean", "zero", "plain"
"""What runs beside the dictionaries: mean- and zero-ablation, and the model as it is."""
Key = tuple[str, int]
"""(dictionary or ablation, layer or `ALL`)."""


@dataclass(slots=True, kw_only=True)
class LayerCounts:
    """One layer of one dictionary, at positions that count; one entry per context."""

    squared: list[float] = field(default_factory=list)
    """Sum of squared errors."""
    active: list[float] = field(default_factory=list)
    """Active features, summed over positions."""
    fired: Tensor | None = None
    """bool `(d_sae,)`."""
    error_norms: list[float] = field(default_factory=list)
    """L2 norms of errors, summed over positions."""
    norms: list[float] = field(default_factory=list)
    """L2 norms of reconstructions, summed over positions."""

    def errors(self, reconstructed: Tensor, truth: Tensor) -> None:
        """Add a context's reconstruction of the truth, both `(positions, width)`."""
        error = truth.double() - reconstructed.double()
        self.squared.append(float(error.square().sum()))
        self.error_norms.append(float(error.norm(dim=-1).sum()))
        self.norms.append(float(reconstructed.double().norm(dim=-1).sum()))

    def activity(self, active: Tensor) -> None:
        """Add a context's active features, bool `(positions, d_sae)`."""
        self.active.append(float(active.sum()))
        fired = active.any(0)
        self.fired = fired if self.fired is None else self.fired | fired

    @property
    def dead_share(self) -> float:
        """Share of features that never fired. It has no interval: resampled text can only lose firings."""
        return 1.0 if self.fired is None else float((~self.fired).double().mean())


@dataclass(slots=True, kw_only=True)
class Moments:
    """Sums over the scored text of one output site, positions that do not count left out."""

    total: Tensor
    """`(width,)`, float64."""
    per_context: list[tuple[int, Tensor, float]] = field(default_factory=list)
    """(positions, sum `(width,)`, sum of squares) of every context."""

    @property
    def mean(self) -> Tensor:
        """`(width,)`, float64."""
        return self.total / sum(n for n, _, _ in self.per_context)

    def spread(self) -> list[float]:
        """Return the sum of squared deviations from the text's mean, per context."""
        mean = self.mean
        about = float(mean.square().sum())
        return [squares - 2 * float(mean @ total) + n * about for n, total, squares in self.per_context]


@dataclass(kw_only=True)
class Measured:
    """All counts of an evaluation."""

    runs: dict[Key, list[RunScore]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[Key, LayerCounts] = field(default_factory=lambda: defaultdict(LayerCounts))
    """On plain activations."""
    counts_spliced: dict[Key, LayerCounts] = field(default_factory=lambda: defaultdict(LayerCounts))
    """While all layers are spliced: inputs are what the layers below have made of them, the truth is the
    plain run's."""
    moments: dict[Site, Moments] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    """Positions of every context that count; position 0 does not."""

    def ce(self, key: Key) -> Ratio:
        """Cross-entropy, nats per token."""
        return _over_positions(self.runs[key], lambda run: run.ce)

    def kl(self, key: Key) -> Ratio:
        """KL against the plain run, nats per token."""
        return _over_positions(self.runs[key], lambda run: run.kl)

    def top1(self, key: Key) -> Ratio:
        """Agreement with the plain run's first choice."""
        return _over_positions(self.runs[key], lambda run: run.top1)

    def ce_score(self, dictionary: str, layer: int, ablation: str) -> Ratio:
        """SAEBench's CE score against an ablation of the same layer."""
        ablated, spliced = self.ce((ablation, layer)).numerator, self.ce((dictionary, layer)).numerator
        # Single layers are measured on the first contexts.
        plain = _over_positions(self.runs[PLAIN, ALL][: len(spliced)], lambda run: run.ce).numerator
        return Ratio(numerator=ablated - spliced, denominator=ablated - plain)

    def kl_score(self, dictionary: str, layer: int, ablation: str) -> Ratio:
        """SAEBench's KL score against an ablation of the same layer."""
        ablated = self.kl((ablation, layer)).numerator
        return Ratio(numerator=ablated - self.kl((dictionary, layer)).numerator, denominator=ablated)

    def fvu(self, dictionary: str, layer: int, site: Site, *, spliced: bool = False) -> Ratio:
        """Squared errors over per-dimension variance; `spliced`: while all layers are."""
        counts = (self.counts_spliced if spliced else self.counts)[dictionary, layer]
        squared = torch.tensor(counts.squared, dtype=torch.float64)
        spread = torch.tensor(self.moments[site].spread(), dtype=torch.float64)
        return Ratio(numerator=squared, denominator=spread)

    def l0(self, dictionary: str, layer: int, *, spliced: bool = False) -> Ratio:
        """Active features per position; `spliced`: while all layers are."""
        counts = (self.counts_spliced if spliced else self.counts)[dictionary, layer]
        active = torch.tensor(counts.active, dtype=torch.float64)
        return Ratio(numerator=active, denominator=torch.tensor(self.positions, dtype=torch.float64))

    def error_share(self, dictionary: str, layers: Sequence[int]) -> Ratio:
        """|error| / (|error| + |reconstruction|) over layers and positions."""
        counts = [self.counts[dictionary, layer] for layer in layers]
        errors = torch.tensor([count.error_norms for count in counts], dtype=torch.float64).sum(0)
        norms = torch.tensor([count.norms for count in counts], dtype=torch.float64).sum(0)
        return Ratio(numerator=errors, denominator=errors + norms)


def _over_positions(runs: Sequence[RunScore], figure: Callable[[RunScore], float]) -> Ratio:
    """Return a figure's mean over the positions of all contexts; of equal length they weigh 1 each."""
    scored = torch.tensor([run.positions for run in runs], dtype=torch.float64)
    values = torch.tensor([figure(run) for run in runs], dtype=torch.float64)
    return mean_of(values, scored / scored.mean())


def survey(
    hosted: HostedModel,
    contexts: Sequence[tuple[int, ...]],
    sites: Sequence[Site],
    measured: Measured,
    scope: Scope,
) -> Generator[Progress | None, None, None]:
    """Sum up every output site over positions that count: its mean is what mean-ablation writes."""
    for number, context in enumerate(contexts):
        _, values = run_context(hosted, context, {}, reads=sites, keep_last=0)
        rows = scope.rows(context)
        measured.positions.append(len(scope.places(context)))
        for site in sites:
            wide = values[site][rows].double()
            moments = measured.moments.setdefault(site, Moments(total=torch.zeros_like(wide[0])))
            moments.total += wide.sum(0)
            moments.per_context.append((len(wide), wide.sum(0), float(wide.square().sum())))
        yield Progress(stage="survey", done=number + 1, total=len(contexts))


@dataclass(kw_only=True)
class Measurement:
    """Everything that is run on one context, given the text's moments."""

    hosted: HostedModel
    sources: Mapping[Dictionary, LayerSource]
    alone: Sequence[int]
    """Layers that are spliced one by one."""
    measured: Measured
    scope: Scope = ALL_LATER
    """Positions that are spliced and counted."""

    def context(self, number: int, ids: tuple[int, ...]) -> Generator[None, None, None]:
        """Measure one context; one forward pass or one dictionary's encoding a quantum."""
        alone = self.alone if number < LAYER_CONTEXTS else ()
        starts = [Site(kind=SiteKind.RESID_PRE, layer=layer) for layer in self._start_layers(alone)]
        sites = dict.fromkeys(site for source in self.sources.values() for site in source.sites)
        logits, values = run_context(self.hosted, ids, {}, reads=[*sites, *starts])
        rows = self.scope.rows(ids)
        plain = PlainRun(ids, logits, rows)
        self.measured.runs[PLAIN, ALL].append(plain.score(logits))
        del logits
        yield
        yield from self._ablated(plain, ids, values)
        alone_written: dict[str, Values] = {name: self._ablation(name) for name in (MEAN, ZERO)}
        for dictionary, source in self.sources.items():
            with torch.inference_mode():
                written = self._counted(dictionary, source, values, rows)
            if alone:
                alone_written[dictionary.value] = written
            yield
            logits = self._run_spliced(dictionary, source, ids, values)
            self.measured.runs[dictionary.value, ALL].append(plain.score(logits))
            yield
        for layer in alone:
            yield from self._run_alone(layer, plain, ids, values, alone_written)

    def _start_layers(self, alone: Sequence[int]) -> list[int]:
        given = self.sources[Dictionary.GIVEN]
        return sorted({_own_site(given, layer).layer for layer in alone})

    def _counted(
        self, dictionary: Dictionary, source: LayerSource, values: Values, rows: Rows
    ) -> dict[Site, Tensor]:
        """Encode every layer on plain activations; count, and return what its first output receives."""
        sums: dict[Site, Tensor] = {}
        done: dict[Site, Tensor] = {}
        for info, code, written in encoded(source, values):
            for site, value in written.items():
                sums[site] = sums[site] + value if site in sums else value
            site = info.sites_out[0]
            done[site] = sums.pop(site)
            counts = self.measured.counts[dictionary.value, info.layer]
            counts.activity(code.active[rows])
            counts.errors(done[site][rows], values[site][rows])
        return done

    def _run_spliced(
        self, dictionary: Dictionary, source: LayerSource, ids: tuple[int, ...], values: Values
    ) -> Tensor:
        """Splice all layers and count what they do on one another's outputs; return logits."""
        rows = self.scope.rows(ids)
        counts, name = self.measured.counts_spliced, dictionary.value

        def on_code(info: ReplacementLayerInfo, code: Code) -> None:
            counts[name, info.layer].activity(code.active[0][rows])

        logits, written = watch_spliced(self.hosted, ids, source, values, on_code, rows=rows)
        for info in source.infos:
            site = info.sites_out[0]
            counts[name, info.layer].errors(written[site][rows], values[site][rows])
        return logits

    def _ablated(self, plain: PlainRun, ids: tuple[int, ...], values: Values) -> Generator[None, None, None]:
        sites = self.sources[Dictionary.GIVEN].sites_out
        for name in (MEAN, ZERO):
            with silenced(self.hosted.architecture, sites):
                touches = constants(self._ablation(name), values, self.scope.rows(ids))
                logits = run_context(self.hosted, ids, touches)[0]
            self.measured.runs[name, ALL].append(plain.score(logits))
            yield

    def _ablation(self, name: str) -> dict[Site, Tensor]:
        """Return what an ablation writes, `(width,)` by site."""
        means = {
            site: self.measured.moments[site].mean.float()
            for site in self.sources[Dictionary.GIVEN].sites_out
        }
        return means if name == MEAN else {site: torch.zeros_like(mean) for site, mean in means.items()}

    def _run_alone(
        self,
        layer: int,
        plain: PlainRun,
        ids: tuple[int, ...],
        values: Values,
        written: Mapping[str, Values],
    ) -> Generator[None, None, None]:
        """Run on from a layer with its site written, a row of the batch for whatever is written there."""
        site = _own_site(self.sources[Dictionary.GIVEN], layer)
        stream = values[Site(kind=SiteKind.RESID_PRE, layer=site.layer)]
        for names in _in_passes(list(written), len(ids) * self.hosted.info.d_vocab):
            rows = torch.stack([written[name][site].expand(values[site].shape) for name in names])
            touches = constants({site: rows}, rows=self.scope.rows(ids))
            with resumed(self.hosted.architecture, site.layer, stream):
                logits = run_copies(self.hosted, ids, len(names), touches)
            for name, of_row in zip(names, logits, strict=True):
                self.measured.runs[name, layer].append(plain.score(of_row))
            yield


def _in_passes(names: list[str], logits: int) -> Iterator[list[str]]:
    """Share names out over as few passes as keep the logits of each, so many a row, in bounds."""
    most = max(1, _LOGITS // logits)
    passes = -(-len(names) // most)
    size = -(-len(names) // passes)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _own_site(source: LayerSource, layer: int) -> Site:
    return next(info.sites_out[0] for info in source.infos if info.layer == layer)
