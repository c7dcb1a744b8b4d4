"""Law 5: a score is the sum of its bilinear terms, and shares through the softmax sum to the exact change."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers import AttentionInterface

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import reside, resident_set, sae
from trephine.domain.attention import SourceKind, TraceAttention
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    PositionOutOfRangeError,
    ReplacementNotFoundError,
    UnsupportedOptionError,
)
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.attribution.operators import capture
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.open_layers import layers_of, open_layers
from trephine.engine.graphs.stream import StreamSources
from trephine.engine.models.attention import IMPLEMENTATION, attention_forward, register_attention
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.tracing.tracing import trace_attention

PROMPT = "When Mary and John went to the store"
KINDS = (None, "jumprelu", "skip", "clt", "resid_post", "mixed", "attn_out")
CASES = [(f, k) for f in FAMILIES for k in KINDS if (f, k) != ("gpt_neox", "attn_out")]


def traced(hosted, **options: object):
    """One entry of layer 2, head 3, unless options say otherwise."""
    return finish(
        trace_attention(
            Session(hosted=hosted), TraceAttention(**{"prompt": PROMPT, "layer": 2, "head": 3, **options})
        )
    )


def prepared(family, kind, dtype=torch.float32):
    """A tiny model and the name of a set beside it."""
    hosted = tiny_hosted(family, dtype=dtype)
    return hosted, "neurons" if kind is None else resident_set(hosted, kind)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_terms_sum_to_the_score_and_shares_to_the_change(family, kind):
    """Every kind of set and family: soft caps, rotary positions, windows, head norms, biases included."""
    hosted, name = prepared(family, kind)
    trace = traced(hosted, layer=1 if kind is None else 2, replacement=name, top=1000)
    assert trace.terms_sum == pytest.approx(trace.score, abs=1e-5)
    assert trace.weight == pytest.approx(trace.even + trace.change, abs=1e-6)
    assert trace.residual <= 1e-3 * max(abs(trace.change), 1e-3)
    rival = next(key for key in trace.keys if key.position == trace.runner_up)
    traced_key = next(key for key in trace.keys if key.position == trace.key)
    for side in (trace.query_side, trace.key_side):
        assert len(side) < 1000
        assert sum(term.share for term in side) == pytest.approx(trace.change, abs=1e-5)
        assert sum(term.log_odds for term in side) == pytest.approx(traced_key.score - rival.score, abs=1e-4)
    assert sum(term.score for term in trace.query_side) == pytest.approx(trace.score, abs=1e-4)
    assert sum(key.weight for key in trace.keys) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gpt_neox_sequential"])
def test_terms_are_exact_in_float64(family):
    """Where norms compute in float64 (layer norms), terms sum to the score to rounding."""
    hosted, name = prepared(family, "skip", torch.float64)
    trace = traced(hosted, replacement=name)
    assert trace.terms_sum == pytest.approx(trace.score, abs=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_products_and_all_of_them_the_score(family):
    """With fewer sources than pairs are multiplied out of, single terms sum to the score too."""
    hosted, name = prepared(family, "resid_post")
    trace = traced(hosted, replacement=name, top=1000)
    assert sum(pair.score for pair in trace.pairs) == pytest.approx(trace.score, abs=1e-4)
    worth = next(key.sensitivity for key in trace.keys if key.position == trace.key)
    best = trace.pairs[0]
    assert best.share == pytest.approx(best.score * worth, rel=1e-9)
    assert abs(best.score) >= abs(trace.pairs[-1].score)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_of_the_first_query_are_of_query_and_key(family):
    """It sees one key, itself: one side's sources are still queries, and all pairs are the score."""
    hosted, name = prepared(family, "resid_post")
    trace = traced(hosted, replacement=name, top=1000, query=0, key=0)
    assert sum(pair.score for pair in trace.pairs) == pytest.approx(trace.score, abs=1e-4)


@contextmanager
def spied(layer, seen):
    """Keep what enters a layer's scores: queries, keys, mask, scaling, soft cap."""

    def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, **rest: object):
        if module.layer_idx == layer:
            seen.append((query[0], key[0], attention_mask, scaling or module.scaling, softcap))
        return attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **rest
        )

    AttentionInterface.register(IMPLEMENTATION, attend)
    try:
        yield
    finally:
        register_attention()


def without(hosted, ids, layer, position, vector):
    """What enters a layer's scores when a vector is taken out of its stream at one position, norms frozen."""
    block, seen, handles = hosted.architecture.blocks[layer], [], []
    norms = [block.attention_norm.module]
    norms += [m for n in ("q_norm", "k_norm") if (m := getattr(block.attention.module, n, None)) is not None]
    scales = {}

    def keep(module, args):
        centred = block.attention_norm.centre(args[0]) if module is norms[0] else args[0]
        eps = block.attention_norm.eps if module is norms[0] else module.variance_epsilon
        scales[module] = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)

    def hold(module, args, _out):
        if module is not norms[0]:
            return args[0] * scales[module] * module.weight
        y = block.attention_norm.centre(args[0]) * scales[module] * block.attention_norm.gain
        return y if block.attention_norm.bias is None else y + block.attention_norm.bias

    def move(_module, args):
        moved = args[0].clone()
        moved[0, position] -= vector
        return (moved, *args[1:])

    with torch.no_grad(), spied(layer, seen):
        handles = [module.register_forward_pre_hook(keep) for module in norms]
        hosted.model(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        handles = [module.register_forward_hook(hold) for module in norms]
        handles.append(norms[0].register_forward_pre_hook(move))
        hosted.model(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
    return seen


def pattern_row(query, key, mask, scaling, softcap, head, position):
    """The softmax over keys of one head and query."""
    group = query.shape[0] // key.shape[0]
    row = scaling * key[head // group] @ query[head, position]
    row = row if softcap is None else softcap * torch.tanh(row / softcap)
    return torch.softmax(row + mask[0, 0, position, : len(row)], -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_falls_without_a_source_is_what_the_model_does(family):
    """The oracle takes a source out of the queries, or out of one key, of the Hugging Face forward pass."""
    hosted, name = prepared(family, "jumprelu")
    trace = traced(hosted, replacement=name, top=1000)
    ids = [token.id for token in trace.tokens]
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, ids)
        active = finish(activate(hosted, operators, layers_of(name, (0, 1, 2))))
        sources = StreamSources(hosted=hosted, operators=operators, active=active, layer=2)
        parts = list(sources.parts(range(len(ids))))
    vectors = {
        (part.kind, part.layer, int(part.index[n]), int(part.position[n])): part.vectors[n].clone()
        for part in parts
        for n in range(len(part.index))
    }
    checked = 0
    for side, terms in (("query", trace.query_side), ("key", trace.key_side)):
        for term in [t for t in terms if t.source.kind in (SourceKind.FEATURE, SourceKind.HEAD)][:6]:
            source = term.source
            moved = vectors[source.kind, source.layer, source.index, source.position]
            (q, k, *how), (q2, k2, *_) = without(hosted, ids, 2, source.position, moved)
            after = (q2, k) if side == "query" else (q, k2)
            rows = [pattern_row(*qk, *how, 3, trace.query) for qk in ((q, k), after)]
            fall = float(rows[0][trace.key] - rows[1][trace.key])
            assert term.alone == pytest.approx(fall, abs=2e-6)
            checked += abs(fall) > 1e-4
    assert checked >= 6


def test_a_window_hides_keys():
    """Gemma-2's sliding layers see six keys; a key outside is refused by name."""
    hosted, name = prepared("gemma2", None)
    trace = traced(hosted, layer=0, replacement=name)
    assert [key.position for key in trace.keys] == list(range(trace.query - 5, trace.query + 1))
    with pytest.raises(PositionOutOfRangeError, match="sees keys 2 to 7"):
        traced(hosted, layer=0, key=0)


def test_the_first_query_sees_itself_alone():
    """One visible key: nothing competes, nothing is to be explained, and no share is invented."""
    hosted, _ = prepared("llama", None)
    trace = traced(hosted, query=0)
    assert (trace.key, trace.runner_up, trace.weight, trace.change) == (0, None, 1.0, 0.0)
    assert all(term.share == 0 and term.alone == 0 for term in trace.query_side)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layer": 3}, LayerOutOfRangeError),
        ({"head": 4}, InvalidRequestError),
        ({"query": 8}, PositionOutOfRangeError),
        ({"query": 2, "key": 5}, PositionOutOfRangeError),
        ({"replacement": "nothing"}, ReplacementNotFoundError),
        ({"top": 0}, InvalidRequestError),
    ],
)
def test_what_is_not_there_is_refused_by_name(options, error):
    """Layers, heads, positions and sets that do not exist."""
    hosted, _ = prepared("llama", None)
    with pytest.raises(error):
        traced(hosted, **options)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt2"])
def test_several_sets_take_the_stream_apart(family):
    """Attention's dictionaries, one MLP's transcoder and neurons: terms add up, each says whose it is."""
    hosted = tiny_hosted(family)
    sets = (resident_set(hosted, "skip", layers=(1,)), resident_set(hosted, "attn_out", name="attention"))
    trace = traced(hosted, replacement=sets[0], beside=(sets[1], NEURONS), top=1000)
    assert trace.terms_sum == pytest.approx(trace.score, rel=1e-4)
    assert (trace.replacement, trace.beside) == (sets[0], (sets[1], NEURONS))
    every = [term.source for term in (*trace.query_side, *trace.key_side)]
    features = [source for source in every if source.kind is SourceKind.FEATURE]
    assert {source.replacement for source in features} == {*sets, NEURONS}
    assert any(source.label.startswith("feature attention:") for source in features)
    assert any(source.label.startswith("neuron 0:") for source in features)
    assert not [source for source in every if source.kind is SourceKind.HEAD]  # all are reconstructed
    errors = {source.label.split(" @")[0] for source in every if source.kind is SourceKind.ERROR}
    assert errors >= {"error of attn_out 0", "error of attn_out 1", "error of layer 1"}
    assert {source.replacement for source in every if source.kind is SourceKind.SKIP} == {sets[0]}
    ids = [token.id for token in trace.tokens]
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, ids)
        active = finish(activate(hosted, operators, open_layers(hosted, (*sets, NEURONS), (0, 1))))
        parts = list(
            StreamSources(hosted=hosted, operators=operators, active=active, layer=2).parts(range(len(ids)))
        )
        whole = torch.zeros_like(operators.embedding)
        for part in parts:
            whole.index_add_(0, part.position, part.vectors)
        torch.testing.assert_close(whole, operators.layers[2].resid_pre, rtol=0, atol=1e-5)
    vectors = {
        (part.replacement, part.layer, int(part.index[n]), int(part.position[n])): part.vectors[n].clone()
        for part in parts
        if part.kind is SourceKind.FEATURE
        for n in range(len(part.index))
    }
    for name in (*sets, NEURONS):
        term = next(
            t
            for t in trace.query_side
            if t.source.replacement == name and t.source.kind is SourceKind.FEATURE
        )
        source = term.source
        moved = vectors[name, source.layer, source.index, source.position]
        (q, k, *how), (q2, *_) = without(hosted, ids, 2, source.position, moved)
        rows = [pattern_row(*qk, *how, 3, trace.query) for qk in ((q, k), (q2, k))]
        assert term.alone == pytest.approx(float(rows[0][trace.key] - rows[1][trace.key]), abs=2e-6)


def test_sets_that_cannot_be_spanned_together_are_refused():
    """Two at one site, and neurons first."""
    hosted = tiny_hosted("llama")
    sets = (resident_set(hosted, "skip"), resident_set(hosted, "relu", name="other"))
    with pytest.raises(UnsupportedOptionError, match="both reconstruct mlp_out") as refused:
        traced(hosted, replacement=sets[0], beside=sets[1:])
    assert refused.value.context["field"] == "beside"
    assert "`layers`" not in str(refused.value)  # this command has no such option
    with pytest.raises(InvalidRequestError, match="name a set as the replacement"):
        traced(hosted, beside=sets[:1])


def test_sets_that_meet_only_above_the_pattern_are_spanned():
    """What is never opened cannot be in the way: below, nothing is reconstructed twice."""
    hosted = tiny_hosted("llama")
    sets = (
        resident_set(hosted, "relu", layers=(0, 2)),
        resident_set(hosted, "skip", layers=(2,), name="other"),
        resident_set(hosted, "resid_post", layers=(1,), name="lower"),
        reside(hosted, [sae(hosted, Site(kind=SiteKind.RESID_PRE, layer=2))], "upper"),
    )
    for pair in (sets[:2], sets[2:]):
        trace = traced(hosted, layer=1, replacement=pair[0], beside=pair[1:])
        assert trace.terms_sum == pytest.approx(trace.score, rel=1e-4)
        with pytest.raises(UnsupportedOptionError) as refused:
            traced(hosted, layer=2, replacement=pair[0], beside=pair[1:])
        assert "`layers`" not in str(refused.value)
