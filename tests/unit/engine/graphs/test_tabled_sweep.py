"""A sweep over tables is the sweep over operators, for every kind of set that has tables."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import KINDS, NAME, resident_set
from tests.unit.engine.graphs.test_laws_of_sets import SUMS, prepared, some_cells
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.targets import AttentionScore
from trephine.engine.attribution.places import ATTENTION, EMBEDDING, PER_BLOCK
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.graphs import actives, basis, tabled_sweep
from trephine.engine.graphs import tables as tables_of_prompts
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.sweeping import sweep_features
from trephine.engine.graphs.tabled_sweep import sweep_over_tables
from trephine.engine.graphs.tabled_targets import tabled_reads
from trephine.engine.graphs.tables import can_be_tabled, is_tabled, packs_of, sweep_tables
from trephine.engine.graphs.target_attention import score_target
from trephine.engine.graphs.targets import FeatureTargets, feature_targets, logit_targets, read_targets
from trephine.engine.graphs.writes import PADDING
from trephine.engine.models.quanta import finish

WITHOUT = {"resid_post", "attn_out", "mixed"}
"""Kinds of sets that are swept without tables."""
PARTS = ("features", "errors", "tokens", "bias")


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def same(ours, theirs):
    """Every sum is the same, up to the order in which it was added."""
    scale = float(theirs.mass.max() + theirs.bias.abs().max())
    for part in PARTS:
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize(("grows", "padding"), [(False, 1 << 20), (True, 1 << 20), (True, 0)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT])
def test_tables_give_the_same_sums(family, kind, grows, padding, monkeypatch):
    """Features at every layer and position, and logits; targets all the way or as they come alive.

    What stands at a position is one pack, or several.
    """
    monkeypatch.setattr(tabled_sweep, "_FEW_ROWS", 0 if grows else 1 << 20)
    monkeypatch.setattr(tables_of_prompts, "PADDING", padding)
    hosted, operators, active = prepared(family, kind)
    assert can_be_tabled(active)
    assert not is_tabled(active, operators)  # a processor gains nothing by them
    tables = finish(sweep_tables(hosted, operators, active))
    several = any(layer.written.positions is not None for layer in tables.layers)
    assert several == (padding == 0) or kind.endswith("topk")  # as many features everywhere: one pack each
    last = active.position == active.n_pos - 1
    early = (active.position < 3).nonzero().flatten()
    every = some_cells(active, 6)
    for cells in (every, every[active.position[every] < 3], early[:1], last.nonzero().flatten()[-2:].flip(0)):
        targets = feature_targets(hosted, operators, active, cells)
        theirs = finish(sweep_features(hosted, operators, active, targets))
        same(finish(sweep_over_tables(tables, targets)), theirs)
        assert float(theirs.mass.max()) > 0
    logits = logit_targets(operators, [logit_readout(hosted, 44, 9), logit_readout(hosted, 7)])
    theirs = finish(sweep_features(hosted, operators, active, logits))
    same(finish(sweep_over_tables(tables, logits)), theirs)


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["jumprelu", "skip", "clt"])
def test_tables_give_the_same_sums_of_scores(family, kind, grows, monkeypatch):
    """Both sides of a score of every block, alone and among features: they start below its attention."""
    monkeypatch.setattr(tabled_sweep, "_FEW_ROWS", 0 if grows else 1 << 20)
    hosted, operators, active = prepared(family, kind)
    tables = finish(sweep_tables(hosted, operators, active))
    parts = [
        part
        for layer in (2, 1, 0)
        for part in score_target(operators, AttentionScore(layer=layer, head=1, key=4), 7, 1.0).parts
    ]
    scores = read_targets(operators, parts)
    features = feature_targets(hosted, operators, active, some_cells(active, 6))
    order = torch.cat([scores.place, features.place]).argsort(descending=True, stable=True)
    among = FeatureTargets(
        **{
            field.name: torch.cat([getattr(scores, field.name), getattr(features, field.name)])[order]
            for field in fields(FeatureTargets)
        }
    )
    lowest = read_targets(operators, parts[-1:])
    for targets in (scores, among, lowest):
        assert not tabled_sweep.reads_attention(tables, targets)
        theirs = finish(sweep_features(hosted, operators, active, targets))
        same(finish(sweep_over_tables(tables, targets)), theirs)
        scale = theirs.mass + theirs.bias.abs()
        assert ((theirs.total - targets.total).abs() / scale).max() < SUMS


def test_packs_hold_everything_and_pad_little():
    """Random counts, one of them large: packs follow each other, position by position, with room for all."""
    generator = torch.Generator().manual_seed(0)
    standing = torch.stack([torch.randint(2, most, (50,), generator=generator) for most in (5, 14, 92, 4)])
    standing[1:, 17] += torch.tensor([0, 300, 5000])
    packs = packs_of(standing)
    rows = packs.counts * packs.widths[:, None]
    assert (rows >= standing).all()
    assert (rows.sum(1) <= PADDING * standing.sum(1)).all()
    assert packs.counts[0].eq(1).all()
    assert packs.counts[3, 17] > 1
    assert packs.rows == int(rows.sum())
    assert packs.starts[0, 0] == 0
    assert torch.equal(packs.starts.flatten().diff(), rows.flatten()[:-1])
    of_sites = packs.positions.split(packs.counts.sum(1).tolist())
    for at, own in zip(of_sites, packs.counts, strict=True):
        assert torch.equal(at.bincount(), own)
        assert (at.diff() >= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT])
def test_tabled_reads_are_the_targets(family, kind):
    """Given in any order, features read what `feature_targets` says, from the top down."""
    hosted, operators, active = prepared(family, kind)
    cells = some_cells(active, 8)
    shuffled = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))]
    ours = tabled_reads(hosted, operators, active).targets(shuffled)
    theirs = feature_targets(hosted, operators, active, shuffled)
    for part in ("place", "position", "adjoint", "constant", "total"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "jumprelu"), ("llama", "clt"), ("gpt2", "skip"), ("gemma2", "jumprelu"), ("gpt_neox", "clt")],
)
def test_a_graph_over_tables_is_the_graph(family, kind, monkeypatch):
    """What a GPU would do, done here: the same nodes, edges and influences."""
    command = DiscoverCircuit(
        prompt="When Mary and John went to the store John gave a drink to",
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=NAME,
        max_feature_nodes=100,
        verify_nodes=0,
    )
    hosted = tiny_hosted(family)
    resident_set(hosted, kind)
    theirs = finish(discover_circuit(hosted, command))
    monkeypatch.setattr(basis, "is_tabled", lambda active, operators: True)
    ours = finish(discover_circuit(hosted, command))
    assert [(node.kind, node.layer, node.position, node.feature) for node in ours.nodes] == [
        (node.kind, node.layer, node.position, node.feature) for node in theirs.nodes
    ]
    assert [node.influence for node in ours.nodes] == pytest.approx(
        [node.influence for node in theirs.nodes], rel=1e-3, abs=1e-6
    )
    for part in ("source", "target"):
        assert getattr(ours.edges, part) == getattr(theirs.edges, part)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("kind", ["jumprelu", "topk", "normalised", "clt"])
def test_layers_are_listed_together_as_apart(kind, keep_first, monkeypatch):
    """On a GPU one list is made of all layers, here of two at a time."""
    hosted, operators, _ = prepared("llama", kind)
    covered = hosted.replacements[NAME].covered
    apart = finish(activate(hosted, operators, layers_of(NAME, covered), keep_first=keep_first))
    monkeypatch.setattr(actives, "_groups", lambda infos, operators: [infos[:2], infos[2:]])
    together = finish(activate(hosted, operators, layers_of(NAME, covered), keep_first=keep_first))
    assert len(apart.layers) > 2
    for part in ("layer", "position", "index", "activation"):
        assert torch.equal(getattr(together, part), getattr(apart, part))
    for ours, theirs in zip(together.layers, apart.layers, strict=True):
        assert (ours.start, ours.offsets) == (theirs.start, theirs.offsets)
        for part in ("position", "index", "written", "read_scale"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))


def test_targets_on_attention_are_swept_without_tables():
    """They see the stream through attention alone; logits stand above all blocks, at a place like theirs."""
    hosted, operators, active = prepared("llama", "jumprelu")
    tables = finish(sweep_tables(hosted, operators, active))
    logits = logit_targets(operators, [logit_readout(hosted, 7)])
    assert not tabled_sweep.reads_attention(tables, logits)
    assert tabled_sweep.reads_attention(
        tables, replace(logits, place=torch.tensor([PER_BLOCK * 2 + ATTENTION]))
    )
    assert not tabled_sweep.reads_attention(tables, replace(logits, place=torch.tensor([EMBEDDING])))


def weights(circuit):
    """Edge weights as a tensor."""
    return torch.frombuffer(bytearray(circuit.edges.weight.data), dtype=torch.float32)


@pytest.mark.parametrize("kind", sorted(WITHOUT))
def test_dictionaries_between_have_no_tables(kind):
    """On the stream or on attention's output a dictionary cuts what tables would multiply through."""
    _, _, active = prepared("llama", kind)
    assert not can_be_tabled(active)
