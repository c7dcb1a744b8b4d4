"""Effects through attention on a small induction model: exact softmax, gradient, frozen patterns.

    python -m benchmarks.attention_effects

A two-layer GPT-2 (64 wide, 4 heads) is trained for some minutes on sequences whose every bigram is fixed
within a sequence, with jumps to earlier tokens, so that only induction predicts what follows. Then, on pairs
of a sequence and one in which another token looks, or the tokens before two keys have changed places:

A. every edge (embedding, four heads of layer 0, MLP 0, by position) into the queries and keys of layer 1 is
   patched in the model itself, with layer norms recomputed, and compared with what estimators predict;
B. the joint change of all six sources at the last query is dealt out and compared with exact Shapley values
   over 64 masked runs.

What is tested is `engine.attention_scores` (score changes, norm scales frozen) and `engine.softmax_paths`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import factorial
from typing import Any

import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AutoModelForCausalLM, GPT2Config

from tests.builders import hosted_from  # noqa: TID251
from trephine.engine.attribution.attention_scores import HeadScores, head_scores
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.graphs.stream import head_outputs
from trephine.engine.models.attention import IMPLEMENTATION, attention_forward, register_attention
from trephine.engine.models.hosted import HostedModel
from trephine.engine.tracing.softmax_paths import allocate, integrate, tilted

D_VOCAB, LENGTH, HEADS = 34, 32, 4
SOURCES = ("embedding", *(f"head 0.{head}" for head in range(HEADS)), "mlp 0")
_FOLLOW = 0.75
"""Share of tokens that follow the sequence's bigram; the rest jump to an earlier token."""


def sequences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw sequences `(count, LENGTH)`, and which tokens induction predicts, bool of the same shape."""
    noise = torch.rand(count, D_VOCAB, generator=generator)
    following = noise.argsort(1)
    tokens = torch.zeros(count, LENGTH, dtype=torch.int64)
    known = torch.zeros(count, LENGTH, dtype=torch.bool)
    seen = torch.zeros(count, D_VOCAB, dtype=torch.bool)
    rows = torch.arange(count)
    tokens[:, 0] = torch.randint(D_VOCAB, (count,), generator=generator)
    for place in range(1, LENGTH):
        last = tokens[:, place - 1]
        follow = torch.rand(count, generator=generator) < _FOLLOW
        back = (torch.rand(count, generator=generator) * place).long()
        known[:, place] = follow & seen[rows, last]
        seen[rows, last] |= follow
        tokens[:, place] = torch.where(follow, following[rows, last], tokens[rows, back])
    return tokens, known


def train(steps: int, seed: int = 0) -> HostedModel:
    """Train the induction model; return it hosted, with its accuracy on predictable tokens printed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = GPT2Config(
        vocab_size=D_VOCAB, n_embd=64, n_inner=128, n_layer=2, n_head=HEADS, n_positions=LENGTH,
        bos_token_id=None, eos_token_id=0, pad_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        tokens, known = sequences(64, generator)
        logits = model(input_ids=tokens).logits[:, :-1]
        wanted = torch.where(known[:, 1:], tokens[:, 1:], -100)
        cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    tokens, known = sequences(500, generator)
    with torch.no_grad():
        right = model(input_ids=tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    print(f"induction: {float(right[known[:, 1:]].float().mean()):.1%} of predictable tokens right")
    return hosted_from(model)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clean and a corrupted sequence; in the corrupted one another earlier token was followed."""

    clean: Tensor
    corrupted: Tensor
    right: int
    wrong: int


def pairs(hosted: HostedModel, count: int, seed: int) -> list[Pair]:
    """Draw pairs that the model answers right on both sides."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Pair] = []
    while len(found) < count:
        clean = torch.randperm(D_VOCAB, generator=generator)[:LENGTH].clone()
        first, second = (int(n) for n in 1 + 2 * torch.randperm(LENGTH // 2 - 2, generator=generator)[:2])
        clean[-1] = clean[first]
        corrupted = clean.clone()
        if len(found) % 2:  # another token looks: queries differ
            corrupted[-1] = clean[second]
        else:  # the two tokens change places: keys behind them differ
            corrupted[first], corrupted[second] = clean[second], clean[first]
        pair = Pair(
            clean=clean, corrupted=corrupted, right=int(clean[first + 1]), wrong=int(clean[second + 1])
        )
        with torch.no_grad():
            logits = hosted.model(input_ids=torch.stack([clean, corrupted])).logits[:, -1]
        if logits.argmax(-1).tolist() == [pair.right, pair.wrong]:
            found.append(pair)
    return found


@dataclass(kw_only=True)
class Probe:
    """What a run of the model does in layer 1: queries and keys kept, some of them replaced."""

    query: Tensor = field(default_factory=lambda: torch.empty(0))
    key: Tensor = field(default_factory=lambda: torch.empty(0))
    pattern: Tensor = field(default_factory=lambda: torch.empty(0))
    replaced: tuple[Tensor | None, Tensor | None] = (None, None)
    """Queries and keys `(rows, HEADS, LENGTH, d_head)` to use instead."""


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """Read and replace what layer 1 attends with."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any) -> Any:
        if module.layer_idx != 1:
            return attention_forward(module, query, key, value, mask, **rest)
        probe.query, probe.key = query, key
        query, key = (
            new if new is not None else old for new, old in zip(probe.replaced, (query, key), strict=True)
        )
        scores = query @ key.transpose(2, 3) * module.scaling
        probe.pattern = torch.softmax(scores + mask[..., : key.shape[-2]], -1)
        if probe.pattern.requires_grad:
            probe.pattern.retain_grad()
        return (probe.pattern @ value).transpose(1, 2).contiguous(), probe.pattern

    AttentionInterface.register(IMPLEMENTATION, attend)
    try:
        yield
    finally:
        register_attention()


def written(operators: FrozenOperators) -> Tensor:
    """What each source adds to the stream before layer 1, `(n_sources, LENGTH, 64)`, constants left out."""
    first = operators.layers[0]
    heads = head_outputs(first, torch.arange(LENGTH)).transpose(0, 1)
    mlp = first.mlp_out
    return torch.cat([operators.embedding[None], heads, mlp[None]])


def measured(logits: Tensor, pair: Pair) -> Tensor:
    """The logit difference at the last position."""
    return logits[:, -1, pair.right] - logits[:, -1, pair.wrong]


@dataclass(kw_only=True)
class Case:
    """One pair with everything that estimators need."""

    pair: Pair
    stream: Tensor
    """`(LENGTH, 64)`, before layer 1."""
    change: Tensor
    """`(n_sources, LENGTH, 64)`, corrupted less clean."""
    heads: list[HeadScores]
    query: Tensor
    """`(HEADS, LENGTH, d_head)`."""
    key: Tensor
    by_query: Tensor
    """Gradient of the logit difference by queries, by keys, and by the pattern's last row."""
    by_key: Tensor
    by_pattern: Tensor
    base: float


def prepare(hosted: HostedModel, pair: Pair) -> Case:
    """Run both sequences; take gradients of the clean one."""
    with torch.no_grad():
        clean, corrupted = (
            capture(hosted.model, hosted.architecture, ids.tolist()) for ids in (pair.clean, pair.corrupted)
        )
        heads = [head_scores(clean.layers[1], head) for head in range(HEADS)]
        query = torch.stack([head.query for head in heads])
        key = torch.stack([head.key for head in heads])
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    probe = Probe(replaced=(leaves[0][None], leaves[1][None]))
    with probing(probe), torch.enable_grad():
        value = measured(hosted.model(input_ids=pair.clean[None]).logits, pair)
        value.sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    pattern = probe.pattern.grad
    if pattern is None or gradients[0] is None or gradients[1] is None:
        raise RuntimeError("the probe saw no gradient")
    return Case(
        pair=pair,
        stream=clean.layers[1].resid_pre,
        change=written(corrupted) - written(clean),
        heads=heads,
        query=query,
        key=key,
        by_query=gradients[0],
        by_key=gradients[1],
        by_pattern=pattern[0, :, -1],
        base=float(value.detach()),
    )


def reread(hosted: HostedModel, streams: Tensor, head: int, role: int) -> Tensor:
    """Queries (0) or keys (1) of one head for streams `(n, 64)`, layer norm recomputed."""
    block = hosted.architecture.blocks[1]
    attention: Any = block.attention.module
    projected = attention.c_attn(block.attention_norm.module(streams))
    found: Tensor = projected.chunk(3, -1)[role].unflatten(-1, (HEADS, -1))[:, head]
    return found


def patched(hosted: HostedModel, case: Case, edits: list[tuple[int, int, int, Tensor]]) -> Tensor:
    """Change of the logit difference when (head, role, position) reads another stream, one row each."""
    query, key = (x.expand(len(edits), -1, -1, -1).clone() for x in (case.query, case.key))
    for row, (head, role, position, stream) in enumerate(edits):
        (query, key)[role][row, head, position] = reread(hosted, stream[None], head, role)[0]
    with torch.no_grad(), probing(Probe(replaced=(query, key))):
        logits = hosted.model(input_ids=case.pair.clean.expand(len(edits), -1)).logits
    return measured(logits, case.pair) - case.base


def shift(case: Case, head: int, role: int, position: int, change: Tensor) -> Tensor:
    """Change of the last query's scores `(LENGTH,)`, norm scales frozen, by the engine's projections."""
    scores = case.heads[head]
    at = torch.tensor([position])
    if role == 0:
        moved = scores.queries.project(change[None], at)[0]
        return scores.scaling * scores.key @ moved
    moved = scores.keys.project(change[None], at)[0]
    found = torch.zeros(LENGTH)
    found[position] = scores.scaling * scores.query[-1] @ moved
    return found


def edges(hosted: HostedModel, cases: list[Case]) -> dict[str, list[float]]:
    """Table A: true effects and estimates of every edge that can matter at the last position."""
    found: dict[str, list[float]] = {"true": [], "gradient": [], "exact softmax": []}
    for case in cases:
        asked = [(source, head, 0, LENGTH - 1) for source, head in product(range(len(SOURCES)), range(HEADS))]
        asked += list(product(range(len(SOURCES)), range(HEADS), (1,), range(LENGTH)))
        asked = [each for each in asked if float(case.change[each[0], each[3]].norm()) > 1e-6]
        edits = [(h, r, p, case.stream[p] + case.change[s, p]) for s, h, r, p in asked]
        found["true"] += patched(hosted, case, edits).tolist()
        for source, head, role, position in asked:
            change = case.change[source, position]
            scores, at = case.heads[head], torch.tensor([position])
            projection = scores.queries if role == 0 else scores.keys
            slope = (case.by_query if role == 0 else case.by_key)[head, position]
            found["gradient"].append(float(projection.project(change[None], at)[0] @ slope))
            row, delta = scores.scores(LENGTH - 1).double(), shift(case, head, role, position, change)
            effect = tilted(row, delta.double(), case.by_pattern[head].double(), None)
            found["exact softmax"].append(float(effect))
    return found


def shares(hosted: HostedModel, cases: list[Case]) -> tuple[dict[str, list[float]], dict[int, float]]:
    """Table B: Shapley values of six sources at the last query, and what is dealt out; residuals by nodes."""
    found: dict[str, list[float]] = {"true": [], "gradient": [], "Aumann-Shapley": []}
    residual: dict[int, float] = {}
    masks = list(product((0, 1), repeat=len(SOURCES)))
    for case, head in product(cases, range(HEADS)):
        last = case.change[:, -1]
        edits = [
            (head, 0, LENGTH - 1, case.stream[-1] + (torch.tensor(mask)[:, None] * last).sum(0))
            for mask in masks
        ]
        values = dict(zip(masks, patched(hosted, case, edits).tolist(), strict=True))
        found["true"] += [shapley(values, source) for source in range(len(SOURCES))]
        scores = case.heads[head]
        at = torch.full((len(SOURCES),), LENGTH - 1)
        moved = scores.queries.project(last, at)
        found["gradient"] += (moved @ case.by_query[head, -1]).tolist()
        parts = (scores.scaling * moved @ scores.key.T).double()
        row, g = scores.scores(LENGTH - 1).double(), case.by_pattern[head].double()
        found["Aumann-Shapley"] += (parts @ allocate(row, parts.sum(0), g).worth).tolist()
        for nodes in (8, 16, 32):
            exact = tilted(row, parts.sum(0), g, None)
            path = integrate(row, parts.sum(0), g, exact, None, nodes)
            miss = float(path.residual) / max(abs(float(exact)), 1e-3)
            residual[nodes] = max(residual.get(nodes, 0.0), miss)
    return found, residual


def shapley(values: dict[tuple[int, ...], float], source: int) -> float:
    """The exact Shapley value of a source over all masks."""
    n, total = len(SOURCES), 0.0
    for mask, value in values.items():
        if mask[source]:
            continue
        weight = factorial(sum(mask)) * factorial(n - sum(mask) - 1) / factorial(n)
        total += weight * (values[(*mask[:source], 1, *mask[source + 1 :])] - value)
    return total


def figures(true: list[float], estimate: list[float]) -> tuple[float, float, float, float]:
    """Pearson, Spearman, NMSE, recall of the top 2 %."""
    columns = torch.tensor([true, estimate], dtype=torch.float64)
    constant = float(columns[1].std()) == 0
    pearson = 0.0 if constant else float(torch.corrcoef(columns)[0, 1])
    rank = 0.0 if constant else float(spearmanr(true, estimate).statistic)
    error = float((columns[0] - columns[1]).square().sum() / columns[0].square().sum())
    top = max(1, len(true) // 50)
    best = [set(column.abs().topk(top).indices.tolist()) for column in columns]
    return pearson, rank, error, len(best[0] & best[1]) / top


def main() -> None:
    """Train, measure, print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hosted = train(options.steps, options.seed)
    cases = [prepare(hosted, pair) for pair in pairs(hosted, options.prompts, options.seed + 1)]
    with torch.no_grad():
        found = edges(hosted, cases)
        dealt, residual = shares(hosted, cases[: options.prompts // 2])
    found["frozen patterns"] = [0.0] * len(found["true"])
    for title, table in (("A. edges into queries and keys", found), ("B. six sources at once", dealt)):
        true = table.pop("true")
        print(f"\n{title}: {len(true)}\nESTIMATOR\tPEARSON\tSPEARMAN\tNMSE\tTOP 2 %")
        for name, estimate in table.items():
            print(name, *(f"{figure:.3f}" for figure in figures(true, estimate)), sep="\t")
    told = ", ".join(f"{nodes} nodes {value:.0e}" for nodes, value in residual.items())
    print(f"\nworst residual of B as a share of the exact change: {told}")


if __name__ == "__main__":
    main()
