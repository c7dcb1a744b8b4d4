"""Verification of circuits behind features, directions, attention scores, and several logits at once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, reside, resident_set, sae
from tests.unit.engine.graphs.test_target_laws import EVERY, PROMPT, direction
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Selector
from trephine.domain.sites import NEURONS, FeatureRef, LayerRef, Site, SiteKind
from trephine.domain.targets import AttentionScore, FeatureValue, GraphTarget, TokenLogits, TopLogits
from trephine.domain.verification import Predictor, VerificationOptions, VerifyCircuit
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import Question, discover_circuit
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.verification.ablations import mask_of
from trephine.engine.verification.choosing import Cell
from trephine.engine.verification.derivatives import live_cotangents
from trephine.engine.verification.masks import MaskedPrompt
from trephine.engine.verification.slopes import mask_slopes
from trephine.engine.verification.subject import open_subject
from trephine.engine.verification.verify import verify_on

QUICK = VerificationOptions(nodes=100, groups=2, depth_nodes=4, adversary_steps=2, bootstrap=100)
TARGETS: dict[str, tuple[GraphTarget, tuple[int, ...]]] = {
    "logits": (TokenLogits(tokens=(" Mary", " John")), (3, -1)),
    "feature": (FeatureValue(layer=2, index=5), (6, -1)),
    "direction": (direction(SiteKind.RESID_POST, 1), (-2,)),
    "attention": (AttentionScore(layer=2, head=1, key=5), (7, -3)),
}
STEP = 2e-3


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def hosted_with(kind: str, family: str = "llama") -> tuple[HostedModel, str]:
    """A tiny model and the name of what spans its graphs."""
    hosted = tiny_hosted(family)
    if kind == NEURONS:
        return hosted, NEURONS
    if kind == "mlp_out":
        layers = range(hosted.architecture.n_layers)
        return hosted, reside(hosted, [sae(hosted, Site(kind=SiteKind.MLP_OUT, layer=n)) for n in layers])
    if kind == "resid_pre":
        return hosted, reside(hosted, [sae(hosted, Site(kind=SiteKind.RESID_PRE, layer=n)) for n in range(3)])
    return hosted, resident_set(hosted, kind)


@cache
def found(kind: str, name: str) -> tuple[HostedModel, Circuit]:
    """A circuit behind one of the targets."""
    hosted, replacement = hosted_with(kind)
    target, positions = TARGETS[name]
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=target,
        positions=positions,
        replacement=replacement,
        max_feature_nodes=60,
        verify_nodes=0,
    )
    return hosted, finish(discover_circuit(hosted, command))


def read(hosted: HostedModel, name: str, target: Any, positions: tuple[int, ...]) -> tuple[Any, Explained]:
    """A prompt's clean run and what is explained on it."""
    ids = hosted.encode(PROMPT)
    operators, active = capture(hosted.model, hosted.architecture, ids), None
    if name != NEURONS:
        active = finish(activate(hosted, operators, layers_of(name, hosted.replacements[name].covered)))
    command = DiscoverCircuit(prompt=PROMPT, target=target, positions=positions, replacement=name)
    return operators, explained(hosted, operators, Question(command=command, ids=ids), active)


@pytest.mark.parametrize("name", TARGETS)
def test_rows_of_scores_are_half_of_what_removal_does_and_others_all(name):
    """A frozen derivative is what a removal does; rows add up to the quantity, which is half of a score's."""
    hosted, replacement = hosted_with("jumprelu")
    _, what = read(hosted, replacement, *TARGETS[name])
    derivative, roots = what.cotangents(live=False), what.roots()
    assert derivative.keys() == roots.keys()
    for place, vector in roots.items():
        torch.testing.assert_close(derivative[place], (2.0 if name == "attention" else 1.0) * vector)


@pytest.mark.parametrize("kind", [NEURONS, "jumprelu"])
def test_discovery_and_verification_agree_on_what_paths_predict_of_a_score(kind):
    """The headline's slope of edges is of whole removals, as a verification's is: not twice that."""
    hosted, circuit = found(kind, "attention")
    target, positions = TARGETS["attention"]
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=target,
        positions=positions,
        replacement=circuit.replacement,
        max_feature_nodes=60,
        verify_nodes=100,
    )
    quality = finish(discover_circuit(hosted, command)).quality
    assert quality is not None
    kept = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)
    report = finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=kept, options=QUICK)))
    told = next(
        one.slope.value
        for one in report.given.agreements
        if one.predictor is Predictor.PATHS and one.ablations == "single nodes"
    )
    assert 0.6 < quality.edge_slope / told < 1.6


@pytest.mark.parametrize("kind", [NEURONS, "jumprelu", "attn_out", "mlp_out"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_derivatives_at_the_clean_state_are_those_of_discovery(kind, family):
    """Two ways to differentiate every kind of target agree where nothing is masked."""
    hosted, name = hosted_with(kind, family)
    for target, positions in EVERY:
        operators, what = read(hosted, name, target, positions)
        with torch.inference_mode():
            ours, theirs = live_cotangents(what, operators), what.cotangents(live=True)
            for place, vector in theirs.items():
                largest = float(vector.abs().max())
                missing = torch.zeros_like(vector)
                assert (ours.get(place, missing) - vector).abs().max() <= 1e-5 * largest + 1e-7
            assert ours.keys() <= theirs.keys()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", [NEURONS, "relu", "attn_out", "mlp_out", "resid_post", "resid_pre"])
def test_slopes_are_central_differences(kind, name):
    """The derivative by a mask value is what a small change of it does, at a masked state."""
    hosted, circuit = found(kind, name)
    prompt = finish(open_subject(hosted, QUICK, circuit, range(len(circuit.nodes)))).prompt
    generator = torch.Generator().manual_seed(1)
    mask = {x: torch.rand(one.shape, generator=generator) for x, one in prompt.ones().items()}
    value, slopes = finish(mask_slopes(prompt, mask, None))
    assert value == pytest.approx(float(prompt.values([mask])[0][0]), abs=1e-4)
    largest = max(float(one.abs().max()) for one in slopes.values())
    assert largest > 0
    errors = []
    for layer, by_mask in slopes.items():
        for place in by_mask.abs().flatten().topk(3).indices.tolist():
            up, down = dict(mask), dict(mask)
            up[layer], down[layer] = mask[layer].clone(), mask[layer].clone()
            up[layer].view(-1)[place] += STEP
            down[layer].view(-1)[place] -= STEP
            (above, below), _ = prompt.values([up, down])
            errors.append(abs(float(above - below) / (2 * STEP) - float(by_mask.flatten()[place])))
    assert median(errors) <= 1e-2 * largest


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", [NEURONS, "relu", "resid_post", "resid_pre"])
def test_what_is_measured_is_the_target_under_interventions(kind, name):
    """Masking a feature moves the target as ablating it by the machinery of ablations does."""
    hosted, circuit = found(kind, name)
    subject = finish(open_subject(hosted, QUICK, circuit, range(len(circuit.nodes))))
    prompt = subject.prompt
    assert prompt.baseline == pytest.approx(circuit.figures.baseline, abs=1e-5)
    _, what = read(hosted, circuit.replacement, *TARGETS[name])
    strongest = max(subject.kept, key=lambda number: abs(circuit.nodes[number].effect))
    node = circuit.nodes[strongest]
    ablated = Intervention(
        target=FeatureTarget(
            feature=FeatureRef(replacement=circuit.replacement, layer=node.layer, index=node.feature)
        ),
        operation=Ablate(),
        selector=Selector(positions=(node.position,)),
    )
    expected = what.on_rows(hosted, [RowInput(list(prompt.ids)), RowInput(list(prompt.ids), (ablated,))])
    cell = Cell(
        ref=LayerRef(replacement=node.replacement, layer=node.layer),
        position=node.position,
        index=node.feature,
    )
    values, _ = prompt.values([{}, mask_of(prompt, [cell])])
    assert values.tolist() == pytest.approx(expected.tolist(), abs=5e-5)
    assert abs(float(values[0] - values[1])) > 1e-5


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", [NEURONS, "relu"])
def test_every_kind_of_target_is_verified(kind, name):
    """Ablations, baselines, necessity and the search are about the target; shown effects rank them."""
    hosted, circuit = found(kind, name)
    features = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)
    options = replace(QUICK, control=kind == NEURONS or name != "feature")
    report = finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=features, options=options)))
    given = report.given
    assert report.target == circuit.target_label
    assert report.units == circuit.units == ("logits" if name == "logits" else "")
    assert given.baseline == pytest.approx(circuit.figures.baseline, abs=1e-5)
    shown = next(one for one in given.agreements if one.predictor is Predictor.SHOWN)
    assert shown.spearman.value > 0.7
    assert all(one.baseline == pytest.approx(given.baseline) for one in given.faithfulness)
    assert given.worst_case is not None
    assert given.worst_case.rounded != given.baseline
    assert any("attention score" in caveat for caveat in report.caveats) == (name == "attention")
    if kind == NEURONS or name == "feature":
        assert report.control is None
    else:
        assert report.control is not None
        assert report.control.baseline == pytest.approx(given.baseline, abs=1e-4)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (LogitTarget(token=" Mary"), " Mary after position 3"),
        (LogitTarget(token=" Mary", against=" John"), "' Mary' over ' John' after position 3"),
        (TokenLogits(tokens=(" Mary",)), " Mary after position 3"),
        (TopLogits(limit=1), " after position 3"),
    ],
)
def test_a_logit_at_one_earlier_position_is_verified(target, said):
    """It is told by its token and position; nothing about it is refused after the work is done."""
    hosted = tiny_hosted("llama")
    command = DiscoverCircuit(
        prompt=PROMPT, target=target, positions=(3,), max_feature_nodes=30, verify_nodes=0
    )
    circuit = finish(discover_circuit(hosted, command))
    features = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)
    report = finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=features, options=QUICK)))
    assert report.target == circuit.target_label
    assert report.target.endswith(said)
    assert report.given.baseline == pytest.approx(circuit.figures.baseline, abs=1e-5)


def test_a_feature_target_has_no_random_dictionary_beside_it():
    """The reason is given: a random dictionary has no such feature."""
    hosted, circuit = found("relu", "feature")
    features = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)
    options = replace(QUICK, control=True)
    report = finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=features, options=options)))
    assert "a random dictionary has no such" in report.control_note


@pytest.mark.parametrize(("kind", "layers"), [("resid_post", [0, 1]), ("resid_pre", [0, 1, 2])])
def test_a_score_depends_on_the_dictionary_right_below_its_block(kind, layers):
    """Its features are drawn and ranked, and one of them ablated moves the score: attention reads it."""
    hosted, circuit = found(kind, "attention")
    subject = finish(open_subject(hosted, QUICK, circuit, range(len(circuit.nodes))))
    assert [ref.layer for ref in subject.prompt.layers] == layers
    ref = subject.prompt.layers[-1]
    effect = subject.effect[ref]
    position, index = divmod(int(effect.abs().argmax()), effect.shape[1])
    cell = Cell(ref=ref, position=position, index=index)
    values, _ = subject.prompt.values([{}, mask_of(subject.prompt, [cell])])
    assert float(values[0]) == pytest.approx(circuit.figures.baseline, abs=1e-5)
    assert abs(float(values[0] - values[1])) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize(
    ("dictionary", "probe"),
    [
        ((SiteKind.RESID_POST, 1), (SiteKind.RESID_POST, 1)),
        ((SiteKind.RESID_POST, 1), (SiteKind.RESID_PRE, 2)),
        ((SiteKind.RESID_PRE, 2), (SiteKind.RESID_POST, 1)),
        ((SiteKind.RESID_PRE, 2), (SiteKind.RESID_PRE, 2)),
        ((SiteKind.EMBED, 0), (SiteKind.RESID_PRE, 0)),
    ],
)
def test_a_direction_reads_what_arrives_at_a_dictionary_of_its_place(dictionary, probe, family):
    """By either name of the place, in predictions, ablations and masks alike: its features do nothing."""
    hosted = tiny_hosted(family)
    site = Site(kind=dictionary[0], layer=dictionary[1])
    reside(hosted, [sae(hosted, site)])
    operators, what = read(hosted, NAME, direction(*probe), (-2,))
    ids = tuple(hosted.encode(PROMPT))
    active = finish(activate(hosted, operators, layers_of(NAME, hosted.replacements[NAME].covered)))
    prompt = MaskedPrompt(
        hosted=hosted,
        ids=ids,
        layers=(LayerRef(replacement=NAME, layer=site.layer),),
        operators=operators,
        explained=what,
    )
    (layer,) = active.layers
    cells = [n for n in range(layer.count) if int(layer.position[n]) == len(ids) - 2]
    assert cells
    for n in cells[:3]:
        index = int(layer.index[n])
        ablated = Intervention(
            target=FeatureTarget(feature=FeatureRef(replacement=NAME, layer=site.layer, index=index)),
            operation=Ablate(),
            selector=Selector(positions=(len(ids) - 2,)),
        )
        plain, without = what.on_rows(hosted, [RowInput(list(ids)), RowInput(list(ids), (ablated,))]).tolist()
        assert plain == without == pytest.approx(what.baseline, abs=1e-5)
        cell = Cell(ref=prompt.layers[0], position=len(ids) - 2, index=index)
        values, _ = prompt.values([{}, mask_of(prompt, [cell])])
        assert values.tolist() == pytest.approx([plain, plain], abs=1e-6)
        logits = run_rows(hosted, [RowInput(list(ids)), RowInput(list(ids), (ablated,))]).logits
        assert (logits[0] - logits[1]).abs().max() > 1e-4  # it does write


def test_layers_and_positions_that_cannot_matter_are_left_out():
    """Only features below the target, and none after it, are drawn for comparison."""
    hosted, circuit = found("relu", "direction")
    subject = finish(open_subject(hosted, QUICK, circuit, range(len(circuit.nodes))))
    assert [ref.layer for ref in subject.prompt.layers] == [0, 1]
    last = max(circuit.positions)
    assert last == len(circuit.tokens) - 2
    assert not any(bool(active[last + 1 :].any()) for active in subject.active.values())
    assert circuit.replacement == NAME
