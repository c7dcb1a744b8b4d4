"""Laws 2, 3 and 4 on a real model, printed as tables: `python -m benchmarks.laws [--model FOLDER]`.

First for its neurons, then for replacement sets: released ones (`--transcoders`) and some built on the spot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.built_sets import CLT, SAE, TRANSCODER, build_set
from benchmarks.set_laws import HEADER, measure_set_laws

# The oracle belongs to the tests; this command prints what they assert.
from tests.laws import NEURON, measure_edges, sample_sources  # noqa: TID251
from tests.oracles import FrozenOracle, forbidden_mlps  # noqa: TID251
from trephine.domain.replacements import LoadReplacementSet, ReplacementSource
from trephine.domain.sites import NEURONS, SiteKind
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.attribution.readouts import (
    LogitReadout,
    Targets,
    logit_readout,
    logit_target,
    neuron_targets,
)
from trephine.engine.models.hosted import HostedModel, host
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.server.places import default_cache

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, AGAINST = " Mary", " John"
TRANSCODERS = Path("../shared/replacements/smollm2-135m-tc")
FITTED_ON = (
    "The capital of France is Paris, and the capital of Italy is Rome. When it rains in the north, farmers "
    "of the south wait for the river to rise. She opened the letter, read it twice and said nothing. A "
    "function that calls itself must know when to stop. He paid for two tickets and gave one to his sister."
)
"""What sets that are built on the spot are fitted to."""


@dataclass(frozen=True, kw_only=True)
class LawFigures:
    """What the laws measured on one prompt."""

    law2: float
    """Largest change of a logit when the model runs on its neurons alone, over the largest logit."""
    law3: float
    """Largest deviation of a row's sum from its target, over the row's mass."""
    rows: int
    """Rows checked by law 3."""
    edges: int
    """Edges checked by law 4, each with -a_s and +1."""
    edges_at_start: int
    """Of these, neurons at position 0."""
    worst: float
    """Law 4: largest deviation over its row's largest edge."""
    pearson: float
    """Between claimed and measured edges, each over its row's largest edge."""
    relative: float
    """Median relative error over the upper nine deciles of magnitude."""
    relative_worst: float
    """Largest relative error over the same."""


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> HostedModel:
    """Host a plain Hugging Face folder in this process."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return host(
        model, AutoTokenizer.from_pretrained(folder), name=folder.name, folder=folder, weight_hash="0" * 64
    )


def measure_laws(
    hosted: HostedModel,
    precise: HostedModel,
    prompt: str,
    readout: LogitReadout,
    *,
    seed: int = 0,
    layer_stride: int = 5,
) -> LawFigures:
    """Check laws 2 to 4 on a prompt: the logit, and g and u of strong neurons at five depths.

    Args:
        hosted: The model whose attribution is checked.
        precise: The same weights in float64, for the oracle. Adding 1 to a neuron whose activation is -200
            at position 0 and multiplying by -200 would multiply a float32 oracle's own rounding with it.
        prompt: Any prompt.
        readout: The logit target.
        seed: Of the sampling.
        layer_stride: Sources are sampled every so many layers below a target.
    """
    ids = hosted.encode(prompt)
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, ids)
        oracle = FrozenOracle(precise.model, precise.architecture, ids)
        claimed, measured, law3, rows, at_start = [], [], 0.0, 0, 0
        for targets in _targets(operators, readout):
            collector = DenseCollector(operators, len(targets.total))
            sums = finish(sweep(operators, targets, collector))
            law3 = max(law3, float(((sums.total - targets.total).abs() / sums.mass).max()))
            for row in range(len(targets.total)):
                sources = sample_sources(
                    collector.scores[row],
                    sums.errors[row],
                    sums.tokens[row],
                    int(targets.layer[row]),
                    per_stratum=1,
                    seed=seed + rows,
                    layer_stride=layer_stride,
                )
                largest = torch.maximum(collector.scores[row].abs().max(), sums.tokens[row].abs().max())
                both = measure_edges(
                    oracle,
                    precise.architecture,
                    sources,
                    layer=int(targets.layer[row]),
                    position=int(targets.position[row]),
                    direction=targets.direction[row].double(),
                )
                claimed.append(torch.tensor([s.edge for s in sources], dtype=torch.float64) / largest)
                measured.append(torch.stack(both) / largest)
                at_start += sum(s.position == 0 and s.kind == NEURON for s in sources)
                rows += 1
        law2 = _law2(hosted, operators, ids)
    return _figures(torch.cat(claimed), torch.cat(measured, 1), law2, law3, rows, at_start)


def _targets(operators: FrozenOperators, readout: LogitReadout) -> Iterator[Targets]:
    yield logit_target(operators, readout)
    depth, last = len(operators.layers), operators.n_pos - 1
    layers = sorted({depth - 1, depth * 3 // 4, depth // 2, depth // 4, 1}, reverse=True)
    cells = []
    for number, layer in enumerate(layers):
        position = (last, last // 2, 0, 1, last)[number]
        cells.append((layer, position, int(operators.layers[layer].activation[position].abs().argmax())))
    columns = torch.tensor(cells).T
    gated = operators.layers[0].block.mlp.gated
    yield neuron_targets(operators, columns[0], columns[1], columns[2], "read")
    if gated:
        yield neuron_targets(operators, columns[0], columns[1], columns[2], "gate")


def _law2(hosted: HostedModel, operators: FrozenOperators, ids: list[int]) -> float:
    outputs = []
    for layer in operators.layers:
        mlp, activation = layer.block.mlp, layer.activation.to(layer.block.mlp.W_down.dtype)
        output = activation @ mlp.W_down.T
        outputs.append((output if mlp.b_down is None else output + mlp.b_down)[None])
    batch = torch.tensor([ids])
    model: Any = hosted.model
    plain: Tensor = model(input_ids=batch).logits
    with forbidden_mlps(hosted.architecture, outputs):
        replaced: Tensor = model(input_ids=batch).logits
    return float((plain - replaced).abs().max() / plain.abs().max())


def _figures(
    claimed: Tensor, measured: Tensor, law2: float, law3: float, rows: int, at_start: int
) -> LawFigures:
    difference = (measured - claimed).abs().amax(0)
    upper = claimed.abs() > claimed.abs().quantile(0.1)
    relative = difference[upper] / claimed[upper].abs()
    pearson = torch.corrcoef(torch.stack([claimed, measured[0]]))[0, 1]
    return LawFigures(
        law2=law2,
        law3=law3,
        rows=rows,
        edges=len(claimed),
        edges_at_start=at_start,
        worst=float(difference.max()),
        pearson=float(pearson),
        relative=float(relative.median()),
        relative_worst=float(relative.max()),
    )


def table(figures: LawFigures) -> str:
    """Lay the figures out for people."""
    lines = [
        ("law 2", "neurons alone give the logits, max |difference| / max |logit|", f"{figures.law2:.1e}"),
        ("law 3", f"{figures.rows} rows sum to their targets, max deviation / mass", f"{figures.law3:.1e}"),
        ("law 4", "edges checked, each with -a and +1", f"{figures.edges}"),
        ("", "of these, neurons at position 0", f"{figures.edges_at_start}"),
        ("", "Pearson", f"{figures.pearson:.9f}"),
        ("", "max |difference| / row's largest edge (limit 1e-4)", f"{figures.worst:.1e}"),
        ("", "relative error, upper nine deciles, median", f"{figures.relative:.1e}"),
        ("", "relative error, upper nine deciles, max", f"{figures.relative_worst:.1e}"),
    ]
    return "\n".join(f"{law:<6} {what:<64} {value:>12}" for law, what, value in lines)


def print_set_laws(
    hosted: HostedModel, precise: HostedModel, prompt: str, readout: LogitReadout, transcoders: Path
) -> None:
    """Print a line per set, released or built here, and per graph that spans several."""
    ids, text, depth = hosted.encode(prompt), hosted.encode(FITTED_ON), hosted.architecture.n_layers
    print(f"\n{HEADER}")
    if transcoders.is_dir():
        source = ReplacementSource(
            name=transcoders.name, folder=str(transcoders), memory_budget_bytes=1 << 40
        )
        finish(load_replacement_set(Session(hosted=hosted), LoadReplacementSet(source=source)))
        print(measure_set_laws(hosted, precise, [source.name], ids, readout), flush=True)
    else:
        print(f"{transcoders} is absent: its line is left out")
    spread = range(depth // 10, depth, max(1, depth // 6))
    for kind, layers in ((TRANSCODER, range(depth)), (SAE, spread), (CLT, spread)):
        name = build_set(hosted, kind, layers, text)
        print(measure_set_laws(hosted, precise, [name], ids, readout), flush=True)
    on_attention = partial(build_set, hosted, SAE, ids=text, sae_site=SiteKind.ATTN_OUT)
    on_attention(range(depth), name="attention")
    build_set(hosted, TRANSCODER, spread, text, name="some transcoders")
    for sets in ((TRANSCODER.value, "attention"), ("some transcoders", "attention", NEURONS)):
        print(measure_set_laws(hosted, precise, sets, ids, readout), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=default_cache() / "models" / "smollm2",
        help="a plain Hugging Face folder; unset: SmolLM2 in the cache",
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--against", default=AGAINST)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--transcoders",
        type=Path,
        default=TRANSCODERS,
        help="SAELens folders of a transcoder set; left out where the folder is absent",
    )
    options = parser.parse_args()
    hosted, precise = load_model(options.model), load_model(options.model, torch.float64)
    readout = logit_readout(
        hosted, hosted.resolve_target(options.target), hosted.resolve_target(options.against)
    )
    print(table(measure_laws(hosted, precise, options.prompt, readout, seed=options.seed)))
    print_set_laws(hosted, precise, options.prompt, readout, options.transcoders)


if __name__ == "__main__":
    main()
