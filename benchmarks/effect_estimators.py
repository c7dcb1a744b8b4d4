"""Which estimate of a node's effect ranks single ablations best, and what paths lose to the gradient.

    python -m benchmarks.effect_estimators --transcoders SET

Every estimate is set against the same ablations to zero of the real model, one feature at a time, drawn as
VerifyCircuit draws them (five quantiles of the shown effect, and features that the graph leaves out):

- `gradient`: activation times the exact derivative of the real model, nothing frozen: the shown effect;
- `stored paths`: along the circuit's own edges;
- `all paths`: along every edge of the frozen graph between all active features, none left out: the derivative
  of the network with patterns, norm scales, supports and error terms held;
- `averaged gradient`: the exact derivative averaged over masks that leave 1 to 1/2 of every feature.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.discovery_cell import SET, load
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit, DiscoverCircuit
from trephine.domain.sites import NEURONS, LayerRef
from trephine.domain.verification import VerificationOptions
from trephine.engine.attribution.correlations import spearman
from trephine.engine.attribution.totals import sweep_paths
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.graphs.hierarchical import through_features
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.verification.ablations import measured_drops
from trephine.engine.verification.choosing import Cell, outside_cells, singles
from trephine.engine.verification.paths import drops
from trephine.engine.verification.slopes import mask_slopes
from trephine.engine.verification.statistics import Bootstrap, Paired
from trephine.engine.verification.subject import Subject, open_subject
from trephine.server.places import default_cache

PROMPTS = (
    ("The capital of France is", " Paris", " Rome"),
    ("After Mary and Daniel went to the house, Daniel gave a basketball to", " Mary", " Daniel"),
)
ABLATIONS, NODES, STEPS = 100, 256, 4


def discovered(hosted: HostedModel, prompt: str, target: str, against: str, kind: str) -> Circuit:
    """The circuit whose features are ablated."""
    command = DiscoverCircuit(
        prompt=prompt,
        target=LogitTarget(token=target, against=against),
        replacement=kind,
        max_feature_nodes=NODES,
        verify_nodes=0,
    )
    return finish(discover_circuit(hosted, command))


def all_paths(subject: Subject, cells: Sequence[Cell]) -> Tensor:
    """Sum over every path of the frozen graph, no feature left out, `(n,)`."""
    prompt = subject.prompt
    if prompt.is_of_neurons:
        totals = finish(sweep_paths(prompt.operators, prompt.explained.cotangents(live=False))).neurons
        return at({LayerRef(layer=layer): found for layer, found in enumerate(totals)}, cells)
    active = finish(activate(prompt.hosted, prompt.operators, prompt.layers))
    found = finish(through_features(prompt.hosted, prompt.operators, active, prompt.explained, 0.0))
    totals_of = {ref: torch.zeros_like(values) for ref, values in subject.effect.items()}
    _, positions, indices = (column.tolist() for column in active.split(found.cells))
    owners, values = active.owner[found.cells].tolist(), found.attribution.tolist()
    for owner, position, index, value in zip(owners, positions, indices, values, strict=True):
        totals_of[active.layers[owner].ref][position, index] = value
    return at(totals_of, cells)


def averaged_gradient(subject: Subject, cells: Sequence[Cell]) -> Tensor:
    """Average the derivative by every mask value between all and half of every feature, `(n,)`."""
    mean = {layer: torch.zeros_like(ones) for layer, ones in subject.prompt.ones().items()}
    for step in range(STEPS):
        share = 1 - 0.5 * (step + 0.5) / STEPS
        mask = {layer: torch.full_like(ones, share) for layer, ones in subject.prompt.ones().items()}
        for kept in mask.values():
            kept[0] = 1  # position 0 is never ablated
        _, slopes = finish(mask_slopes(subject.prompt, mask, None))
        for layer, found in slopes.items():
            mean[layer] += found / STEPS
    return at(mean, cells)


def at(values: Mapping[LayerRef, Tensor], cells: Sequence[Cell]) -> Tensor:
    """Read `(n_pos, width)` by layer of a set at some cells, float64 `(n,)`."""
    return torch.tensor([float(values[c.ref][c.position, c.index]) for c in cells], dtype=torch.float64)


def compare(hosted: HostedModel, kind: str, prompt: str, target: str, against: str) -> None:
    """Print the estimates' rank correlations, and their distance from the gradient's."""
    circuit = discovered(hosted, prompt, target, against, kind)
    subject = finish(open_subject(hosted, VerificationOptions(), circuit, range(len(circuit.nodes))))
    outside = outside_cells(subject.active, subject.graph, count=ABLATIONS, seed=0)
    removals = singles(subject.graph, outside, count=ABLATIONS, seed=0)
    cells = [removal.cells[0] for removal in removals]
    fell = finish(measured_drops(subject.prompt, removals, None, "single ablations"))
    gradient, bootstrap = at(subject.effect, cells), Bootstrap(samples=1000, seed=0)
    estimates = {
        "gradient": gradient,
        "stored paths": drops(subject.graph, [removal.nodes for removal in removals]),
        "all paths": all_paths(subject, cells),
        "averaged gradient": averaged_gradient(subject, cells),
    }
    print(f"{kind if kind == NEURONS else 'transcoders'}: {prompt!r}, {len(cells)} ablations")
    for name, estimate in estimates.items():
        found = bootstrap.figure("rank correlation", spearman, estimate, fell)
        behind = bootstrap.difference(
            "difference",
            Paired(versions=estimate[None], signed=True),
            Paired(versions=gradient[None], signed=True),
            fell,
        )
        print(
            f"  {name:18s} {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]   "
            f"minus gradient {behind.value:+.2f} [{behind.low:+.2f}, {behind.high:+.2f}]",
            flush=True,
        )


def main() -> None:
    """Compare over neurons and transcoders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    options = parser.parse_args()
    hosted = load(str(options.model), str(options.transcoders))
    for kind in (SET, NEURONS):
        for prompt, target, against in PROMPTS:
            compare(hosted, kind, prompt, target, against)


if __name__ == "__main__":
    main()
