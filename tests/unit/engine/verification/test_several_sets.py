"""Verifying graphs over several sets: what stands beside them, what is compared, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS, LayerRef
from trephine.domain.targets import AttentionScore, FeatureValue
from trephine.domain.verification import VerificationOptions, VerificationReport, VerifyCircuit
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.verification.ablations import mask_of, measured_changes, measured_drops
from trephine.engine.verification.choosing import Cell, Removal, cell_of
from trephine.engine.verification.control import NOTHING_REPLACED
from trephine.engine.verification.subject import Subject, open_subject
from trephine.engine.verification.verify import verify_on

PROMPT = "When Mary went to the store John gave a drink to"
CHOICE = LogitTarget(token=" Mary", against=" John")
QUICK: dict[str, Any] = {
    "nodes": 100,
    "groups": 2,
    "depth_nodes": 20,
    "adversary_steps": 0,
    "bootstrap": 100,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def both(layers: tuple[int, ...] | None = None, kind: str = "relu") -> HostedModel:
    """A tiny Llama with transcoders, of some layers, and dictionaries on attention's output."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind, layers=layers)
    resident_set(hosted, "attn_out", name="attention")
    return hosted


def found(hosted: HostedModel, *beside: str, **asked: Any) -> Circuit:
    """A circuit over the transcoders and what is beside them."""
    options = {"target": CHOICE, "max_feature_nodes": 120, "verify_nodes": 0, **asked}
    return finish(
        discover_circuit(hosted, DiscoverCircuit(prompt=PROMPT, replacement="set", beside=beside, **options))
    )


def features(circuit: Circuit) -> tuple[int, ...]:
    """Its feature nodes."""
    return tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)


def verified(hosted: HostedModel, circuit: Circuit, **changes: Any) -> VerificationReport:
    """A quick verification of all its features."""
    options = VerificationOptions(**{**QUICK, **changes})
    return finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=features(circuit), options=options)))


def subject_of(error_term: ErrorTerm) -> Subject:
    """The circuit over both sets, opened."""
    hosted = both()
    circuit = found(hosted, "attention")
    options = VerificationOptions(**{**QUICK, "error_term": error_term})
    return finish(open_subject(hosted, options, circuit, features(circuit)))


@pytest.mark.parametrize("error_term", list(ErrorTerm))
def test_taking_nothing_out_takes_nothing_off(error_term):
    """A feature that is not active has no effect: what an error term's rule takes is no ablation's."""
    subject = subject_of(error_term)
    ref = LayerRef(replacement="set", layer=1)
    silent = int((~subject.active[ref][5]).nonzero()[0, 0])
    none = Removal(kind="single nodes", stratum="outside", cells=(Cell(ref=ref, position=5, index=silent),))
    [drop] = finish(measured_drops(subject.prompt, [none], None, "here")).tolist()
    assert drop == pytest.approx(0.0, abs=1e-4)
    taken = abs(subject.prompt.unablated - subject.prompt.baseline)
    assert (taken > 0.05) == (error_term is ErrorTerm.DROP)


@pytest.mark.parametrize("error_term", list(ErrorTerm))
def test_changes_above_are_of_what_layers_read(error_term):
    """Of dictionaries that write where they read, as on attention's output, it is not what they wrote."""
    subject = subject_of(error_term)
    prompt, graph = subject.prompt, subject.graph
    node = next(n for n in subject.kept if graph.refs[int(graph.owner[n])].layer == 0)
    removal = Removal(kind="single nodes", stratum="one", cells=(cell_of(graph, node),))
    [changes] = finish(measured_changes(subject, [removal]))
    seen = 0
    for number, ref in enumerate(graph.refs):
        nodes = (graph.is_feature & (graph.owner == number) & (graph.position > 0)).nonzero().flatten()
        if number <= int(graph.owner[node]):
            assert not changes[nodes].any()
            continue
        every = [{ref: torch.ones_like(subject.activation[ref])}, mask_of(prompt, removal.cells)]
        mask = [every[0], {**every[0], **every[1]}]  # named, so that the code of what it read is kept
        _, tape = prompt.values(mask)
        with opened(prompt.hosted, ref.replacement, [ref.layer]):
            codes = tape.codes[ref].activations
        real = (codes[1] - codes[0])[graph.position[nodes], graph.index[nodes]].double()
        torch.testing.assert_close(changes[nodes], real, rtol=1e-4, atol=1e-5)
        seen += int((real != 0).sum())
    assert seen > 5


def test_changes_within_a_block_are_compared():
    """Attention's features move the MLP's of their own block: a row of its own, and well predicted."""
    hosted = both()
    report = verified(hosted, found(hosted, "attention", max_feature_nodes=400), control=False)
    same = next(depth for depth in report.given.depths if depth.nearest == 0)
    assert same.farthest == 0
    assert same.cosine.value > 0.9
    alone = verified(hosted, found(hosted), control=False)
    assert all(depth.nearest > 0 for depth in alone.given.depths)


def test_neurons_alone_are_no_random_dictionary():
    """Where no feature of a set is verified, nothing random would stand beside: said, and not run."""
    hosted = both(layers=(2,))
    circuit = found(hosted, NEURONS, target=AttentionScore(layer=2, head=1, key=3))
    assert {circuit.nodes[node].replacement for node in features(circuit)} == {NEURONS}
    report = verified(hosted, circuit)
    assert report.control is None
    assert report.control_note == NOTHING_REPLACED


def test_the_control_names_what_was_fitted():
    """A set that opened no layer has no dictionary beside it; neurons stay, also as the target."""
    hosted = both(layers=(2,))
    report = verified(hosted, found(hosted, "attention", NEURONS, layers=(0, 1)))
    assert report.control is not None
    assert "beside 'attention':" in report.control_note
    assert "neurons beside sets stay" in report.control_note
    first = verified(hosted, found(hosted, NEURONS, "attention", layers=(0, 1)))  # named before a set
    assert first.control is not None
    assert first.control_note == report.control_note
    target = FeatureValue(layer=2, index=5, replacement=NEURONS)
    hosted = both(layers=(0,))
    report = verified(hosted, found(hosted, "attention", NEURONS, target=target))
    assert report.control is not None


@pytest.mark.parametrize("error_term", [ErrorTerm.FROZEN, ErrorTerm.DROP])
def test_features_that_write_several_layers_need_a_live_error_term(error_term):
    """A cross-layer transcoder's layers have no reconstruction of their own."""
    hosted = both(kind="clt")
    circuit = found(hosted, "attention")
    with pytest.raises(UnsupportedOptionError) as refused:
        verified(hosted, circuit, error_term=error_term)
    assert refused.value.context["field"] == "error_term"


def test_a_set_that_is_exchanged_meanwhile_changes_nothing():
    """A discovery goes on with the sets that it began with, and says which these were."""
    calm = found(both(), "attention")
    hosted = both()
    command = DiscoverCircuit(
        prompt=PROMPT,
        replacement="set",
        beside=("attention",),
        target=CHOICE,
        max_feature_nodes=120,
        verify_nodes=0,
    )
    work = discover_circuit(hosted, command)
    for _ in range(12):
        next(work)
    resident_set(hosted, "jumprelu")
    del hosted.replacements["attention"]
    circuit = finish(work)
    assert circuit.nodes == calm.nodes
    assert circuit.sets == calm.sets
