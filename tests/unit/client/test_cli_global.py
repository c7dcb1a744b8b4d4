"""`trephine discover-global` against a fake server that answers with a whole message."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService, serve
from tests.global_circuits import global_circuit
from trephine.app.circuits.circuits import ListedEdge, ListedNode, StoredCircuit
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.rpc.wire.circuits import circuit_to_wire, edge_to_wire, node_to_wire
from trephine.v1 import circuit_service_pb2
from trephine.v1 import global_circuits_pb2 as pb

Run = Callable[..., int]
STORED = StoredCircuit(name="circuits/g1", create_time="2026-01-01T00:00:00Z", circuit=global_circuit())


class FakeGlobal(FakeService):
    """Answers with a global circuit."""

    def DiscoverGlobalCircuit(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return self._start("DiscoverGlobalCircuit", circuit_to_wire(STORED))

    def GetCircuit(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return circuit_to_wire(STORED)

    def ListCircuits(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        many = replace(STORED.circuit, targets=5 * STORED.circuit.targets)
        listed = (STORED, replace(STORED, circuit=many))
        return circuit_service_pb2.ListCircuitsResponse(circuits=map(circuit_to_wire, listed))

    def ListNodes(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        listed = [
            node_to_wire(ListedNode(index=index, node=node, bias=None, remainder=None, total=None))
            for index, node in enumerate(STORED.circuit.nodes)
        ]
        return circuit_service_pb2.ListNodesResponse(nodes=listed, total_size=len(listed))

    def ListEdges(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        edges = [
            ListedEdge(source=0, target=1, weight=-2.0),
            ListedEdge(source=2, target=0, weight=0.5),
            ListedEdge(source=1, target=3, weight=0.25),
        ]
        return circuit_service_pb2.ListEdgesResponse(edges=map(edge_to_wire, edges), total_size=3)


@pytest.fixture
def fake() -> FakeGlobal:
    return FakeGlobal()


@pytest.fixture
def run(fake: FakeGlobal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
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
    """Ten texts, one of them twice."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"text {number}" for number in [*range(10), 0]))
    return path


def asked(fake: FakeGlobal) -> pb.DiscoverGlobalCircuitRequest:
    """The last request."""
    return [one for one in fake.requests if isinstance(one, pb.DiscoverGlobalCircuitRequest)][-1]


def test_a_file_becomes_two_sides_and_a_result_words(
    fake: FakeGlobal, run: Run, file: Path, capsys: pytest.CaptureFixture[str]
):
    """Options reach the request; checks are printed with their verdicts, doubts and edges."""
    words = ("--model", "tiny", "--begin", "<s>", "--start-feature", "1:2", "--start-token", " Paris")
    more = ("--weighting", "era", "--nodes", "7", "--verify-edges", "0", "--layers", "0-2", "--seed", "5")
    assert run("discover-global", str(file), *words, *more) == ExitCode.PASS
    request = asked(fake)
    assert (len(request.training), len(request.held_out)) == (7, 3)
    assert all(text.startswith("<s>text ") for text in (*request.training, *request.held_out))
    assert (request.replacement, request.weighting) == ("neurons", pb.EDGE_WEIGHTING_ERA)
    assert [(one.layer, one.index) for one in request.start_features] == [(1, 2)]
    assert list(request.start_tokens) == [" Paris"]
    assert (request.max_nodes, request.verify_edges, request.seed) == (7, 0, 5)
    assert list(request.layers) == [0, 1, 2]
    assert not request.HasField("candidates")
    told = capsys.readouterr()
    assert "1 duplicate texts were left out" in told.err
    for words in (
        "30 to find it on (240 tokens), 10 held out (80)",
        "60 of 120 features of neurons",
        "where the target is active: rank correlation with ablations 0.500",
        "BEATS virtual weight alone",
        "DOES NOT BEAT virtual weight x activation",
        "INCONCLUSIVE permuted edges",
        "70% of edges are in both",
        "-2",
    ):
        assert words in told.out


def test_predictions_and_documents(
    fake: FakeGlobal, run: Run, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--predict finds nothing, and --out takes what it says; --json prints the response."""
    out = tmp_path / "would.json"
    words = ("discover-global", str(file), "--model", "tiny", "--predict", "--out", str(out))
    assert run(*words) == ExitCode.PASS
    assert asked(fake).validate_only
    assert "would take" in capsys.readouterr().out
    assert "seconds" in json.loads(out.read_text())
    assert run("--json", "discover-global", str(file), "--model", "tiny") == ExitCode.PASS
    assert json.loads(capsys.readouterr().out)["across"]["training"] == 30


def test_stored_ones_are_shown_and_listed(run: Run, capsys: pytest.CaptureFixture[str]):
    """By their texts, where others have a prompt."""
    assert run("circuits", "show", "circuits/g1") == ExitCode.PASS
    assert "where the source is active" in capsys.readouterr().out
    assert run("circuits", "list") == ExitCode.PASS
    columns, one, many = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert one[columns.index("PROMPT")] == "30 texts"
    label = one[columns.index("TARGET")]
    assert many[columns.index("TARGET")] == f"{label}, {label}, {label} and 2 more"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--held-out", "0.05"), "both need at least two"),
        (("--weighting", "magic"), "--weighting must be one of twera, era"),
        (("--start-feature", "here"), "is no feature"),
        (("--site", "3"), "--start-direction and --site go together"),
        (("--detach", "--out", "x.json"), "--detach does not wait"),
    ],
)
def test_wrong_words_are_refused_before_a_server_is_asked(
    fake: FakeGlobal,
    run: Run,
    file: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    """With exit status 2."""
    assert run("discover-global", str(file), "--model", "tiny", *words) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert not [one for one in fake.requests if isinstance(one, pb.DiscoverGlobalCircuitRequest)]


def test_texts_of_the_other_file_that_are_in_the_first_are_left_out(
    fake: FakeGlobal, run: Run, file: Path, tmp_path: Path
):
    """What is on both sides is not held out."""
    other = tmp_path / "other.txt"
    other.write_text("text 3\nanother\nand another\n")
    assert (
        run("discover-global", str(file), "--held-out-file", str(other), "--model", "tiny") == ExitCode.PASS
    )
    assert list(asked(fake).held_out) == ["another", "and another"]
    assert len(asked(fake).training) == 10
