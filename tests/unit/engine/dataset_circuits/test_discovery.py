"""DiscoverDatasetCircuit as the engine runs it: results, refusals, quanta."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from math import isnan

import pytest
import torch

from tests.builders import tiny_hosted
from tests.dataset_examples import example, examples, request
from tests.resident_sets import resident_set
from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import (
    HEADS,
    DiscoverDatasetCircuit,
    Discretion,
    Estimator,
    Example,
    NodeAblation,
    PositionRule,
    Subsampling,
)
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    NonFiniteValueError,
    ReplacementNotFoundError,
    TargetNotOneTokenError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.dataset_circuits import discovery
from trephine.engine.dataset_circuits import packs as packing
from trephine.engine.dataset_circuits.ablated import AblatedModel
from trephine.engine.dataset_circuits.clustering import cluster_contexts
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.dataset_circuits.patches import dataset_means
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.ipc.codec import command_from_tree, from_tree, to_tree


def discover(command, hosted=None):
    """Run it to its end."""
    return finish(discover_dataset_circuit(Session(hosted=hosted or tiny_hosted("llama")), command))


def test_paths_through_a_norm_behind_the_mlp_are_doubted():
    """Gemma 2's, all neurons to zero: effects are those of attribution patching times 1 + 1/2 + ... + 1/n."""
    plain, path, to_twins = (
        discover(request(estimator=estimator, patch=patch), tiny_hosted("gemma2"))
        for estimator, patch in (
            (Estimator.ATTRIBUTION_PATCHING, NodeAblation.ZERO),
            (Estimator.INTEGRATED_GRADIENTS, NodeAblation.ZERO),
            (Estimator.INTEGRATED_GRADIENTS, NodeAblation.RESAMPLE),
        )
    )
    ends = [max(abs(node.effect) for node in one.circuits[0].nodes) for one in (plain, path)]
    assert ends[1] == pytest.approx(137 / 60 * ends[0], rel=1e-3)
    said = [[one for one in found.caveats if "2.28 times" in one] for found in (plain, path, to_twins)]
    assert [len(one) for one in said] == [0, 1, 0]


def test_what_is_found_is_whole():
    """Strongest first, the empty and the whole model at the ends of the curve, edges between its nodes."""
    found = discover(request())
    (circuit,) = found.circuits
    effects = [abs(node.effect) for node in circuit.nodes]
    assert len(effects) == 8
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] > 0
    assert {edge.target for edge in circuit.edges} >= {-1}
    assert all(0 <= edge.source < 4 and edge.target < 4 for edge in circuit.edges)
    for measured in circuit.faithfulness:
        last = measured.curve[-1]
        assert last.nodes > 8
        assert [point.nodes for point in measured.curve[:3]] == [1, 2, 4]
        assert len(measured.random) == 3
        assert measured.p_value is not None
        low, high = measured.circuit.faithfulness.low, measured.circuit.faithfulness.high
        assert low <= measured.circuit.faithfulness.value <= high
    assert [measured.ablation for measured in circuit.faithfulness] == ["mean", "zero"]


def test_all_neurons_are_the_model_and_none_is_empty():
    """Budget of everything: faithfulness 1, completeness 0, exactly."""
    hosted = tiny_hosted("llama")
    everything = hosted.info.n_layers * hosted.info.d_mlp
    size = Discretion(nodes=everything, edge_nodes=0, random_circuits=0, curve=False, bootstrap=10)
    found = discover(request(patch=NodeAblation.ZERO, size=size), hosted)
    for measured in found.circuits[0].faithfulness:
        assert measured.circuit.nodes == everything
        assert measured.circuit.faithfulness.value == pytest.approx(1, abs=1e-5)
        assert measured.circuit.completeness.value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("estimator", list(Estimator))
@pytest.mark.parametrize("rule", list(PositionRule))
def test_every_estimator_and_rule_of_positions(estimator, rule):
    """Nodes carry a position exactly if positions are kept, never the first one."""
    size = Discretion(nodes=6, edge_nodes=2, edge_examples=2, random_circuits=1, curve=False, bootstrap=10)
    found = discover(request(8, estimator=estimator, positions=rule, steps=2, exact_nodes=10, size=size))
    positions = {node.position for node in found.circuits[0].nodes}
    assert positions == {-1} if rule is PositionRule.SUMMED else positions <= {1, 2, 3}
    assert found.estimator is estimator


@pytest.mark.parametrize("kind", ["jumprelu", "clt", "skip", "resid_post", "mixed"])
@pytest.mark.parametrize("term", list(ErrorTerm))
def test_sets_of_features(kind, term):
    """Every kind under every error term, or a refusal that names the option."""
    hosted = tiny_hosted("llama")
    command = request(8, replacement=resident_set(hosted, kind), error_term=term)
    if kind == "clt" and term is not ErrorTerm.LIVE:
        with pytest.raises(UnsupportedOptionError) as caught:
            discover(command, hosted)
        assert caught.value.context["field"] == "error_term"
        return
    found = discover(command, hosted)
    assert bool(found.circuits[0].edges) == (kind in ("jumprelu", "clt", "skip"))
    assert any("Error terms" in caveat for caveat in found.caveats)
    skips = kind in ("skip", "mixed") and term is not ErrorTerm.LIVE
    assert any("Skip paths" in caveat for caveat in found.caveats) == skips


def test_single_contexts_resample_from_others_and_patch_with_zero():
    """Without twins."""
    found = discover(request(paired=False, ablations=(NodeAblation.RESAMPLE,)))
    assert found.patch is NodeAblation.ZERO
    assert found.circuits[0].faithfulness[0].ablation is NodeAblation.RESAMPLE


def test_stability_abstains_and_says_on_what():
    """Every selected node is stable or abstained on; the core is measured beside the circuit."""
    found = discover(request(20, stability=Subsampling(draws=6, keep=1.0))).circuits[0]
    stable = {(n.layer, n.index) for n in found.nodes if n.stable}
    open_nodes = {(n.layer, n.index) for n in found.abstained}
    assert {(n.layer, n.index) for n in found.nodes} <= stable | open_nodes
    assert not stable & open_nodes
    assert all(n.frequency is not None and n.frequency < 1 for n in found.abstained)
    assert found.faithfulness[0].core is not None
    unmeasured = discover(request(stability=Subsampling(draws=0)))
    assert unmeasured.circuits[0].nodes[0].frequency is None
    assert unmeasured.certificate == "Stability was not measured."


@pytest.mark.parametrize(
    ("patch", "paired", "estimator", "depends"),
    [
        (NodeAblation.RESAMPLE, True, Estimator.ATTRIBUTION_PATCHING, False),
        (NodeAblation.ZERO, False, Estimator.ATTRIBUTION_PATCHING, False),
        (NodeAblation.MEAN, True, Estimator.ATTRIBUTION_PATCHING, True),
        (NodeAblation.RESAMPLE, False, Estimator.ATTRIBUTION_PATCHING, True),
        (NodeAblation.RESAMPLE, True, Estimator.EXACT, True),
    ],
)
def test_exchanges_that_change_every_draw_are_not_certified(patch, paired, estimator, depends):
    """Draws that do not meet an exchanged context are what they were only if it is not in their patches."""
    hosted = tiny_hosted("llama")
    all_but_one = 7 if estimator is Estimator.EXACT else hosted.info.n_layers * hosted.info.d_mlp - 1
    size = Discretion(nodes=all_but_one, edge_nodes=0, random_circuits=0, curve=False, bootstrap=10)
    command = request(
        24, paired=paired, patch=patch, estimator=estimator, exact_nodes=8, size=size,
        stability=Subsampling(draws=60, share=0.1),
    )  # fmt: skip
    found = discover(command, hosted)
    edits = {node.certified_edits for node in found.circuits[0].nodes if node.stable}
    assert max(edits) == (0 if depends else 5)
    assert ("it changes every draw" in found.certificate) == depends


def test_nodes_abstained_on_are_counted_whatever_is_listed(monkeypatch):
    """The list ends with the likeliest; its length is not the count."""
    asked = request(20, stability=Subsampling(draws=6, keep=1.0))
    whole = discover(asked).circuits[0]
    assert whole.n_abstained == len(whole.abstained) > 2
    monkeypatch.setattr(discovery, "_LISTED", 2)
    cut = discover(asked).circuits[0]
    assert (cut.n_abstained, cut.abstained) == (whole.n_abstained, whole.abstained[:2])
    assert discover(request(stability=Subsampling(draws=0))).circuits[0].n_abstained == 0


def test_clusters_have_circuits_of_their_own():
    """Two clusters asked for: three circuits, held-out contexts divided, contexts shown."""
    found = discover(request(24, clusters=2))
    assert [circuit.label for circuit in found.circuits] == ["all", "cluster 1", "cluster 2"]
    assert found.clustering is not None
    assert sum(found.clustering.sizes) == 12
    assert sum(c.held_out for c in found.circuits[1:]) == 12
    assert all(c.contexts for c in found.circuits[1:])
    choices = {example.clean: example.choice for example in request(24).training}
    for circuit in found.circuits[1:]:
        assert circuit.choices == tuple(choices[text] for text in circuit.contexts)


def test_nodes_that_the_patch_leaves_alone_are_told_of():
    """Twins share the verb in front: nodes there are ablated to means, but have no effect to be ranked by."""
    rows = [
        Example(clean=f"When{verb}{a}{b}", corrupted=f"When{verb}{b}{a}", answers=(a,), wrong=(b,))
        for people in combinations((" Mary", " John", " cat", " dog"), 2)
        for verb in (" went", " gave")
        for a, b in permutations(people)  # a context, and its twin as another: on one side
    ]
    size = Discretion(edge_nodes=0, random_circuits=0, bootstrap=10)
    options = {
        "beside": (HEADS,),
        "positions": PositionRule.KEPT,
        "size": size,
        "ablations": (NodeAblation.MEAN,),
    }
    told = []
    for patch in (NodeAblation.RESAMPLE, NodeAblation.MEAN):
        command = DiscoverDatasetCircuit(
            training=tuple(rows[:14]), held_out=tuple(rows[14:]), patch=patch, **options
        )
        found = discover(command, tiny_hosted("qwen2"))
        (measured,) = found.circuits[0].faithfulness
        told.append(any("patch with what is ablated with" in caveat for caveat in found.caveats))
        assert measured.curve[-1].nodes < found.candidates
    assert told == [True, False]
    assert measured.curve[-1].faithfulness.value == pytest.approx(1, abs=1e-3)


def test_the_same_seed_finds_the_same():
    """Law 9."""
    hosted, command = tiny_hosted("llama"), request(clusters=0)
    first, second = discover(command, hosted), discover(command, hosted)
    assert first.circuits == second.circuits


def test_quanta_are_single_passes_and_stages_are_told():
    """Hundreds of yields for a small request, so that a cancel is never far; hooks are gone in between."""
    hosted, stages, quanta = tiny_hosted("llama"), [], 0
    for event in discover_dataset_circuit(Session(hosted=hosted), request()):
        quanta += 1
        assert not any(module._forward_pre_hooks for module in hosted.model.modules())
        if isinstance(event, Progress) and event.stage not in stages:
            stages.append(event.stage)
    assert stages == ["contexts", "means", "effects", "edges of all", "faithfulness of all"]
    assert quanta > 60


def test_commands_and_results_cross_the_process_border():
    """As trees, both ways."""
    command = request()
    assert command_from_tree("DiscoverDatasetCircuit", to_tree(command)) == command
    found = discover(command)
    assert from_tree(type(found), to_tree(found)).circuits == found.circuits


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"answers": (" Mary went",)}, TargetNotOneTokenError, "training[1].answers"),
        ({"wrong": (" cat", "Who")}, TargetNotOneTokenError, "training[1].wrong"),
        ({"answers": ()}, InvalidRequestError, "training[1].answers"),
        ({"wrong": (" Mary",)}, InvalidRequestError, "training[1].wrong"),
        ({"clean": "When"}, InvalidRequestError, "training[1].clean"),
        ({"clean": ""}, InvalidRequestError, "training[1].clean"),
        ({"corrupted": "The" * 600}, InvalidRequestError, "training[1].corrupted"),
    ],
)
def test_bad_contexts_are_told_by_place(change, error, field):
    """Split, number and column."""
    good = request()
    bad = replace(example(" Mary", " John", " to"), **change)
    training = (good.training[0], bad, *good.training[2:])
    with pytest.raises(error) as caught:
        discover(replace(good, training=training))
    assert caught.value.context["field"] == field
    assert "training context 1" in caught.value.message


def test_kept_positions_need_equal_lengths():
    """The message says what to do instead; summed positions take the same contexts."""
    good = request()
    longer = replace(good.training[1], clean="The" + good.training[1].clean)
    command = replace(
        good, positions=PositionRule.KEPT, training=(good.training[0], longer, *good.training[2:])
    )
    with pytest.raises(InvalidRequestError, match="summed") as caught:
        discover(command)
    assert caught.value.context["field"] == "training[1].clean"
    found = discover(replace(command, positions=PositionRule.SUMMED))
    assert any("differ in length" in caveat for caveat in found.caveats)


def test_a_share_of_nothing_is_inconclusive():
    """Held-out contexts of one text resample from each other: m(0) is m(M), and no circuit beats another."""
    good = request(paired=False, ablations=(NodeAblation.RESAMPLE,), patch=NodeAblation.ZERO)
    same = (example(" cat", " dog", " the", paired=False), example(" Paris", " dog", " the", paired=False))
    same = tuple(replace(one, clean="When cat dog the") for one in same)
    found = discover(replace(good, held_out=same))
    (measured,) = found.circuits[0].faithfulness
    assert measured.whole.value == measured.empty.value
    assert isnan(measured.circuit.faithfulness.value)
    assert len(measured.random) == 3
    assert (measured.p_value, measured.nodes_for_80) == (None, None)
    assert any("Inconclusive" in caveat for caveat in found.caveats)
    assert not any("Inconclusive" in caveat for caveat in discover(good).caveats)


@pytest.mark.parametrize("side", ["training", "held_out"])
def test_a_context_is_not_its_own_twin(side):
    """Its patch would change nothing; told by place, before any work."""
    good = request()
    first, *others = getattr(good, side)
    with pytest.raises(InvalidRequestError, match=f"{side} context 0 is its own twin") as caught:
        replace(good, **{side: (replace(first, corrupted=first.clean), *others)})
    assert caught.value.context["field"] == f"{side}[0].corrupted"


def test_splits_must_not_overlap_nor_be_empty():
    """Told before any work."""
    split = examples(6)
    with pytest.raises(InvalidRequestError, match="again") as caught:
        DiscoverDatasetCircuit(training=split[:4], held_out=split[3:])
    assert caught.value.context["field"] == "held_out[0]"
    with pytest.raises(InvalidRequestError, match="at least two"):
        DiscoverDatasetCircuit(training=split[:4], held_out=())


@pytest.mark.parametrize(
    "shared",
    [
        {"clean": "When Mary John went"},
        {"clean": "When John Mary went"},
        {"corrupted": "When Mary John went"},
        {"corrupted": "When John Mary went"},
    ],
)
def test_no_text_may_be_on_both_sides(shared):
    """A training context's text or twin, as a held-out context or as the twin of one."""
    training, held_out = examples(2), (example(" cat", " dog"), example(" Paris", " France"))
    assert DiscoverDatasetCircuit(training=training, held_out=held_out).held_out == held_out
    leaking = (held_out[0], replace(held_out[1], **shared))
    with pytest.raises(InvalidRequestError, match="text of training context 0 again") as caught:
        DiscoverDatasetCircuit(training=training, held_out=leaking)
    assert caught.value.context["field"] == "held_out[1]"


def test_what_does_not_exist_is_told():
    """Sets and layers."""
    with pytest.raises(ReplacementNotFoundError):
        discover(request(replacement="nothing"))
    with pytest.raises(LayerOutOfRangeError):
        discover(request(layers=(0, 99)))


@pytest.mark.parametrize(
    ("count", "wanted", "said"),
    [(4, 0, "too few to look for groups in"), (24, 3, "they may be cuts through one")],
)
def test_groups_that_nothing_speaks_for_are_told(count, wanted, said, monkeypatch):
    """Two contexts have no groups to look for; a number that is asked for is found in any cloud."""
    cloud = torch.randn(12, 4096, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        discovery, "cluster_contexts", lambda given, *how: cluster_contexts(cloud[: len(given)], *how)
    )
    found = discover(request(count, clusters=wanted))
    assert [one for one in found.caveats if said in one]
    assert not [one for one in found.caveats if "beats clouds" in one]


def test_clusters_that_are_wanted_and_not_there_are_told(monkeypatch):
    """Three wanted of contexts whose effects all point one way: there is one, and the rest is said."""
    monkeypatch.setattr(
        discovery, "cluster_contexts", lambda sketches, *how: cluster_contexts(sketches * 0 + 1, *how)
    )
    found = discover(request(8, clusters=3))
    assert found.clustering.clusters == 1
    assert [circuit.label for circuit in found.circuits] == ["all"]
    assert any(caveat.startswith("3 clusters were asked for and 1 found") for caveat in found.caveats)


def test_a_model_that_computes_no_numbers_is_refused():
    """NaN in a weight: no effects, no figures, and the message says where it begins."""
    hosted = tiny_hosted("llama")
    hosted.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteValueError, match="first in what block 2 reads") as caught:
        discover(request(), hosted)
    assert caught.value.context["field"] == "model"


def test_an_ablation_that_overflows_is_inconclusive(monkeypatch):
    """It gives no number, no share, no p; the words say so, and do not say that nothing is moved."""
    monkeypatch.setattr(
        AblatedModel, "metric", lambda self, pack, *_, **__: torch.full((pack.count,), float("nan"))
    )
    found = discover(request(patch=NodeAblation.ZERO))
    for measured in found.circuits[0].faithfulness:
        assert isnan(measured.circuit.faithfulness.value)
        assert (measured.p_value, measured.nodes_for_80) == (None, None)
    assert sum("What is no number says nothing" in caveat for caveat in found.caveats) == 2
    assert not any("the same within" in caveat for caveat in found.caveats)


def test_lengths_that_differ_are_told_of_held_out_pairs_too():
    """Their activations are aligned from the end, wherever the pair is."""
    good = request()
    last = good.held_out[-1]
    longer = replace(last, corrupted="The" + last.corrupted)
    found = discover(replace(good, held_out=(*good.held_out[:-1], longer)))
    assert any(caveat.startswith("1 pairs differ in length") for caveat in found.caveats)


def test_means_do_not_depend_on_how_contexts_are_packed(monkeypatch):
    """Where some contexts have no twin, no twin is averaged over: packs of any size give the same means."""
    some = (*examples(3), *examples(6, paired=False)[3:])
    hosted = tiny_hosted("llama")
    rule = PositionRule.SUMMED
    space = node_space(hosted, (NEURONS,), None, rule, 4, ErrorTerm.LIVE)
    contexts = read_contexts(hosted, some, rule, split="training")
    found = []
    for tokens in (256, 8):
        monkeypatch.setattr(packing, "PACK_TOKENS", tokens)
        packed = list(packs(contexts, donor_ids(contexts, seed=0, same_length=False), hosted.model.device))
        found.append(finish(dataset_means(hosted, space, packed, errors=False)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.activations, other.activations, atol=1e-6)


def test_error_terms_that_are_not_the_models_own_are_named_where_circuits_fall_short():
    """All nodes kept with the error dropped is not the model: the caveat does not blame the patch for it."""
    hosted = tiny_hosted("llama")
    size = Discretion(nodes=200, edge_nodes=0, random_circuits=0, bootstrap=10)
    command = request(
        8,
        replacement=resident_set(hosted, "jumprelu"),
        error_term=ErrorTerm.DROP,
        ablations=(NodeAblation.ZERO,),
        patch=NodeAblation.ZERO,
        size=size,
    )
    found = discover(command, hosted)
    (measured,) = found.circuits[0].faithfulness
    assert measured.curve[-1].faithfulness.value < 0.8
    assert any("Error terms are not the model's own (`drop`)" in caveat for caveat in found.caveats)
