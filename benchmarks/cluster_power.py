"""How often planted kinds of contexts are found: `python -m benchmarks.cluster_power [--draws N]`.

Effects are those of contexts on tiny Llamas of random weights: some words that are drawn, and one last word
for all. To the effects of every second context one direction is added, to those of the others another, more
or less of it, and grouping is asked for as `--clusters auto` asks for it. A row says how often two kinds were
found by how much of the directions' variance lies between them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tests.builders import hosted_from, tiny_model  # noqa: TID251
from trephine.domain.dataset_circuits import AUTO_CLUSTERS, DiscoverDatasetCircuit, Example
from trephine.engine.dataset_circuits.averaging import average_effects
from trephine.engine.dataset_circuits.checking import space_of
from trephine.engine.dataset_circuits.clustering import Clusters, cluster_contexts, normalised
from trephine.engine.dataset_circuits.contexts import patch_of, read_splits
from trephine.engine.dataset_circuits.estimators import estimator_of
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish

WORDS = (" Mary", " John", " the", " store", " gave", " drink", " Paris", " cat", " dog", " of")
LAST, ANSWER = " went", " to"
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of what is added, in typical distances of contexts from their mean."""
SIZES = (12, 24, 48)
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 1.0)
RIGHT = 0.9
"""Of contexts, on the side of their kind: found."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One grouping of contexts of two kinds."""

    contexts: int
    explained: float
    """Share of the variance of directions that lies between the kinds."""
    clusters: int
    right: float
    """Share of contexts on the side of their kind, at best; of more or fewer clusters than two 0."""


def main() -> int:
    """Print a table: share of trials by contexts and by what kinds explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=6, help="Models, per strength and number of contexts.")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(
        "| contexts | explained | trials | found | other groups | one cluster |\n|---|---|---|---|---|---|\n"
    )
    for size in given.sizes:
        trials = [trial for draw in range(given.draws) for trial in _trials(size, draw)]
        for line in _lines(size, trials):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


def _lines(size: int, trials: list[Trial]) -> Iterator[str]:
    for low, high in pairwise(BINS):
        own = [one for one in trials if low <= one.explained < high]
        if own:
            two = sum(one.right >= RIGHT for one in own)
            more = sum(one.clusters > 1 for one in own)
            yield (
                f"| {size} | {low:.2f} to {high:.2f} | {len(own)} | {two} | {more - two} | "
                f"{len(own) - more} |"
            )


def _trials(size: int, draw: int) -> Iterator[Trial]:
    """Group the contexts of one model, with more and more planted."""
    hosted = hosted_from(tiny_model("llama", seed=draw))
    effects, kinds = _effects(hosted, _contexts(size, draw), draw), torch.arange(size) % 2
    typical = (effects - effects.mean(0)).norm(dim=1).mean()
    noise = torch.randn(2, effects.shape[1], generator=torch.Generator().manual_seed(draw))
    planted = (normalised(noise) * typical)[kinds]
    for strength in STRENGTHS:
        vectors = effects + strength * planted
        found = finish(cluster_contexts(vectors, AUTO_CLUSTERS, draw))
        yield Trial(
            contexts=size,
            explained=_explained(vectors, kinds),
            clusters=found.count,
            right=_right(found, kinds),
        )


def _contexts(size: int, seed: int) -> tuple[Example, ...]:
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < size:
        found["When" + "".join(draw.choice(WORDS) for _ in range(3)) + LAST] = None
    return tuple(Example(clean=text, answers=(ANSWER,)) for text in found)


def _effects(hosted: HostedModel, examples: tuple[Example, ...], seed: int) -> Tensor:
    """Return the sketches of effects, as a discovery makes them."""
    others = tuple(Example(clean=f"The{word}{LAST}", answers=(ANSWER,)) for word in WORDS[:2])
    command = DiscoverDatasetCircuit(training=examples, held_out=others, clusters=AUTO_CLUSTERS, seed=seed)
    training, _ = read_splits(hosted, command)
    space, donors = space_of(hosted, command, training), donor_ids(training, seed=seed, same_length=False)
    averages = finish(
        average_effects(
            hosted,
            space,
            list(packs(training, donors, hosted.model.device)),
            torch.ones(1, len(training), dtype=torch.bool),
            estimator_of(hosted, space, command.estimator, steps=1, candidates=None),
            patch=patch_of(command, training),
            means=(),
            seed=seed,
            stage="effects",
        )
    )
    return averages.sketches


def _explained(vectors: Tensor, kinds: Tensor) -> float:
    directions = normalised(vectors)
    whole = (directions - directions.mean(0)).square().sum()
    within = sum((own - own.mean(0)).square().sum() for own in (directions[kinds == kind] for kind in (0, 1)))
    return float(1 - within / whole)


def _right(found: Clusters, kinds: Tensor) -> float:
    if found.count != 2:
        return 0.0
    same = float((found.assignment == kinds).float().mean())
    return max(same, 1 - same)


if __name__ == "__main__":
    sys.exit(main())
