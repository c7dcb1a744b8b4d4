"""What is no evidence is not shown as any: selection that cannot fail, controls that are the circuit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.dataset_examples import examples, request
from tests.resident_sets import resident_set
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    CheckDatasetCircuit,
    DatasetCircuit,
    DiscoverDatasetCircuit,
    Discretion,
    Estimator,
    Example,
    NodeAblation,
    Subsampling,
)
from trephine.engine.dataset_circuits import discovery
from trephine.engine.dataset_circuits.checking import check_dataset_circuit
from trephine.engine.dataset_circuits.clustering import Clusters
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.dataset_circuits.selection import selected, stability_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

RESAMPLE = (NodeAblation.RESAMPLE,)


def discover(command: DiscoverDatasetCircuit, hosted: HostedModel | None = None) -> DatasetCircuit:
    """Run it to its end."""
    return finish(discover_dataset_circuit(Session(hosted=hosted or tiny_hosted("llama")), command))


def heads(nodes: int, **options: Any) -> DiscoverDatasetCircuit:
    """Heads of two layers, eight of them, and draws that would certify five exchanges of any of them."""
    size = Discretion(nodes=nodes, edge_nodes=0, random_circuits=5, curve=False, bootstrap=10)
    split, draws = examples(48), Subsampling(draws=50, share=0.1)
    return DiscoverDatasetCircuit(
        training=split[:40], held_out=split[40:], replacement=HEADS, layers=(1, 2), ablations=RESAMPLE,
        **{"size": size, "stability": draws, **options},
    )  # fmt: skip


def said(found: DatasetCircuit, words: str) -> list[str]:
    """Caveats with these words."""
    return [caveat for caveat in found.caveats if words in caveat]


def test_a_budget_that_takes_everything_is_no_evidence():
    """Eight heads and a budget of 100: nothing is stable, certified, a core or a control; it is said why."""
    found = discover(heads(100))
    (circuit,), (measured,) = found.circuits, found.circuits[0].faithfulness
    assert found.candidates == len(circuit.nodes) == 8
    assert {(node.frequency, node.stable, node.certified_edits) for node in circuit.nodes} == {
        (None, False, None)
    }
    assert (circuit.abstained, circuit.n_abstained, measured.core) == ((), 0, None)
    assert set(measured.random) == {measured.circuit.faithfulness.value}
    assert measured.p_value is None
    assert "selection could not fail" in found.certificate
    assert len(said(found, "selection could not fail")) == 1
    assert len(said(found, "each random circuit is the circuit itself")) == 1


def test_a_budget_that_binds_is_evidence_as_before():
    """Seven of eight heads: stable ones, exchanges, a core and a p, and no word about any of it."""
    found = discover(heads(7))
    (circuit,), (measured,) = found.circuits, found.circuits[0].faithfulness
    assert max(node.certified_edits or 0 for node in circuit.nodes) == 4
    assert measured.core is not None
    assert measured.p_value is not None
    assert "selection could not fail" not in found.certificate
    assert not said(found, "selection could not fail")
    assert not said(found, "is the circuit itself")


def test_a_threshold_may_leave_nodes_out():
    """However low it is: a node may fall below it in a part, so that stability is measured."""
    size = Discretion(nodes=100, threshold=1e-9, edge_nodes=0, random_circuits=0, curve=False, bootstrap=10)
    found = discover(heads(100, size=size))
    assert all(node.frequency is not None for node in found.circuits[0].nodes)
    assert not said(found, "selection could not fail")


def test_nodes_without_an_effect_in_a_part_are_still_abstained_on(monkeypatch: pytest.MonkeyPatch):
    """A budget that takes everything certifies nothing, but what only some contexts have is told apart."""
    average = discovery.average_effects

    def silent_somewhere(*given: Any, **how: Any) -> Any:
        averages = yield from average(*given, **how)
        averages.parts[1:20, 0] = 0
        return averages

    monkeypatch.setattr(discovery, "average_effects", silent_somewhere)
    found = discover(heads(100))
    (circuit,) = found.circuits
    assert (circuit.n_abstained, sum(node.stable for node in circuit.nodes)) == (1, 7)
    assert {node.certified_edits for node in circuit.nodes} == {None, 0}
    (caveat,) = said(found, "selection could not fail")
    assert "only where it has no effect there" in caveat


def test_error_nodes_that_random_circuits_have_too_are_counted():
    """One per layer (and position), so that there is no other to draw; features are drawn among many."""
    hosted = tiny_hosted("llama")
    size = Discretion(nodes=40, edge_nodes=0, random_circuits=3, curve=False, bootstrap=10)
    found = discover(
        request(
            replacement=resident_set(hosted, "jumprelu"), beside=(ERRORS,), size=size, ablations=RESAMPLE
        ),
        hosted,
    )
    nodes = found.circuits[0].nodes
    errors = sum(node.replacement.endswith(ERRORS) for node in nodes)
    assert 0 < errors < len(nodes)
    (caveat,) = said(found, "are in every random circuit too")
    assert f"{errors} of its {len(nodes)} nodes" in caveat
    assert f"({errors} of {found.replacement}:errors)" in caveat
    assert found.circuits[0].faithfulness[0].p_value is not None
    alone = discover(request(ablations=RESAMPLE))
    assert not said(alone, "in every random circuit")


@pytest.mark.parametrize(
    ("exact_nodes", "words"),
    [
        (4096, "measured all 8 nodes."),
        (3, "measured the 3 nodes that attribution patching ranks highest; the other 5 count as 0."),
    ],
)
def test_exact_patching_tells_how_many_it_measured(exact_nodes: int, words: str):
    """Not how many were asked for; and of others only where there are some."""
    found = discover(heads(2, estimator=Estimator.EXACT, exact_nodes=exact_nodes))
    (caveat,) = said(found, "Exact patching")
    assert words in caveat
    assert ("count as 0" in caveat) == (exact_nodes == 3)


def test_clusters_resample_what_all_contexts_do(monkeypatch: pytest.MonkeyPatch):
    """Contexts without twins have the same donors in their cluster as among all: the same m(0) and m(M)."""

    def halves(vectors: torch.Tensor, wanted: int, seed: int) -> Any:
        yield
        return Halves(
            assignment=torch.arange(len(vectors)) % 2,
            centres=torch.zeros(2, vectors.shape[1]),
            silhouette=0.5,
            null_silhouette=0.1,
        )

    class Halves(Clusters):
        def assign(self, vectors: torch.Tensor) -> torch.Tensor:
            return torch.arange(len(vectors)) % 2

    monkeypatch.setattr(discovery, "cluster_contexts", halves)
    size = Discretion(nodes=8, edge_nodes=0, random_circuits=0, curve=False, bootstrap=10)
    found = discover(request(20, paired=False, ablations=RESAMPLE, clusters=2, size=size))
    whole, *parts = (circuit.faithfulness[0] for circuit in found.circuits)
    assert [part.examples for part in parts] == [5, 5]
    for figure in ("empty", "whole"):
        mean = sum(part.examples * getattr(part, figure).value for part in parts) / whole.examples
        assert mean == pytest.approx(getattr(whole, figure).value, abs=1e-5)


def test_the_longest_context_is_of_both_sides():
    """With its twin; positions that are kept are of training contexts."""
    command = request(12)
    long = tuple(
        Example(
            clean=one.clean, corrupted=f"The The The{one.corrupted}", answers=one.answers, wrong=one.wrong
        )
        for one in command.held_out
    )
    asked = CheckDatasetCircuit(command=replace(command, held_out=long))
    tokens = finish(check_dataset_circuit(Session(hosted=tiny_hosted("llama")), asked)).tokens
    assert tokens.longest > tokens.longest_training == 4


@pytest.mark.parametrize("threshold", [None, 1.5])
def test_draws_select_what_sorting_selects(threshold: float | None):
    """To the node, where many tie at the last place, have no effect, or are fewer than the budget."""
    generator = torch.Generator().manual_seed(0)
    for budget in (1, 7, 50, 200, 1000):
        size = Discretion(nodes=budget, threshold=threshold)
        parts = torch.randint(-3, 4, (8, 200), generator=generator).float()
        parts[0, :190] = 0
        parts[1] = 0
        counts = torch.zeros(200)
        for part in parts:
            counts[selected(part, size)] += 1
        found = finish(stability_of(parts.mean(0), parts, size, Subsampling(draws=8)))
        assert torch.equal(found.frequency, counts / 8)
