"""Laws 3 and 4 for graphs over replacement sets of every kind."""

from __future__ import annotations

import random

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import KINDS, NAME, reside, resident_set, sae
from tests.set_oracle import SetOracle
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import clean_value, is_cut
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.sweeping import segment_of, sweep_features
from trephine.engine.graphs.targets import feature_targets, logit_targets
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.normalisation import Normalisation, NormalisationRule
from trephine.engine.replacements.sets import opened

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
SUMS = 2e-5
"""Of a row's absolute mass: float32 rounding over three blocks."""
EDGES = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Of a row's largest edge: rounding alone."""


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def prepared(family, kind, dtype=torch.float32, layers=None, device="cpu"):
    """A tiny model with a set, its clean pass and its active features."""
    hosted = tiny_hosted(family, dtype=dtype, device=device)
    resident_set(hosted, kind, layers=layers)
    operators = capture(hosted.model, hosted.architecture, IDS)
    covered = hosted.replacements[NAME].covered
    return hosted, operators, finish(activate(hosted, operators, layers_of(NAME, covered), keep_first=True))


def some_cells(active, count, seed=0):
    """Active features of every layer, position 0 and the last one among them, from the top down."""
    chooser = random.Random(seed)
    cells = []
    for layer in reversed(active.layers):
        own = range(layer.start, layer.start + layer.count)
        cells += sorted(chooser.sample(own, min(count, layer.count)))
    return torch.tensor(cells)


def swept(hosted, operators, active, cells):
    """Targets and sums of cells, one sweep per stretch of the stream."""
    places = active.places(cells)
    segments = segment_of(active, places)
    for segment in segments.unique().tolist():
        own = cells[segments == segment]
        targets = feature_targets(hosted, operators, active, own)
        yield own, targets, finish(sweep_features(hosted, operators, active, targets))


def possible(family, kind):
    """Dictionaries on attention's output need sequential blocks."""
    return not (kind == "attn_out" and family == "gpt_neox")


CASES = [(family, kind) for family in FAMILIES for kind in KINDS if possible(family, kind)]
PRECISE = [(family, kind, torch.float32) for family, kind in CASES] + [
    ("gpt2", kind, torch.float64)  # its layer norms compute in float64, RMS norms do not
    for kind in KINDS
]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_rows_sum_to_what_they_explain(family, kind):
    """Law 3: edges, errors, tokens and constants sum to pre-activations without b_enc, and to logits."""
    hosted, operators, active = prepared(family, kind)
    for _, targets, sums in swept(hosted, operators, active, some_cells(active, 6)):
        scale = sums.mass + sums.bias.abs()
        assert ((sums.total - targets.total).abs() / scale).max() < SUMS
    readout = logit_readout(hosted, 44, 9)
    targets = logit_targets(operators, [readout, logit_readout(hosted, 7)])
    sums = finish(sweep_features(hosted, operators, active, targets))
    assert ((sums.total - targets.total).abs() / sums.mass).max() < SUMS
    assert float(targets.total[0]) == pytest.approx(float(readout.measure(operators.logits)), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pre_activations_are_those_of_the_encoder(kind):
    """What a row explains plus the encoder's constants is the pre-activation that the support rule sees."""
    hosted, operators, active = prepared("llama", kind)
    for layer in active.layers:
        cells = torch.arange(layer.start, layer.start + layer.count)
        targets = feature_targets(hosted, operators, active, cells)
        with opened(hosted, layer.ref.replacement, [layer.info.layer]) as resident:
            found = resident[layer.info.layer]
        code = found.encode(clean_value(operators, layer.info.site_in))
        constant = found.encoder.b_enc[layer.index]
        if found.encoder.shift is not None:
            constant = constant - found.encoder.shift @ found.encoder.W_enc[:, layer.index]
        expected = code.pre[layer.position, layer.index]
        torch.testing.assert_close(targets.total + constant, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "kind", "dtype"), PRECISE)
def test_edges_are_interventions(family, kind, dtype):
    """Law 4: an edge is minus the change of the target when the source is taken out wherever it writes."""
    hosted, operators, active = prepared(family, kind, dtype)
    oracle = oracle_of(hosted, active)
    checked = 0
    for own, targets, sums in swept(hosted, operators, active, some_cells(active, 6, seed=3)):
        for number in range(len(own)):
            checked += check_row(
                hosted, operators, active, oracle, targets, sums, number, int(own[number]), EDGES[dtype]
            )
    assert checked >= 200


@pytest.mark.parametrize("kind", [SiteKind.ATTN_OUT, SiteKind.RESID_POST, SiteKind.MLP_OUT])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_laws_hold_where_normalisation_is_undone(family, kind):
    """Laws 3 and 4 of SAEs with layer norm: means that are read follow, what is put back is constant."""
    hosted, normal = tiny_hosted(family), Normalisation(rule=NormalisationRule.LAYER_NORM)
    reside(hosted, [sae(hosted, Site(kind=kind, layer=layer), normal) for layer in range(3)])
    operators = capture(hosted.model, hosted.architecture, IDS)
    active = finish(activate(hosted, operators, layers_of(NAME, (0, 1, 2)), keep_first=True))
    oracle, checked = oracle_of(hosted, active), 0
    for own, targets, sums in swept(hosted, operators, active, some_cells(active, 6, seed=3)):
        assert ((sums.total - targets.total).abs() / (sums.mass + sums.bias.abs())).max() < SUMS
        if kind is SiteKind.MLP_OUT:  # edges into these are estimates
            continue
        for number, cell in enumerate(own.tolist()):
            row = (hosted, operators, active, oracle, targets, sums, number, cell)
            checked += check_row(*row, EDGES[torch.float32])
    assert checked >= 100 or kind is SiteKind.MLP_OUT


def oracle_of(hosted, active):
    """The frozen model with the set's skip paths live and its attention dictionaries held."""
    skips, held = {}, []
    for layer in active.layers:
        with opened(hosted, layer.ref.replacement, [layer.info.layer]) as resident:
            matrix = resident[layer.info.layer].skip_matrix()
        if matrix is not None:
            skips[layer.info.layer] = matrix
        if layer.info.site_in.kind is SiteKind.ATTN_OUT:
            held.append(layer.info.site_in)
    return SetOracle(hosted, IDS, skips=skips, held=held)


def check_row(hosted, operators, active, oracle, targets, sums, number, cell, tolerance):
    """Compare sampled edges of one row with the oracle; return how many were compared."""
    layer = next(x for x in active.layers if x.start <= cell < x.start + x.count)
    position, site = int(targets.position[number]), layer.info.site_in
    index = int(layer.index[cell - layer.start])
    with opened(hosted, layer.ref.replacement, [layer.info.layer]) as resident:
        encoder = resident[layer.info.layer].encoder
    direction = encoder.W_enc[:, index].to(oracle.embedding.dtype) / layer.read_scale[position]
    centred = encoder.normalisation.rule is NormalisationRule.LAYER_NORM
    edges, moves = sampled(hosted, operators, active, sums, number)
    if not edges:
        return 0

    opposite = [[(s, p, -v) for s, p, v in move] for move in moves]
    # One run of the oracle: without a move, with each source taken out, and with each added once more.
    read = oracle.read([(), *opposite, *moves], site)[:, position]
    if centred:  # the scale is held, the mean follows
        read = read - read.mean(-1, keepdim=True)
    values = read @ direction
    removed = values[0] - values[1 : len(moves) + 1]
    added = values[len(moves) + 1 :] - values[0]
    expected = torch.tensor(edges, dtype=values.dtype, device=values.device)
    largest = max(float(sums.features[number].abs().max()), float(expected.abs().max()))
    # The oracle subtracts two readings; where all edges are tiny beside them, their rounding is what is left.
    reading = float(read[0].norm() * direction.norm())
    # What loses its mean is, in the product, the encoder: it rounds in the dtype of the set.
    dtype = encoder.W_enc.dtype if centred else values.dtype
    allowed = tolerance * largest + torch.finfo(dtype).eps * reading
    assert (removed - expected).abs().max() <= allowed
    assert (added - expected).abs().max() <= allowed
    return len(edges)


def sampled(hosted, operators, active, sums, number):
    """Sources of a row by kind: features over all deciles, errors, tokens; with what each writes where."""
    chooser = random.Random(number)
    row = sums.features[number]
    live = row.nonzero().flatten().tolist()
    ranked = sorted(live, key=lambda cell: abs(float(row[cell])))
    deciles = [ranked[len(ranked) * d // 10 : len(ranked) * (d + 1) // 10] for d in range(10)]
    chosen = [cell for decile in deciles for cell in chooser.sample(decile, min(2, len(decile)))]
    edges, moves = [], []
    for cell in chosen:
        edges.append(float(row[cell]))
        moves.append(writes_of(hosted, active, cell))
    for site in active.error_sites:
        for position in (0, 4):
            edge = float(sums.errors[number, active.error_sites.index(site), position])
            if edge:
                edges.append(edge)
                moves.append([(site, position, active.errors[site][position])])
    for position, token in enumerate(sums.tokens[number].tolist()):
        if token:
            edges.append(token)
            embedding = operators.embedding[position]
            moves.append([(Site(kind=SiteKind.EMBED, layer=0), position, embedding)])
    return edges, moves


def writes_of(hosted, active, cell):
    """Where and what a feature writes."""
    layer = next(x for x in active.layers if x.start <= cell < x.start + x.count)
    own = cell - layer.start
    with opened(hosted, layer.ref.replacement, [layer.info.layer]) as resident:
        found = resident[layer.info.layer]
        return [
            (
                site,
                int(layer.position[own]),
                found.decoders([int(layer.index[own])], site)[0].double() * float(layer.written[own]),
            )
            for site in layer.info.sites_out
        ]


def test_position_zero_is_error_as_a_whole():
    """Sets are not trained on the sink: by default they have no feature there, and rows still sum."""
    hosted, operators, _ = prepared("llama", "skip")
    active = finish(activate(hosted, operators, layers_of(NAME, (0, 1, 2))))
    assert int(active.position.min()) == 1
    site = Site(kind=SiteKind.MLP_OUT, layer=1)
    with opened(hosted, NAME, [1]) as resident:
        skipped = clean_value(operators, Site(kind=SiteKind.MLP_IN, layer=1))[0] @ resident[1].W_skip.T
    torch.testing.assert_close(active.errors[site][0], operators.layers[1].mlp_out[0] - skipped)
    targets = logit_targets(operators, [logit_readout(hosted, 44, 9)])
    sums = finish(sweep_features(hosted, operators, active, targets))
    assert ((sums.total - targets.total).abs() / sums.mass).max() < SUMS


def test_adjoints_end_at_a_dictionary_on_the_stream():
    """Features above read the dictionary's features and its error; nothing below it, no token."""
    hosted, operators, active = prepared("llama", "resid_post")
    assert len(active.cuts) == 3
    targets = logit_targets(operators, [logit_readout(hosted, 44, 9)])
    sums = finish(sweep_features(hosted, operators, active, targets))
    top = active.layers[-1]
    assert is_cut(top.info)
    assert sums.features[0, : top.start].abs().max() == 0
    assert sums.tokens.abs().max() == 0
    assert sums.features[0, top.start :].abs().max() > 0


def test_an_uncovered_mlp_is_error_as_a_whole():
    """With two of three layers covered the third's output is one error source per position."""
    _, operators, active = prepared("llama", "jumprelu", layers=(0, 2))
    site = Site(kind=SiteKind.MLP_OUT, layer=1)
    assert torch.equal(active.errors[site], operators.layers[1].mlp_out)
    assert {layer.info.layer for layer in active.layers} == {0, 2}


@pytest.mark.parametrize("kind", [SiteKind.ATTN_Z, SiteKind.NEURONS])
def test_sites_without_a_law_are_refused(kind):
    """An SAE on an MLP's neurons or the heads' values is refused by name, before any work."""
    hosted = tiny_hosted("llama")
    reside(hosted, [sae(hosted, Site(kind=kind, layer=1))])
    operators = capture(hosted.model, hosted.architecture, IDS)
    with pytest.raises(UnsupportedOptionError, match=f"from {kind.value} to {kind.value}"):
        finish(activate(hosted, operators, layers_of(NAME, [1])))


def test_attention_dictionaries_of_parallel_blocks_are_refused():
    """In a parallel block attention's output is not between two places of the stream."""
    hosted = tiny_hosted("gpt_neox")
    resident_set(hosted, "attn_out")
    operators = capture(hosted.model, hosted.architecture, IDS)
    with pytest.raises(UnsupportedOptionError, match="parallel blocks"):
        finish(activate(hosted, operators, layers_of(NAME, [0])))
