"""DiscoverGlobalCircuit as the engine runs it: results, the planted edge, refusals, quanta."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted
from tests.global_texts import SOURCE, TARGET, planted_set, request, texts
from tests.resident_sets import degrade, resident_set
from trephine.domain.circuits import NodeKind
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    NonFiniteValueError,
    NothingMatchedError,
    ReplacementNotFoundError,
    ShapeMismatchError,
    TargetNotOneTokenError,
    UnsupportedOptionError,
)
from trephine.domain.global_circuits import CheckGlobalCircuit, DiscoverGlobalCircuit, GrowthStart
from trephine.domain.global_figures import EdgeWeighting, GlobalBaseline, Measured
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.domain.targets import DirectionValue, TargetKind
from trephine.engine.global_circuits import ablations
from trephine.engine.global_circuits.checking import check_global_circuit
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.discovery import discover_global_circuit, prepared
from trephine.engine.global_circuits.texts import pack_texts
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened
from trephine.ipc.codec import command_from_tree, from_tree, to_tree


def discover(command, hosted):
    """Run it to its end."""
    return finish(discover_global_circuit(Session(hosted=hosted), command))


def edges_of(circuit):
    """Edges as `(source node, target node, weight)`."""
    columns = [
        np.frombuffer(column.data, np.dtype(column.dtype)).tolist()
        for column in (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    ]
    return [(circuit.nodes[s], circuit.nodes[t], w) for s, t, w in zip(*columns, strict=True)]


def address(node):
    """Layer and index."""
    return node.layer, node.feature


def ref(at, name="set"):
    """A feature's address."""
    return FeatureRef(replacement=name, layer=at[0], index=at[1])


def test_what_is_found_is_whole():
    """Nodes in order, edges upwards, tokens below and logits above, figures of everything."""
    hosted = tiny_hosted("llama")
    found = discover(request(replacement=resident_set(hosted, "relu")), hosted)
    kinds = [node.kind for node in found.nodes]
    order = [NodeKind.FEATURE, NodeKind.TOKEN, NodeKind.LOGIT]
    assert kinds == sorted(kinds, key=order.index)
    assert [kinds.count(kind) for kind in order] == [24, 6, 6]
    assert found.edge_rule == "twera"
    assert (found.prompt, len(found.tokens)) == ("", 1)
    assert {node.position for node in found.nodes} == {0}
    assert len(found.targets) == 6
    assert sum(node.influence for node in found.nodes) == pytest.approx(1)
    wires = edges_of(found)
    assert all(source.layer < target.layer for source, target, _ in wires)
    assert all(weight for *_, weight in wires)
    into = [id(target) for source, target, _ in wires if source.kind is NodeKind.FEATURE]
    assert max(into.count(one) for one in set(into)) <= 4
    across = found.across
    assert (across.training, across.held_out) == (30, 10)
    assert (across.training_tokens, across.held_out_tokens) == (30 * 8, 10 * 8)
    assert (across.features, across.candidates) == (120, 60)
    assert across.split_half is not None
    assert 0 < across.split_half_overlap <= 1
    assert 0 < across.coverage.value <= 1
    assert [one.measured for one in across.transfer] == list(Measured)
    for one in across.transfer:
        assert one.edges == 16
        assert [each.baseline for each in one.comparisons] == list(GlobalBaseline)
        assert one.spearman.low <= one.spearman.value <= one.spearman.high
    assert found.figures.peak_extra_bytes >= 0
    assert found.layers == (0, 1, 2)
    assert found.set_hash == "set"


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "abs_topk", "skip", "normalised", "clt", NEURONS])
@pytest.mark.parametrize("weighting", list(EdgeWeighting))
def test_every_kind_of_feature(kind, weighting):
    """Both weightings; gated neurons have no coverage, whose parts do not add up."""
    hosted = tiny_hosted("llama")
    name = kind if kind == NEURONS else resident_set(hosted, kind)
    found = discover(request(replacement=name, weighting=weighting), hosted)
    assert found.edge_rule == weighting.value
    assert {node.replacement for node in found.nodes if node.kind is NodeKind.FEATURE} == {name}
    assert (found.across.coverage is None) == (kind == NEURONS)
    assert any("Neurons are estimates" in caveat for caveat in found.caveats) == (kind == NEURONS)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_other_families(family):
    """Plain MLPs, norms behind MLPs, parallel blocks."""
    hosted = tiny_hosted(family)
    found = discover(request(), hosted)
    assert found.across.transfer
    assert edges_of(found)


def test_a_planted_edge_is_found_first():
    """One feature writes what another one reads: it is the heaviest edge there is, without any start."""
    hosted = tiny_hosted("llama")
    found = discover(request(replacement=planted_set(hosted), bounds={"nodes": 2}), hosted)
    features = [node for node in found.nodes if node.kind is NodeKind.FEATURE]
    assert [address(node) for node in features] == [SOURCE, TARGET]
    between = [(s, t, w) for s, t, w in edges_of(found) if s.kind is t.kind is NodeKind.FEATURE]
    assert [(address(s), address(t)) for s, t, _ in between] == [(SOURCE, TARGET)]
    assert between[0][2] > 0


@pytest.mark.parametrize(("start", "other"), [(SOURCE, TARGET), (TARGET, SOURCE)])
def test_a_planted_edge_is_found_from_either_end(start, other):
    """Upwards and downwards, as the only other node that there is room for."""
    hosted = tiny_hosted("llama")
    name = planted_set(hosted)
    command = request(replacement=name, start=GrowthStart(features=(ref(start),)), bounds={"nodes": 2})
    features = [node for node in discover(command, hosted).nodes if node.kind is NodeKind.FEATURE]
    assert {address(node) for node in features} == {start, other}


def test_a_planted_edge_transfers():
    """Its target loses by the ablation what the edge says, and edges beat edges that are dealt out anew."""
    hosted = tiny_hosted("llama")
    command = request(replacement=planted_set(hosted), verify_edges=64, bootstrap=200)
    for one in discover(command, hosted).across.transfer:
        assert one.spearman.low > 0
        dealt = next(each for each in one.comparisons if each.baseline is GlobalBaseline.PERMUTED)
        assert dealt.difference.value > 0


def test_logits_that_are_named_are_nodes_and_grown_from():
    """In the order that they are named in, with edges from the features that add to them most."""
    hosted = tiny_hosted("llama")
    start = GrowthStart(tokens=(" Paris", " cat"))
    found = discover(
        request(replacement=resident_set(hosted, "relu"), start=start, bounds={"nodes": 5, "logits": 0}),
        hosted,
    )
    assert [target.label for target in found.targets] == [" Paris", " cat"]
    assert [target.token.id for target in found.targets] == [
        node.feature for node in found.nodes if node.kind is NodeKind.LOGIT
    ]
    assert {t.label for s, t, _ in edges_of(found) if t.kind is NodeKind.LOGIT} == {" Paris", " cat"}


def test_a_direction_is_a_target():
    """Grown downwards from; what reads above it has no edge to it."""
    hosted = tiny_hosted("llama")
    vector = tuple(torch.randn(32, generator=torch.Generator().manual_seed(0)).tolist())
    direction = DirectionValue(site=Site(kind=SiteKind.RESID_POST, layer=0), vector=vector, name="probe")
    command = request(replacement=resident_set(hosted, "relu"), start=GrowthStart(direction=direction))
    found = discover(command, hosted)
    assert found.targets[-1].kind is TargetKind.DIRECTION
    assert found.targets[-1].label == "probe"
    into = [source for source, target, _ in edges_of(found) if target.label == "probe"]
    assert into
    assert {node.layer for node in into} == {0}


def test_the_same_request_finds_the_same():
    """And another seed draws other resamples only."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")
    first, second, other = (discover(request(replacement=name, seed=seed), hosted) for seed in (0, 0, 1))
    assert first.nodes == second.nodes
    assert first.edges == second.edges == other.edges
    assert first.across == second.across


def test_long_texts_are_read_in_part():
    """The first tokens count; what is the same so far is no further evidence."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")
    found = discover(request(replacement=name, context_tokens=6), hosted)
    assert found.across.training_tokens == 30 * 5
    twins = tuple(one + tail for one in texts(6) for tail in (" cat", " dog"))
    command = DiscoverGlobalCircuit(
        training=twins[:8], held_out=twins[8:], replacement=name, context_tokens=9
    )
    with pytest.raises(InvalidRequestError, match="begins with the same 9 tokens as training") as caught:
        discover(command, hosted)
    assert caught.value.context["field"] == "training[1]"


def refused(command, hosted, kind, field):
    """Both the work and the check refuse it, naming the field."""
    for run in (
        lambda: discover(command, hosted),
        lambda: finish(check_global_circuit(Session(hosted=hosted), CheckGlobalCircuit(command=command))),
    ):
        with pytest.raises(kind) as caught:
            run()
        assert caught.value.context["field"] == field


@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "of_stream", "mixed"])
def test_what_has_no_virtual_weights_is_refused(kind):
    """Dictionaries of the stream and of attention, and transcoders that read in front of the norm."""
    hosted = tiny_hosted("llama")
    refused(request(replacement=resident_set(hosted, kind)), hosted, UnsupportedOptionError, "replacement")


def test_refusals_name_the_field():
    """Sets, layers, starts and texts that there are not."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")

    def start(what):
        return request(replacement=name, start=what)

    short = DirectionValue(site=Site(kind=SiteKind.RESID_MID, layer=1), vector=(1.0,))
    cases = {
        "replacement": (request(replacement="nobody"), ReplacementNotFoundError),
        "layers[1]": (request(replacement=name, layers=(0, 7)), LayerOutOfRangeError),
        "layers": (request(replacement=name, layers=(1,)), InvalidRequestError),
        "start_features[0].index": (start(GrowthStart(features=(ref((0, 99)),))), FeatureOutOfRangeError),
        "start_features[0].layer": (
            request(replacement=name, layers=(0, 1), start=GrowthStart(features=(ref((2, 1)),))),
            LayerOutOfRangeError,
        ),
        "start_tokens[1]": (start(GrowthStart(tokens=(" cat", " no word"))), TargetNotOneTokenError),
        "start_direction.vector": (start(GrowthStart(direction=short)), ShapeMismatchError),
        "held_out[0]": (
            replace(request(replacement=name), held_out=(" a", *texts(2, seed=1))),
            InvalidRequestError,
        ),
    }
    for field, (command, kind) in cases.items():
        refused(command, hosted, kind, field)


def test_features_that_are_not_active_cannot_be_grown_from():
    """It takes a pass to know; the message says how active it is, and what helps."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "jumprelu")
    command = request(
        replacement=name, start=GrowthStart(features=(ref((1, 3)),)), bounds={"min_active": 241}
    )
    with pytest.raises(NothingMatchedError, match=r"of 240 training tokens.*lower min_active") as caught:
        discover(command, hosted)
    assert caught.value.context["field"] == "start_features[0]"
    with pytest.raises(NothingMatchedError, match="fewer than two layers"):
        discover(request(replacement=name, bounds={"min_active": 241}), hosted)


def test_a_model_that_computes_no_numbers_is_refused():
    """NaN in a weight: no edges."""
    hosted = tiny_hosted("llama")
    hosted.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteValueError):
        discover(request(), hosted)


def test_doubts_are_told():
    """A set that failed admission, edges that were not checked, baselines that were not beaten."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")
    degrade(hosted, "it reconstructs nothing")
    unchecked = discover(request(replacement=name, verify_edges=0), hosted)
    assert unchecked.across.transfer == ()
    assert any("it reconstructs nothing" in caveat for caveat in unchecked.caveats)
    assert any("not asked for" in caveat for caveat in unchecked.caveats)
    checked = discover(request(replacement=name), hosted)
    missed = [each for one in checked.across.transfer for each in one.comparisons if each.standing != "BEATS"]
    assert any("not shown to predict better" in caveat for caveat in checked.caveats) == bool(missed)


def test_it_can_be_cancelled_between_passes(monkeypatch):
    """One pass, or less, between two yields; every stage tells how far it is; memory is looked at."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")
    passes = []
    module = hosted.model.model
    handle = module.register_forward_hook(lambda *_: passes.append(1))
    stages, most = [], 0
    for event in discover_global_circuit(Session(hosted=hosted), request(replacement=name)):
        most = max(most, len(passes))
        passes.clear()
        if isinstance(event, Progress):
            stages.append(event.stage)
    handle.remove()
    assert most <= 1
    assert list(dict.fromkeys(stages)) == [
        "texts", "activity", "co-activation", "held-out ablations", "coverage", "nodes",
    ]  # fmt: skip


def test_commands_and_results_cross_the_process_border():
    """As trees and back."""
    hosted = tiny_hosted("llama")
    vector = DirectionValue(site=Site(kind=SiteKind.RESID_MID, layer=1), vector=(1.0,) * 32)
    start = GrowthStart(features=(ref((1, 3)),), tokens=(" cat",), direction=vector)
    command = request(replacement=resident_set(hosted, "relu"), start=start)
    assert command_from_tree("DiscoverGlobalCircuit", to_tree(command)) == command
    found = discover(request(replacement="set"), hosted)
    again = from_tree(type(found), to_tree(found))
    assert again.across == found.across
    assert again.edges == found.edges


def test_ablations_are_those_of_the_plain_model():
    """What a target loses, position by position, is what a plain hook on the model's MLP makes it lose."""
    hosted = tiny_hosted("llama")
    command = request(8, replacement=planted_set(hosted))
    study = ablations_scene(hosted, command)
    losses, expected = study
    assert float(losses.where_source[0]) == pytest.approx(expected[0], rel=1e-4)
    assert float(losses.where_target[0]) == pytest.approx(expected[1], rel=1e-4)


def ablations_scene(hosted, command):
    """Losses of the planted edge, by the engine and by a hook of this test's own."""
    study = prepared(hosted, command)
    numbers = [study.space.number(ref(at)) for at in (SOURCE, TARGET)]
    chosen = Chosen(space=study.space, features=torch.tensor(numbers))
    packs = pack_texts(study.held_out, torch.device("cpu"))
    ends = torch.tensor([0]), torch.tensor([1])
    losses = finish(ablations.measure_losses(hosted, chosen, *ends, packs, EdgeWeighting.TWERA, study.meter))
    layers = hosted.model.model.layers
    with opened(hosted, "set", [SOURCE[0], TARGET[0]]) as resident:
        below, above = resident[SOURCE[0]], resident[TARGET[0]]
    drops, active, sizes = [], [], []
    for ids in study.held_out:
        kept = {}

        def keep(name, kept=kept):
            return lambda _, args: kept.__setitem__(name, args[0][0].clone())

        handles = [layers[SOURCE[0]].mlp.register_forward_pre_hook(keep("low"))]
        handles.append(layers[TARGET[0]].mlp.register_forward_pre_hook(keep("high")))
        batch = torch.tensor([list(ids)])
        with torch.inference_mode():
            hosted.model(input_ids=batch, use_cache=False)
        clean = above.encode(kept["high"])
        source = below.encode(kept["low"]).activations[:, SOURCE[1]]
        taken = source[:, None] * below.W_dec[SOURCE[1]]
        taken[0] = 0
        handles.append(layers[SOURCE[0]].mlp.register_forward_hook(lambda _, __, y, taken=taken: y - taken))
        with torch.inference_mode():
            hosted.model(input_ids=batch, use_cache=False)
        for handle in handles:
            handle.remove()
        without = above.encode(kept["high"]).pre[1:, TARGET[1]]
        drops.append((clean.pre[1:, TARGET[1]] - without).double())
        active.append(source[1:] != 0)
        sizes.append(clean.activations[1:, TARGET[1]].double())
    drop, here, size = torch.cat(drops), torch.cat(active), torch.cat(sizes)
    return losses, (float(drop[here].mean()), float((drop * size).sum() / size.sum()))
