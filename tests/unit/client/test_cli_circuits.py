"""`trephine circuits ...` against a fake server: how nodes are written, what is asked, what is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService, serve
from trephine.client.circuit_files import strongest
from trephine.client.cli import main
from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError
from trephine.client.types import Node
from trephine.v1 import circuit_group_scores_pb2 as scored
from trephine.v1 import circuit_queries_pb2 as queries
from trephine.v1 import circuit_service_pb2 as pb
from trephine.v1 import circuit_verification_pb2 as verified
from trephine.v1 import common_pb2 as common

Run = Callable[..., int]


RANDOM = scored.ControlRange(median=0.3, low=0.2, high=0.4, p=0.005, p_worse=1.0)
SCORES = scored.GroupingScores(
    groups=[
        scored.GroupScore(
            group="found\x1b[31m",
            nodes=2,
            influence=0.25,
            figures=[scored.GroupFigure(quality=scored.GROUP_QUALITY_SOURCES, value=0.12, random=RANDOM)],
        )
    ],
    whole=[
        scored.ScoredQuality(
            quality=scored.GROUP_QUALITY_SHOWN,
            value=0.9,
            random=RANDOM,
            by_layer=scored.ControlRange(median=0.95, low=0.9, high=0.97, p=0.9, p_worse=0.105),
            standing=verified.STANDING_INCONCLUSIVE,
        )
    ],
    standing=verified.STANDING_INCONCLUSIVE,
    verdict="INCONCLUSIVE: not told apart from a control in path mass shown",
    inside=0.02,
    cancelled=0.08,
    before=scored.PictureFigures(nodes=10, edges=30, replacement=0.5, completeness=0.8),
    after=scored.PictureFigures(nodes=9, edges=25, replacement=0.4, completeness=0.75),
    draws=199,
    caveats=["partly by construction"],
)


class FakeCircuits(FakeService):
    """Adds a circuit of a neuron, an error, a token and a target, and more; keeps what was asked."""

    more: Sequence[pb.Node] = ()
    too_large: str = ""
    compared: Sequence[pb.ComparedNode] = ()

    def ListNodes(self, request: Any, context: Any) -> pb.ListNodesResponse:
        self._note(request, context)
        label = queries.NodeLabel(node=0, text="cities\x1b[31m", author="ann")
        feature = common.FeatureRef(layer=12, index=345)
        kinds = [
            pb.Node(index=0, kind=1, layer=12, position=6, feature=feature, influence=0.5, given_label=label),
            pb.Node(index=1, kind=2, layer=3, position=6),
            pb.Node(index=2, kind=3, layer=-1, position=2, label="store"),
            pb.Node(index=3, kind=4, layer=30, position=6, label=" Mary"),
            *self.more,
        ]
        return pb.ListNodesResponse(nodes=kinds, total_size=len(kinds))

    def QuerySubgraph(self, request: Any, context: Any) -> pb.QuerySubgraphResponse:
        self._note(request, context)
        path = queries.CircuitPath(nodes=[2, 0, 3], weights=[1.0, -2.0], share=-0.25, contribution=-1.5)
        return pb.QuerySubgraphResponse(
            nodes=self.ListNodes(pb.ListNodesRequest(), context).nodes,
            edges=[pb.Edge(source=2, target=0, weight=1.0), pb.Edge(source=0, target=3, weight=-2.0)],
            n_nodes=4,
            n_edges=2,
            n_paths=1,
            share=-0.25,
            absolute_share=0.25,
            paths=[path] if request.HasField("between") else [],
        )

    def PinNodes(self, request: Any, context: Any) -> queries.CircuitAnnotations:
        self._note(request, context)
        pins = [queries.NodePin(node=node, author=request.author) for node in request.nodes]
        return queries.CircuitAnnotations(circuit=request.circuit, pins=pins)

    def GroupCircuit(self, request: Any, context: Any) -> queries.CircuitAnnotations:
        self._note(request, context)
        group = queries.NodeGroup(name="found", nodes=[0, 2], how="similar", cohesion=0.75)
        said = queries.CircuitAnnotations(circuit=request.circuit, groups=[group])
        if request.HasField("automatic") and self.too_large:
            said.not_scored = self.too_large
        elif request.HasField("automatic"):
            said.scores.CopyFrom(SCORES)
        return said

    def GetAnnotations(self, request: Any, context: Any) -> queries.CircuitAnnotations:
        self._note(request, context)
        return queries.CircuitAnnotations(circuit=request.circuit, scores=SCORES)

    def PruneCircuit(self, request: Any, context: Any) -> pb.Circuit:
        self._note(request, context)
        how = queries.Provenance(origin="pruned", parent=request.circuit, how="at most 1")
        return pb.Circuit(name="circuits/small", n_nodes=3, n_edges=2, provenance=how)

    def DiffCircuits(self, request: Any, context: Any) -> pb.DiffCircuitsResponse:
        self._note(request, context)
        side = queries.NodeSide(node=0, count=1, influence=0.5)
        node = pb.ComparedNode(kind=1, layer=12, position=6, feature=common.FeatureRef(layer=12, index=345))
        node.first.CopyFrom(side)
        edge = queries.ComparedEdge(source="12:345 @6", target="target", second=2.0)
        return pb.DiffCircuitsResponse(
            nodes=[node, *self.compared], edges=[edge], n_nodes=1, n_edges=1, caveats=["other weights"]
        )


@pytest.fixture
def fake() -> FakeCircuits:
    return FakeCircuits()


@pytest.fixture
def run(fake: FakeCircuits, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command against the fake and return its exit status."""
    server, address = serve(fake)

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield command
    server.stop(grace=None).wait()


def asked(fake: FakeCircuits, kind: type) -> Any:
    """The last request of a kind."""
    return [one for one in fake.requests if isinstance(one, kind)][-1]


def test_nodes_are_written_by_address_or_index(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Features, errors, tokens and the target have addresses; what is none, or not there, is an error."""
    assert (
        run("circuits", "pin", "c1", "12:345@6", "error:3@6", "token@2", "target", "1", "--author", "x") == 0
    )
    request = asked(fake, queries.PinNodesRequest)
    assert (list(request.nodes), request.author) == ([0, 1, 2, 3, 1], "x")
    assert "12:345@6" in capsys.readouterr().out
    assert run("circuits", "pin", "c1", "12:9@6") == 2
    assert "has no node 12:9@6" in capsys.readouterr().err
    assert run("circuits", "pin", "c1", "twelve") == 2
    assert "'twelve' is no node" in capsys.readouterr().err


def test_errors_of_two_sites_in_one_layer_have_two_addresses(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]
):
    """The MLP's is the layer's; the other names its site, in lists and differences too."""
    sites = ("attn_out", "mlp_out")
    fake.more = [
        pb.Node(index=4 + n, kind=2, layer=9, position=6, error_site=site) for n, site in enumerate(sites)
    ]
    errors = ("error:9@6", "error:9:attn_out@6", "error:9:mlp_out@6")
    assert run("circuits", "pin", "c1", *errors) == 0
    assert list(asked(fake, queries.PinNodesRequest).nodes) == [5, 4, 5]
    capsys.readouterr()
    assert run("circuits", "nodes", "c1") == 0
    printed = capsys.readouterr().out
    assert errors[0] in printed
    assert errors[1] in printed
    assert "TOKEN" in printed.splitlines()[0]
    assert run("circuits", "pin", "c1", "error:9:resid_post@6") == 2
    assert "has no node error:9:resid_post@6" in capsys.readouterr().err
    fake.compared = [pb.ComparedNode(kind=2, layer=9, position=6, error_site=site) for site in sites]
    assert run("circuits", "diff", "c1", "c2") == 0
    printed = capsys.readouterr().out
    assert errors[0] in printed
    assert errors[1] in printed


def test_a_target_among_several_has_to_be_named(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]
):
    """`target` is the only one; of several the error lists them, with their indices."""
    assert run("circuits", "around", "c1", "target") == 0
    fake.more = [pb.Node(index=4, kind=4, layer=30, position=7, label=" John")]
    for words in (("between", "c1", "0", "target"), ("around", "c1", "target"), ("pin", "c1", "target")):
        assert run("circuits", *words) == 2
        assert "several targets; name one by index: 3 ( Mary), 4 ( John)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("around", "c1", "0", "--ancestors", "1000000000000"),
        ("between", "c1", "2", "3", "--paths", "99999999999"),
        ("prune", "c1", "--max-nodes", "99999999999"),
        ("prune", "c1", "--max-edges", "99999999999"),
        ("edges", "c1", "--source", "99999999999"),
    ],
)
def test_a_number_that_fits_no_field_is_wrong_use(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
):
    """Told as such, whatever is asked; no traceback."""
    assert run("circuits", *words) == 2
    assert "does not fit into its field" in capsys.readouterr().err


def test_rows_are_not_counted_from_the_end(run: Run, capsys: pytest.CaptureFixture[str]):
    """A negative number of rows is wrong use, not all but so many."""
    for words in (("nodes", "c1"), ("edges", "c1"), ("show", "c1")):
        assert run("circuits", *words, "--top", "-5") == 2
        capsys.readouterr()


def test_pages_are_not_counted_from_the_end(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A negative number of feature pages is refused, not all but so many; in Python, too."""
    assert run("circuits", "export", "c1", "--out", str(tmp_path / "out"), "--feature-pages", "-1") == 2
    assert "feature-pages" in capsys.readouterr().err
    nodes = [decode(Node, pb.Node(index=n, kind=1, feature=common.FeatureRef(index=n))) for n in range(3)]
    with pytest.raises(InvalidRequestError, match="feature_pages must not be negative, got -1"):
        strongest(nodes, -1)
    assert [one.index for one in strongest(nodes, 2)] == [0, 1]


def test_paths_are_printed_with_their_shares(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]
):
    """The strongest paths by address, and what all of them add up to; hostile labels are escaped."""
    assert run("circuits", "between", "c1", "token@2", "target", "--paths", "5", "--min-weight", "0.1") == 0
    out = capsys.readouterr().out
    assert "-0.25\t-1.5\ttoken@2 > 12:345@6 > target" in out
    assert "1 paths; their shares sum to -0.25, absolute 0.25" in out
    assert "cities\\x1b[31m" in out
    between = asked(fake, queries.QuerySubgraphRequest)
    assert (between.between.source, between.between.target, between.between.paths) == (2, 3, 5)
    assert between.min_weight == 0.1
    assert run("--json", "circuits", "around", "c1", "0", "--ancestors", "2", "--descendants", "0") == 0
    assert len(json.loads(capsys.readouterr().out)["edges"]) == 2
    around = asked(fake, queries.QuerySubgraphRequest).around
    assert (around.node, around.ancestors, around.descendants) == (0, 2, 0)


def test_nodes_are_listed_by_filter(fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]):
    """Every option reaches the request; labels that people gave come first."""
    options = ("--kind", "feature", "--layer", "12", "--layer", "3", "--position", "6", "--order", "effect")
    assert run("circuits", "nodes", "c1", *options, "--token", "it", "--pinned") == 0
    request = asked(fake, pb.ListNodesRequest)
    assert (request.kind, list(request.layers), list(request.positions)) == (1, [12, 3], [6])
    assert (request.token, request.pinned, request.order) == ("it", True, queries.NODE_SORT_EFFECT)
    assert "12:345@6" in capsys.readouterr().out


def test_groups_pruning_and_differences(fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]):
    """By hand or automatically, with bounds; a smaller circuit says of what; a diff says in which it is."""
    assert run("circuits", "group", "c1", "--auto", "--by", "edges", "--min-similarity", "0.4") == 0
    automatic = asked(fake, queries.GroupCircuitRequest).automatic
    assert (automatic.basis, automatic.min_similarity) == (queries.GROUPING_BASIS_EDGES, 0.4)
    assert not automatic.HasField("max_nodes")
    assert "12:345@6 token@2\tfound (alike 0.75)" in capsys.readouterr().out
    assert run("circuits", "group", "c1", "France", "0", "token@2") == 0
    assert list(asked(fake, queries.GroupCircuitRequest).by_hand.nodes) == [0, 2]
    assert run("circuits", "group", "c1") == 2
    assert run("circuits", "group", "c1", "--auto", "--by", "taste") == 2
    assert run("circuits", "prune", "c1", "--max-nodes", "1", "--keep", "target") == 0
    assert list(asked(fake, queries.PruneCircuitRequest).keep) == [3]
    assert "circuits/small" in capsys.readouterr().out
    assert run("circuits", "diff", "c1", "c2", "--sum-positions") == 0
    assert asked(fake, queries.DiffCircuitsRequest).sum_positions
    out = capsys.readouterr().out
    assert "note: other weights" in out
    assert "12:345@6\tfirst\t0.5000\t\t-0.5000" in out


def test_groups_are_printed_beside_their_controls(
    fake: FakeCircuits, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Found ones with their scores, any with `circuits groups`; why there are none; doubt in words."""
    assert run("circuits", "group", "c1", "--auto", "--by", "edges", "--min-shown", "0.8") == 0
    automatic = asked(fake, queries.GroupCircuitRequest).automatic
    assert (automatic.min_shown, automatic.HasField("min_similarity")) == (0.8, False)
    found = capsys.readouterr().out
    assert run("circuits", "groups", "c1") == 0
    assert asked(fake, queries.GetAnnotationsRequest).scores
    shown = capsys.readouterr().out
    assert shown in found
    assert "\x1b" not in shown
    assert "\t2\t0.2500\t0.12 (0.30, p 0.005)\t\t\t" in shown
    whole = "0.900\t0.300 [0.200, 0.400]\t0.005\t0.950 [0.900, 0.970]\t0.900\tINCONCLUSIVE"
    assert f"path mass shown (1 is best)\t{whole}" in shown
    assert "10 -> 9" in shown
    assert "0.500, 0.800 -> 0.400, 0.750" in shown
    assert "0.020 inside groups, 0.080 cancelled" in shown
    assert "INCONCLUSIVE: not told apart from a control in path mass shown" in shown
    assert "note: partly by construction" in shown
    assert run("--json", "circuits", "groups", "c1") == 0
    assert json.loads(capsys.readouterr().out)["whole"][0]["quality"] == "GROUP_QUALITY_SHOWN"
    fake.too_large = "prune it"
    assert run("circuits", "group", "c1", "--auto") == 0
    assert "not scored: prune it" in capsys.readouterr().err


def test_a_missing_graph_file_is_told(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing is sent for a file that is not there."""
    assert run("circuits", "import", str(tmp_path / "none.json")) != 0
    assert "cannot read" in capsys.readouterr().err
