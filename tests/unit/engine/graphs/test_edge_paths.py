"""Edges taken apart: parts and remainder are the edge, factors are products, paths are interventions."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import NAME, reside, resident_set, sae
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_edges import ExplainEdges, HopKind
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.errors import InvalidRequestError, ParentChangedError
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import AttentionScore, DirectionValue, FeatureValue
from trephine.engine.attribution.attention_scores import head_scores
from trephine.engine.attribution.live import rotate
from trephine.engine.attribution.operators import capture, push_through
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.graphs.stream import head_outputs
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.tracing.edges import explain_edges

PROMPT = "When Mary and John went"
CHOICE = LogitTarget(token=" Mary", against=" John")
KINDS = (None, "skip", "clt", "resid_post", "attn_out", "mixed", "normalised")
CASES = [
    (family, kind)
    for family in FAMILIES
    for kind in KINDS
    if (family, kind) != ("gpt_neox", "attn_out") and family != "qwen2"  # as Llama, without biases of its own
]


@cache
def found(family, kind, dtype=torch.float32, n_layers=3, target=CHOICE, positions=()):
    """A tiny model, a circuit over one of its sets, and the circuit's edges."""
    hosted = tiny_hosted(family, dtype=dtype, n_layers=n_layers)
    name = "neurons" if kind is None else resident_set(hosted, kind)
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=target,
        positions=positions,
        replacement=name,
        max_feature_nodes=24,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, command))
    columns = (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    edges = list(zip(*(np.frombuffer(c.data, c.dtype).tolist() for c in columns), strict=True))
    return hosted, circuit, edges


def explained(hosted, circuit, edges, **options: int):
    """Take edges apart."""
    ends = tuple((source, target) for source, target, _ in edges)
    return finish(
        explain_edges(Session(hosted=hosted), ExplainEdges(circuit=circuit, edges=ends, **options))
    ).edges


def sampled(edges, count, seed=0):
    """Some edges of every size, with each target's largest."""
    largest = {}
    for _, target, weight in edges:
        largest[target] = max(largest.get(target, 0.0), abs(weight))
    ranked = sorted(edges, key=lambda edge: abs(edge[2]))
    chosen = random.Random(seed).sample(ranked, min(count, len(ranked)))
    return chosen, [largest[target] for _, target, _ in chosen]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_parts_and_remainder_are_the_edge(family, kind):
    """Straight, heads and skip paths sum to the edge that the sweep found; so do paths and remainder."""
    hosted, circuit, edges = found(family, kind)
    chosen, largest = sampled(edges, 10)
    hops = 0
    for (_, _, weight), scale, one in zip(
        chosen, largest, explained(hosted, circuit, chosen, paths=6, heads=200), strict=True
    ):
        assert abs(one.weight - weight) <= 1e-4 * scale
        assert one.stored == weight
        assert abs(one.direct + sum(head.weight for head in one.heads) - one.weight) <= 1e-4 * scale
        listed = sum(path.weight for path in one.paths)
        assert listed + one.paths_remainder == pytest.approx(one.weight, abs=1e-6 * scale)
        for path in one.paths:
            total = sum(factors.weight for factors in path.factors)
            assert total == pytest.approx(path.weight, abs=1e-5 * scale)
            for factors in path.factors:
                if factors.invariant is not None:
                    assert factors.invariant * factors.dependent == pytest.approx(factors.weight, rel=1e-6)
            hops += len(path.hops)
    assert hops > 0 or kind in ("resid_post", "attn_out")


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "skip"), ("gpt_neox", "clt"), ("gpt2", None)])
def test_all_paths_together_are_the_edge_in_float64(family, kind):
    """Two blocks have few enough paths to list them all: their sum is the edge to 1e-9."""
    hosted, circuit, edges = found(family, kind, torch.float64, 2)
    chosen, largest = sampled(edges, 12)
    for one, scale in zip(explained(hosted, circuit, chosen, paths=200, heads=200), largest, strict=True):
        assert abs(one.heads_remainder) <= 1e-9 * scale
        if len(one.paths) < 200:
            assert abs(one.paths_remainder) <= 1e-9 * scale
            assert len({path.hops for path in one.paths}) == len(one.paths)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_carries_what_its_output_changes(family):
    """A one-hop path equals the head's change when the source's write is taken out of what it reads."""
    hosted, circuit, _ = found(family, "skip")
    token = next(
        n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.TOKEN and node.position == 1
    )
    target = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    one = explained(hosted, circuit, [(token, target, 0.0)], paths=200)[0]
    path = max(
        (p for p in one.paths if len(p.hops) == 1 and p.hops[0].kind is HopKind.HEAD),
        key=lambda p: abs(p.weight),
    )
    hop = path.hops[0]
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, [token.id for token in circuit.tokens])
        layer = operators.layers[hop.layer]
        before = head_outputs(layer, torch.tensor([hop.query]))[0, hop.head]
        layer.resid_pre[hop.key] -= operators.embedding[1].clone()
        after = head_outputs(layer, torch.tensor([hop.query]))[0, hop.head]
        change = push_through(layer.attention_post_norm, (before - after)[None], torch.tensor([hop.query]))
        direction = torch.sub(*(hosted.architecture.W_U[token.id] for token in circuit.choice()))
        last = torch.tensor([operators.n_pos - 1])
        expected = float(push_through(operators.final_norm, change, last)[0] @ direction)
    assert hop.query == operators.n_pos - 1
    assert path.weight == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_virtual_weights_do_not_depend_on_the_prompt():
    """The same features and heads on another prompt: other dependent factors, the same invariant ones."""
    hosted, circuit, _ = found("llama", "jumprelu")
    other = finish(
        discover_circuit(
            hosted,
            DiscoverCircuit(
                prompt="The capital of France is",
                target=LogitTarget(token=" Mary", against=" John"),
                replacement="set",
                max_feature_nodes=60,
                verify_nodes=0,
            ),
        )
    )
    first, second = (straight(hosted, c) for c in (circuit, other))
    common = first.keys() & second.keys()
    assert common
    for name in common:
        assert first[name].invariant == pytest.approx(second[name].invariant, rel=1e-4)
    assert any(abs(first[n].dependent - second[n].dependent) > 1e-3 for n in common)


def straight(hosted, circuit):
    """Factors of the straight paths from features to the logit, by feature."""
    target = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    last = max(node.position for node in circuit.nodes if node.kind is NodeKind.TOKEN)
    features = [
        n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE and node.position == last
    ]
    found = {}
    for n, one in zip(features, explained(hosted, circuit, [(n, target, 0) for n in features]), strict=True):
        direct = [path for path in one.paths if not path.hops]
        if direct:
            found[circuit.nodes[n].layer, circuit.nodes[n].feature] = direct[0].factors[0]
    return found


def test_a_gated_neuron_has_two_readouts_and_an_error_no_invariant():
    """Edges into neurons are estimates with a factor per read-out; errors have no virtual weight."""
    hosted, circuit, edges = found("llama", None)
    into = [edge for edge in edges if circuit.nodes[edge[1]].kind is NodeKind.FEATURE][:3]
    for one in explained(hosted, circuit, into):
        assert one.estimated
        assert {tuple(f.readout for f in path.factors) for path in one.paths} <= {("gate", "read")}
    hosted, circuit, edges = found("llama", "skip")
    errors = [edge for edge in edges if circuit.nodes[edge[0]].kind is NodeKind.ERROR][:3]
    for one in explained(hosted, circuit, errors):
        assert all(factors.invariant is None for path in one.paths for factors in path.factors)


def probe_of(kind, layer):
    """A direction at a site of a tiny model."""
    vector = torch.randn(tiny_hosted("llama").info.d_model, generator=torch.Generator().manual_seed(3))
    return DirectionValue(site=Site(kind=kind, layer=layer), vector=tuple(vector.tolist()))


TARGETS = {
    "feature": FeatureValue(layer=2, index=5),
    "direction after": probe_of(SiteKind.RESID_POST, 1),
    "direction between": probe_of(SiteKind.RESID_MID, 2),
    "direction before": probe_of(SiteKind.RESID_PRE, 2),
    "score": AttentionScore(layer=2, head=1, key=1),
    "score of itself": AttentionScore(layer=2, head=0, key=4),
}


INTO = [
    (family, kind, target)
    for family, kind in (
        *(("llama", None), ("llama", "clt"), ("llama", "resid_post")),
        *(("gpt2", "skip"), ("gemma2", "mixed"), ("gpt_neox", "resid_post")),
    )
    for target in TARGETS
    if (family, target) != ("gpt_neox", "direction between")  # parallel blocks have no such place
]


@pytest.mark.parametrize(("family", "kind", "target"), INTO)
def test_edges_into_every_kind_of_target_come_apart(family, kind, target):
    """Parts and remainder are the edge that discovery stored, whatever is explained."""
    hosted, circuit, edges = found(family, kind, target=TARGETS[target])
    (top,) = (n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    into = sorted((edge for edge in edges if edge[1] == top), key=lambda edge: -abs(edge[2]))[:12]
    assert into
    scale, hops = abs(into[0][2]), 0
    for (_, _, weight), one in zip(into, explained(hosted, circuit, into, paths=8, heads=200), strict=True):
        assert abs(one.weight - weight) <= 1e-4 * scale
        assert abs(one.direct + sum(head.weight for head in one.heads) - one.weight) <= 1e-4 * scale
        assert len({head.hop for head in one.heads}) == len(one.heads)
        listed = sum(path.weight for path in one.paths)
        assert listed + one.paths_remainder == pytest.approx(one.weight, abs=1e-6 * scale)
        assert len(one.paths) <= 8
        sizes = [abs(path.weight) for path in one.paths]
        assert sizes == sorted(sizes, reverse=True)
        for path in one.paths:
            hops += len(path.hops)
            for factors in path.factors:
                if factors.invariant is not None:
                    assert factors.invariant * factors.dependent == pytest.approx(factors.weight, rel=1e-6)
                if "score" in target:
                    assert factors.readout in ("query", "key")
                    assert factors.invariant is None
        assert one.estimated or "score" not in target
    assert hops > 0 or kind in ("mixed", "resid_post")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("target", ["choice", "direction before the first block"])
def test_a_dictionary_on_the_embeddings_ends_what_tokens_do(family, target):
    """Every pair of nodes weighs what discovery stored, and nothing where it stored no edge."""
    hosted = tiny_hosted(family)
    reside(hosted, [sae(hosted, Site(kind=SiteKind.EMBED, layer=0))])
    resident_set(hosted, "skip", name="behind")
    asked = {
        "choice": CHOICE,
        "direction before the first block": probe_of(SiteKind.RESID_PRE, 0),
    }
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=asked[target],
        replacement=NAME,
        beside=("behind",),
        max_feature_nodes=12,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, command))
    columns = (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    stored = {
        (source, above): weight
        for source, above, weight in zip(
            *(np.frombuffer(c.data, c.dtype).tolist() for c in columns), strict=True
        )
    }
    nodes = circuit.nodes
    below = [n for n, node in enumerate(nodes) if node.kind is not NodeKind.LOGIT]
    above = [n for n, node in enumerate(nodes) if node.kind in (NodeKind.LOGIT, NodeKind.FEATURE)]
    pairs = [(source, target) for source in below for target in above if source != target]
    scale = max(abs(weight) for weight in stored.values())
    silent = 0
    for start in range(0, len(pairs), 50):
        some = pairs[start : start + 50]
        for pair, one in zip(some, explained(hosted, circuit, [(*pair, 0.0) for pair in some]), strict=True):
            assert abs(one.weight - stored.get(pair, 0.0)) <= 1e-4 * scale, pair
            silent += pair not in stored and nodes[pair[0]].kind is NodeKind.TOKEN
    assert silent
    assert any(nodes[source].kind is NodeKind.TOKEN for source, _ in stored)


def test_a_head_that_both_sides_of_a_score_read_through_is_one_share():
    """Light on either side may be heavy on both: few heads that are asked for are the first of all."""
    hosted, circuit, edges = found("llama", None, target=TARGETS["score of itself"])
    (top,) = (n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    into = sorted((edge for edge in edges if edge[1] == top), key=lambda edge: -abs(edge[2]))[:12]
    for whole, few in zip(
        explained(hosted, circuit, into, heads=200), explained(hosted, circuit, into, heads=2), strict=True
    ):
        assert [head.hop for head in few.heads] == [head.hop for head in whole.heads[:2]]
        for head, first in zip(few.heads, whole.heads, strict=False):
            assert head.weight == pytest.approx(first.weight, rel=1e-5)


def test_de_embeddings_name_the_tokens_that_a_path_reads():
    """Straight into a logit: embeddings through the final norm, times the unembedding direction."""
    hosted, circuit, _ = found("llama", "skip")
    token = next(
        n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.TOKEN and node.position == 4
    )
    target = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    one = explained(hosted, circuit, [(token, target, 0.0)], paths=200, tokens=3)[0]
    path = next(path for path in one.paths if not path.hops)
    with torch.inference_mode():
        embeddings = hosted.architecture.embedding(torch.arange(400))
        normed = hosted.architecture.final_norm.module(embeddings)
        direction = torch.sub(*(hosted.architecture.W_U[token.id] for token in circuit.choice()))
        scores = normed @ direction
    assert [token.id for token, _ in path.excites] == scores.topk(3).indices.tolist()
    assert [token.id for token, _ in path.inhibits] == (-scores).topk(3).indices.tolist()
    assert [score for _, score in path.excites] == pytest.approx(scores.topk(3).values.tolist(), rel=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3", "gpt_neox"])
def test_de_embeddings_of_a_score_go_through_the_norm_in_front_of_it(family, layer):
    """Straight into either side: embeddings through the block's own norm, each with a scale of its own."""
    hosted, circuit, _ = found(family, "skip", target=AttentionScore(layer=layer, head=1, key=1))
    top = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, [token.id for token in circuit.tokens])
        scores, norm = head_scores(operators.layers[layer], 1), operators.layers[layer].block.attention_norm
        embeddings = hosted.architecture.embedding(torch.arange(400))
        normed = norm.module(embeddings) - (0 if norm.bias is None else norm.bias)
    unknown = torch.tensor([not token.raw for token in hosted.tokens(range(400))])
    sides = {
        "query": (4, scores.queries, scores.key[1]),
        "key": (1, scores.keys, scores.query[4]),
    }
    for name, (position, projection, other) in sides.items():
        token = next(
            n
            for n, node in enumerate(circuit.nodes)
            if (node.kind, node.position) == (NodeKind.TOKEN, position)
        )
        one = explained(hosted, circuit, [(token, top, 0.0)], paths=200, tokens=3)[0]
        (path,) = (p for p in one.paths if not p.hops and p.factors[0].readout == name)
        read = normed @ projection.weight.T
        if projection.own_scale is not None:  # of queries and keys: the prompt's, as the other side is
            read = read * projection.own_scale[position]
        if projection.rotation is not None:
            read = rotate(read, *(part[position] for part in projection.rotation))
        expected = (0.5 * scores.scaling * read @ other).masked_fill(unknown, 0)
        for sign, shown in ((1, path.excites), (-1, path.inhibits)):
            most = (sign * expected).topk(3)
            assert [token.id for token, _ in shown] == most.indices.tolist()
            assert [sign * score for _, score in shown] == pytest.approx(most.values.tolist(), rel=1e-3)


def test_what_cannot_be_explained_is_refused():
    """Nodes that do not exist, a logit as source, a token as target, other weights."""
    hosted, circuit, edges = found("llama", "skip")
    logit = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    token = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.TOKEN)
    for pair in ((10_000, logit), (logit, logit), (0, token)):
        with pytest.raises(InvalidRequestError):
            explained(hosted, circuit, [(*pair, 0.0)])
    with pytest.raises(InvalidRequestError):
        ExplainEdges(circuit=circuit, edges=())
    with pytest.raises(ParentChangedError):
        explained(tiny_hosted("llama", seed=5), circuit, edges[:1])
