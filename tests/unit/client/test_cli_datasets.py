"""`trephine discover-dataset` against a fake server that answers with a real result's message."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import nan
from pathlib import Path
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.dataset_examples import request as small_request
from tests.fakes.grpc_server import FakeService, serve
from trephine.app.circuits.dataset_circuits import StoredDatasetCircuit
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.decoding import decode
from trephine.client.types import DatasetCircuit
from trephine.domain.circuits import GraphSet
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.rpc.wire.dataset_circuits import dataset_circuit_to_wire
from trephine.v1 import dataset_circuits_pb2 as pb

Run = Callable[..., int]
PAIRS = [
    {"text": f"The {a}", "other": f"The {b}", "right": f" {v}", "not": " x"}
    for a, b in (("man", "men"), ("cat", "cats"), ("dog", "dogs"), ("cow", "cows"))
    for v in "pqr"
]
COLUMNS = (
    "--clean",
    "text",
    "--corrupted",
    "other",
    "--answer",
    "right",
    "--wrong",
    "not",
    "--model",
    "tiny",
)


@cache
def found() -> StoredDatasetCircuit:
    """What the engine finds over two clusters of a tiny dataset."""
    session = Session(hosted=tiny_hosted("llama"))
    circuit = finish(discover_dataset_circuit(session, small_request(24, clusters=2, beside=("heads",))))
    return StoredDatasetCircuit(name="datasetCircuits/a1", create_time="2026-01-01T00:00:00Z", found=circuit)


class FakeDatasets(FakeService):
    """Answers with `found`."""

    def DiscoverDatasetCircuit(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return self._start("DiscoverDatasetCircuit", dataset_circuit_to_wire(found()))

    def GetDatasetCircuit(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return dataset_circuit_to_wire(found())

    def ListDatasetCircuits(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        listed = dataset_circuit_to_wire(found(), whole=False)
        return pb.ListDatasetCircuitsResponse(dataset_circuits=[listed])


@pytest.fixture
def fake() -> FakeDatasets:
    return FakeDatasets()


@pytest.fixture
def run(fake: FakeDatasets, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command against the fake and return its exit status."""
    server, address = serve(fake)

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield command
    server.stop(grace=None).wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Pairs, one of them twice."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*PAIRS, PAIRS[0]]))
    return path


def asked(fake: FakeDatasets) -> pb.DiscoverDatasetCircuitRequest:
    """The last request."""
    return [one for one in fake.requests if isinstance(one, pb.DiscoverDatasetCircuitRequest)][-1]


def test_a_file_becomes_two_sides_and_a_result_tables(
    fake: FakeDatasets, run: Run, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Options reach the request; every circuit, ablation, the clusters and the certificate are printed."""
    out = tmp_path / "found.json"
    words = ("--begin", "<s>", "--positions", "kept", "--estimator", "integrated-gradients", "--nodes", "7")
    more = (
        "--ablation",
        "mean",
        "--ablation",
        "resample",
        "--clusters",
        "auto",
        "--no-curve",
        "--out",
        str(out),
    )
    assert run("discover-dataset", str(file), *COLUMNS, *words, *more) == ExitCode.PASS
    request, (printed, told) = asked(fake), capsys.readouterr()
    assert len(request.training) + len(request.held_out) == 12
    assert all(one.clean.startswith("<s>The ") for one in request.training)
    assert request.estimator == pb.EFFECT_ESTIMATOR_INTEGRATED_GRADIENTS
    assert request.positions == pb.POSITION_RULE_KEPT
    assert list(request.ablations) == [pb.NODE_ABLATION_MEAN, pb.NODE_ABLATION_RESAMPLE]
    assert (request.nodes, request.clusters, request.without_curve) == (7, 0, True)
    assert not request.HasField("threshold")
    assert "1 duplicate rows were left out" in told
    for words_of in (
        "mean ablation",
        "zero ablation",
        "stable core",
        "random circuits",
        "cluster 2",
        "silhouette",
    ):
        assert words_of in printed
    for circuit in found().found.circuits[1:]:
        for text, choice in zip(circuit.contexts, circuit.choices, strict=True):
            assert f"{text!r}: {choice}" in printed
    assert found().found.certificate[:40] in printed
    assert json.loads(out.read_text())["circuits"]


def test_what_arrives_is_what_was_found():
    """Every figure crosses the wire and the client's own values unchanged."""
    message, whole = dataset_circuit_to_wire(found()), found().found
    value = decode(DatasetCircuit, message)
    for got, sent in zip(value.circuits, whole.circuits, strict=True):
        assert [(n.feature.layer, n.feature.index, n.effect, n.stable) for n in got.nodes] == [
            (n.layer, n.index, n.effect, n.stable) for n in sent.nodes
        ]
        assert (got.contexts, got.choices) == (sent.contexts, sent.choices)
        assert [(e.source, e.target, e.weight) for e in got.edges] == [
            (e.source, e.target, e.weight) for e in sent.edges
        ]
        for left, right in zip(got.faithfulness, sent.faithfulness, strict=True):
            assert left.ablation.value == right.ablation.value
            assert left.random == right.random
            assert left.nodes_for_80 == right.nodes_for_80
            assert left.circuit.completeness.low == right.circuit.completeness.low
            assert [p.faithfulness.value for p in left.curve] == [p.faithfulness.value for p in right.curve]
    assert value.clustering is not None
    assert value.clustering.assignment == whole.clustering.assignment
    assert value.certificate == whole.certificate
    assert not dataset_circuit_to_wire(found(), whole=False).circuits


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--estimator", "guess"), "--estimator must be one of"),
        (("--ablation", "half"), "--ablation must be one of"),
        (("--clusters", "some"), "--clusters must be auto, or 1 to 32"),
        (("--clusters", "0"), "--clusters must be auto, or 1 to 32"),
        (("--clusters", "33"), "--clusters must be auto, or 1 to 32"),
        (("--wrong", "absent"), "has no column 'absent'"),
        (("--limit", "3"), "at least two"),
    ],
)
def test_wrong_words_are_told_before_anything_is_started(
    fake: FakeDatasets,
    run: Run,
    file: Path,
    words: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
):
    """As wrong use, naming what there is."""
    assert run("discover-dataset", str(file), *COLUMNS, *words) == ExitCode.USAGE
    assert told in capsys.readouterr().err
    assert not fake.requests or not any(
        isinstance(one, pb.DiscoverDatasetCircuitRequest) for one in fake.requests
    )


def test_a_prediction_tells_nodes_patch_and_positions(
    run: Run, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What would be selected among, what it would be patched with; the document goes where it is asked."""
    out = tmp_path / "would.json"
    assert run("discover-dataset", str(file), *COLUMNS, "--predict", "--out", str(out)) == ExitCode.PASS
    printed, told = capsys.readouterr()
    whole = found().found
    assert f"{whole.candidates:,} of neurons, heads" in printed
    assert "attribution_patching, patched with resample, positions summed" in printed
    assert "would take" in printed
    assert "stable core" not in printed
    assert json.loads(out.read_text())["candidates"] == str(whole.candidates)
    assert f"wrote {out}" in told


def test_random_circuits_that_are_the_circuit_are_shown_as_no_control(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """There is no p, and not for want of numbers; nor stability, where draws say nothing."""
    whole, (first, *others) = found(), found().found.circuits
    nodes = tuple(replace(n, frequency=None, stable=False, certified_edits=None) for n in first.nodes)
    same = replace(
        first.faithfulness[0], random=(first.faithfulness[0].circuit.faithfulness.value,) * 3, p_value=None
    )
    circuits = (replace(first, nodes=nodes, abstained=(), n_abstained=0, faithfulness=(same,)), *others)
    stored = replace(whole, found=replace(whole.found, circuits=circuits))
    monkeypatch.setattr(sys.modules[__name__], "found", lambda: stored)
    assert run("dataset-circuits", "show", "datasetCircuits/a1") == ExitCode.PASS
    printed = capsys.readouterr().out.partition("cluster 1")[0]
    assert "3 of the same size and layers: each is the circuit itself" in printed
    assert "inconclusive" not in printed
    assert "no draws say which are stable" in printed
    assert "not looked for: no draws say anything" in printed


def test_what_stands_beside_is_asked_for_and_told(
    fake: FakeDatasets, run: Run, file: Path, capsys: pytest.CaptureFixture[str]
):
    """Heads need no loading; the share of effects and the owners of nodes are printed."""
    words = (
        "--beside",
        "heads",
        "--estimator",
        "exact",
        "--exact-nodes",
        "9",
        "--share",
        "0.25",
        "--steps",
        "3",
    )
    assert run("discover-dataset", str(file), *COLUMNS, *words) == ExitCode.PASS
    request, (printed, _) = asked(fake), capsys.readouterr()
    assert (request.replacement, list(request.beside)) == ("neurons", ["heads"])
    assert (request.exact_nodes, request.stability_share, request.steps) == (9, 0.25, 3)
    assert "nodes of neurons, heads" in printed
    assert "of the summed absolute effects" in printed
    owners = {node.replacement for circuit in found().found.circuits for node in circuit.nodes}
    assert owners == {"neurons", "heads"}
    assert "heads:" in printed


def test_the_nodes_abstained_on_are_counted_and_not_the_listed_ones(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The true number, how many are listed if not all, and no number where a circuit does not say."""
    whole, (first, *others) = found(), found().found.circuits
    listed, number = first.abstained[:2], others[0].n_abstained
    assert len(listed) == 2
    for count, told in (
        (3772, "3,772 nodes that the data do not agree on; the likeliest 2 are listed"),
        (2, "2 nodes that the data do not agree on\n"),
        (None, "at least 2 nodes that the data do not agree on; more were not counted"),
    ):
        circuits = (replace(first, abstained=listed, n_abstained=count), *others)
        stored = replace(whole, found=replace(whole.found, circuits=circuits))
        monkeypatch.setattr(sys.modules[__name__], "found", lambda stored=stored: stored)
        assert run("dataset-circuits", "show", "datasetCircuits/a1") == ExitCode.PASS
        printed = capsys.readouterr().out
        assert told in printed
        assert f"{number} nodes that the data do not agree on\n" in printed


@pytest.mark.parametrize(
    ("metric", "why"), [(1.5, "ablating everything hardly moves"), (nan, "an ablated run gave no number")]
)
def test_a_share_of_nothing_is_shown_as_inconclusive(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], metric: float, why: str
):
    """No p-value, no `not reached`: where ablating everything moves nothing, nothing is said."""
    whole, (first, *others) = found(), found().found.circuits
    measured = first.faithfulness[0]
    share = replace(measured.circuit.faithfulness, value=nan, low=nan, high=nan)
    nothing = replace(measured.circuit, faithfulness=share, completeness=share, metric=metric)
    empty = replace(
        measured, circuit=nothing, core=None, curve=(), random=(nan,), p_value=None, nodes_for_80=None
    )
    circuits = (replace(first, faithfulness=(empty,)), *(replace(one, faithfulness=()) for one in others))
    stored = replace(whole, found=replace(whole.found, circuits=circuits))
    monkeypatch.setattr(sys.modules[__name__], "found", lambda: stored)
    assert run("dataset-circuits", "show", "datasetCircuits/a1") == ExitCode.PASS
    printed = capsys.readouterr().out
    assert printed.count(f"inconclusive, since {why}") == printed.count("inconclusive, since") == 2
    assert "not reached" not in printed
    assert "nan" not in printed.partition("mean ablation")[2].partition("cluster 1")[0]


def test_what_was_found_before_is_listed_and_shown(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As it was printed when it was found; --json prints the message."""
    assert run("dataset-circuits", "list") == ExitCode.PASS
    listed = capsys.readouterr().out
    assert "datasetCircuits/a1" in listed
    assert "neurons, heads" in listed
    out = tmp_path / "again.json"
    assert run("dataset-circuits", "show", "datasetCircuits/a1", "--out", str(out)) == ExitCode.PASS
    assert "mean ablation" in capsys.readouterr().out
    assert json.loads(out.read_text())["circuits"]
    assert run("--json", "dataset-circuits", "show", "datasetCircuits/a1") == ExitCode.PASS
    assert json.loads(capsys.readouterr().out)["beside"] == ["heads"]
    assert run("--json", "dataset-circuits", "list") == ExitCode.PASS
    assert json.loads(capsys.readouterr().out)["datasetCircuits"][0]["circuits"] == []


def test_the_sets_and_layers_that_figures_are_of_are_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By the content of the set; one that was found before this was recorded is shown by names alone."""
    whole = found()
    known = replace(
        whole.found, replacement="tc", sets=(GraphSet(name="tc", content_hash="c" * 64),), layers=(0, 1, 2)
    )
    for circuit, told in (
        (known, f"nodes of tc {'c' * 12}, heads; layers 0-2\n"),
        (replace(known, sets=(), layers=()), "nodes of tc, heads\n"),
    ):
        stored = replace(whole, found=circuit)
        monkeypatch.setattr(sys.modules[__name__], "found", lambda stored=stored: stored)
        assert run("dataset-circuits", "show", "datasetCircuits/a1") == ExitCode.PASS
        assert told in capsys.readouterr().out
