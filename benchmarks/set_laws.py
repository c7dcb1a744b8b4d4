"""Laws 2, 3 and 4 for replacement sets on a real model, against hooks on a float64 forward pass."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

# The oracle belongs to the tests; this measures what they assert.
from tests.set_oracle import Move, SetOracle  # noqa: TID251
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.admission.splice import loaded_source, reconstructions, run_context, run_spliced
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.attribution.readouts import LogitReadout
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer, activate
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.sweeping import FeatureSums, sweep_features
from trephine.engine.graphs.targets import FeatureTargets, feature_targets, logit_targets
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened

DECILES = 10
HEADER = (
    f"{'set':<40} {'layers':>6} {'active':>7} {'law 2':>8} {'law 3':>8} {'rows':>5} {'edges':>6} "
    f"{'law 4':>8} {'median':>8} {'Pearson':>12}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLaws:
    """What the laws measured for sets on one prompt."""

    name: str
    layers: int
    active: int
    """Active features of the prompt."""
    law2: float
    """Largest change of a logit when the model runs on one set's reconstructions and frozen errors, of the
    largest logit."""
    law3: float
    """Largest deviation of a row's sum from its target, over the row's mass, constants among it."""
    rows: int
    edges: int
    """Edges checked by law 4."""
    worst: float
    """Law 4: largest deviation over the row's largest edge."""
    relative: float
    """Median relative error over the upper nine deciles of magnitude."""
    pearson: float

    def __str__(self) -> str:
        return (
            f"{self.name:<40} {self.layers:>6} {self.active:>7} {self.law2:>8.1e} {self.law3:>8.1e} "
            f"{self.rows:>5} {self.edges:>6} {self.worst:>8.1e} {self.relative:>8.1e} {self.pearson:>12.9f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A prompt under sets, in the engine's dtype and in the oracle's."""

    hosted: HostedModel
    operators: FrozenOperators
    active: ActiveFeatures
    oracle: SetOracle
    readout: LogitReadout


def measure_set_laws(
    hosted: HostedModel,
    precise: HostedModel,
    sets: Sequence[str],
    ids: Sequence[int],
    readout: LogitReadout,
    *,
    targets: int = 4,
    per_decile: int = 2,
    seed: int = 0,
) -> SetLaws:
    """Check laws 2 to 4: for the logit, and for strong features at some depths.

    Args:
        hosted: The model whose attribution is checked, with the sets.
        precise: The same weights in float64, for the oracle.
        sets: One, or several that the graph spans together; neurons are explained by an estimate.
        ids: The prompt.
        readout: The logit target.
        targets: Features that are explained beside the logit, spread over the covered layers.
        per_decile: Features per decile of magnitude that are taken out, per row.
        seed: Of the sampling.
    """
    with torch.inference_mode():
        prompt = _prepare(hosted, precise, sets, ids, readout)
        claimed, measured, law3 = [], [], 0.0
        for row, (found, sums, read) in enumerate(_rows(prompt, targets)):
            law3 = max(law3, float(((sums.total - found.total).abs() / (sums.mass + sums.bias.abs())).max()))
            edges, moves = _sources(prompt, sums, per_decile, random.Random(seed + row))
            largest = sums.features.abs().max()
            claimed.append(edges / largest)
            measured.append(_removed(moves, read) / largest)
        law2 = max(_law2(hosted, name, ids) for name in sets if name != NEURONS)
    return _figures(prompt.active, " + ".join(sets), law2, law3, claimed, measured)


def _prepare(
    hosted: HostedModel,
    precise: HostedModel,
    sets: Sequence[str],
    ids: Sequence[int],
    readout: LogitReadout,
) -> _Prompt:
    operators = capture(hosted.model, hosted.architecture, ids)
    layers = open_layers(hosted, sets)
    active = finish(activate(hosted, operators, layers))
    skips: dict[int, Tensor] = {}
    for ref in layers:
        with opened(hosted, ref.replacement, [ref.layer]) as resident:
            matrix = resident[ref.layer].skip_matrix()
        if matrix is not None:
            skips[ref.layer] = matrix
    held = [layer.info.site_in for layer in active.layers if layer.info.site_in.kind is SiteKind.ATTN_OUT]
    oracle = SetOracle(precise, ids, skips=skips, held=held)
    return _Prompt(hosted=hosted, operators=operators, active=active, oracle=oracle, readout=readout)


def _law2(hosted: HostedModel, name: str, ids: Sequence[int]) -> float:
    source = loaded_source(hosted, name, hosted.replacements[name].covered)
    plain, values = run_context(hosted, ids, {}, reads=source.sites)
    sums = reconstructions(source, values)
    errors = {site: values[site] - sums[site] for site in source.sites_out}
    replaced = run_spliced(hosted, ids, source, values, errors=errors)
    return float((plain - replaced).abs().max() / plain.abs().max())


Reading = partial[Tensor]


def _rows(prompt: _Prompt, count: int) -> Iterator[tuple[FeatureTargets, FeatureSums, Reading]]:
    """Sweep the logit, then the strongest feature of some layers, one at a time."""
    hosted, operators, active = prompt.hosted, prompt.operators, prompt.active
    targets = logit_targets(operators, [prompt.readout])
    sums = finish(sweep_features(hosted, operators, active, targets))
    yield targets, sums, partial(_read, prompt.oracle, None, -1, prompt.readout.direction)
    readers = [x for x in active.layers[1:] if x.count and x.ref.replacement != NEURONS]
    for number in range(count):
        layer = readers[(len(readers) - 1) * number // max(1, count - 1)]
        own = int(layer.activation.argmax())
        position, index = int(layer.position[own]), int(layer.index[own])
        targets = feature_targets(hosted, operators, active, torch.tensor([layer.start + own]))
        sums = finish(sweep_features(hosted, operators, active, targets))
        with opened(hosted, layer.ref.replacement, [layer.info.layer]) as resident:
            direction = resident[layer.info.layer].encoders([index])[0]
        direction = direction / layer.read_scale[position]
        yield targets, sums, partial(_read, prompt.oracle, layer.info.site_in, position, direction)


def _read(
    oracle: SetOracle, site: Site | None, position: int, direction: Tensor, moves: Sequence[Sequence[Move]]
) -> Tensor:
    """What the target reads under each row's moves, `(rows,)`, float64."""
    return oracle.read(moves, site)[:, position] @ direction.double()


def _removed(moves: Sequence[Sequence[Move]], read: Reading) -> Tensor:
    """How much the target falls without each source, `(rows,)`."""
    found: Tensor = read(moves=[[], *[[(s, p, -v) for s, p, v in move] for move in moves]])
    return found[0] - found[1:]


def _sources(
    prompt: _Prompt, sums: FeatureSums, per_decile: int, chooser: random.Random
) -> tuple[Tensor, list[list[Move]]]:
    """Sample features of every decile of magnitude, the largest errors and tokens; what each writes where."""
    active, row = prompt.active, sums.features[0]
    order = row.abs().argsort()[int((row == 0).sum()) :].tolist()
    cells: list[int] = []
    for decile in range(DECILES):
        part = order[len(order) * decile // DECILES : len(order) * (decile + 1) // DECILES]
        cells += chooser.sample(part, min(per_decile, len(part)))
    edges = [float(row[cell]) for cell in cells]
    moves = [_writes(prompt, cell) for cell in cells]
    for flat in sums.errors[0].flatten().abs().topk(per_decile).indices.tolist():
        site, position = active.error_sites[flat // active.n_pos], flat % active.n_pos
        edges.append(float(sums.errors[0].flatten()[flat]))
        moves.append([(site, position, active.errors[site][position])])
    for position in sums.tokens[0].abs().topk(per_decile).indices.tolist():
        if float(sums.tokens[0, position]):
            edges.append(float(sums.tokens[0, position]))
            moves.append(
                [(Site(kind=SiteKind.EMBED, layer=0), position, prompt.operators.embedding[position])]
            )
    return torch.tensor(edges, dtype=torch.float64), moves


def _writes(prompt: _Prompt, cell: int) -> list[Move]:
    layer: ActiveLayer = next(x for x in prompt.active.layers if x.start <= cell < x.start + x.count)
    own = cell - layer.start
    position, index = int(layer.position[own]), int(layer.index[own])
    with opened(prompt.hosted, layer.ref.replacement, [layer.info.layer]) as resident:
        found = resident[layer.info.layer]
        return [
            (site, position, found.decoders([index], site)[0].double() * float(layer.written[own]))
            for site in layer.info.sites_out
        ]


def _figures(
    active: ActiveFeatures,
    name: str,
    law2: float,
    law3: float,
    claimed: Sequence[Tensor],
    measured: Sequence[Tensor],
) -> SetLaws:
    edges, found = torch.cat(list(claimed)), torch.cat(list(measured))
    difference = (edges - found).abs()
    upper = edges.abs() > edges.abs().quantile(0.1)
    return SetLaws(
        name=name,
        layers=len(active.layers),
        active=active.count,
        law2=law2,
        law3=law3,
        rows=len(claimed),
        edges=len(edges),
        worst=float(difference.max()),
        relative=float((difference[upper] / edges[upper].abs()).median()),
        pearson=float(torch.corrcoef(torch.stack([edges, found]))[0, 1]),
    )
