"""Runs of a bench that ended are not run again; one whose graph was overwritten is."""

from __future__ import annotations

import json

import pytest

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.removal import JUDGES
from trephine.domain.removal import judge_removal


def request(tmp_path, nodes=256, graph=True):
    return {"nodes": nodes, "graph": str(tmp_path / "ours.npz") if graph else ""}


def test_an_answer_outlives_the_bench(tmp_path):
    """A second bench on the same file finds it, for the same request alone."""
    kept, asked = KeptRuns(tmp_path / "deep" / "kept.json"), request(tmp_path, graph=False)
    assert kept.get("ours", asked) is None
    kept.keep("ours", asked, {"seconds": 3.0})
    again = KeptRuns(tmp_path / "deep" / "kept.json")
    found = again.get("ours", asked)
    assert found is not None
    assert found["seconds"] == 3.0
    assert again.get("peer", asked) is None
    assert again.get("ours", asked | {"nodes": 1024}) is None


def test_a_run_whose_graph_is_gone_is_run_again(tmp_path):
    """Without its file the edges cannot be compared."""
    kept, asked = KeptRuns(tmp_path / "kept.json"), request(tmp_path)
    kept.keep("ours", asked, {"seconds": 3.0})
    assert kept.get("ours", asked) is None
    (tmp_path / "ours.npz").write_bytes(b"graph")
    assert kept.get("ours", asked) is not None


def test_a_graph_belongs_to_the_last_run_that_wrote_it(tmp_path):
    """Two runs of one name write one file: the older one is run again, until it wrote last."""
    kept = KeptRuns(tmp_path / "kept.json")
    (tmp_path / "ours.npz").write_bytes(b"graph")
    first, second = request(tmp_path, 256), request(tmp_path, 1024)
    kept.keep("ours", first, {"seconds": 1.0})
    kept.keep("ours", second, {"seconds": 2.0})
    assert kept.get("ours", first) is None
    assert kept.get("ours", second) is not None
    kept.keep("ours", first, {"seconds": 1.5})
    assert kept.get("ours", second) is None
    assert kept.get("ours", first) is not None


def test_a_run_without_a_graph_does_not_claim_the_file(tmp_path):
    """Runs that were only timed leave the graph to the run that wrote it."""
    kept = KeptRuns(tmp_path / "kept.json")
    (tmp_path / "ours.npz").write_bytes(b"graph")
    kept.keep("ours", request(tmp_path), {"seconds": 1.0})
    kept.keep("ours", request(tmp_path, graph=False), {"seconds": 2.0})
    assert kept.get("ours", request(tmp_path)) is not None


def test_the_file_is_whole_json(tmp_path):
    """It is written beside and renamed; nothing partial is left."""
    kept = KeptRuns(tmp_path / "kept.json")
    kept.keep("ours", request(tmp_path, graph=False), {"seconds": 1.0})
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_the_digest_of_code_is_of_every_source_below_a_package(tmp_path, monkeypatch):
    """A changed, a new and a renamed module are other code; what is no source is not."""
    folder = tmp_path / "planted_package"
    (folder / "deep").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (folder / "__init__.py").write_text("")
    (folder / "deep" / "one.py").write_text("1")
    seen = [code_of("planted_package")]
    (folder / "notes.txt").write_text("no source")
    assert code_of("planted_package") == seen[0]
    (folder / "deep" / "one.py").write_text("2")
    seen.append(code_of("planted_package"))
    (folder / "two.py").write_text("2")
    seen.append(code_of("planted_package"))
    (folder / "two.py").rename(folder / "three.py")
    seen.append(code_of("planted_package"))
    assert len(set(seen)) == 4


def test_the_digest_of_code_is_of_a_module_alone(tmp_path, monkeypatch):
    """Its neighbours are not it; what has no source has no digest."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planted_thresholds.py").write_text("LIMIT = 0.25")
    (tmp_path / "planted_neighbour.py").write_text("")
    before = code_of("planted_thresholds")
    (tmp_path / "planted_neighbour.py").write_text("1")
    assert code_of("planted_thresholds") == before
    (tmp_path / "planted_thresholds.py").write_text("LIMIT = 0.5")
    assert code_of("planted_thresholds") != before
    with pytest.raises(ModuleNotFoundError, match="planted_nothing"):
        code_of("planted_nothing")
    with pytest.raises(ModuleNotFoundError, match="sys"):
        code_of("sys")


def test_words_of_removal_are_kept_by_what_decides_them():
    """The thresholds are a module of their own."""
    assert judge_removal.__module__ in JUDGES
