"""Deltas with nothing but the standard library: layouts, damage, the command line."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc

import pytest

from trephine.client import deltas
from trephine.client.cli import main
from trephine.client.delta_bytes import laid_out, xor
from trephine.client.deltas import apply_delta, make_delta
from trephine.client.errors import HashMismatchError, ParentChangedError
from trephine.client.local_errors import LocalFileError


def shard(tensors):
    """Write float32 tensors given as rows, as safetensors does."""
    header, data = {}, b""
    for name, rows in tensors.items():
        flat = [value for row in rows for value in row]
        packed = struct.pack(f"<{len(flat)}f", *flat)
        shape = [len(rows), len(rows[0])]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def run(monkeypatch):
    """Run a command and return its exit status; no server is there."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


@pytest.fixture
def folders(tmp_path):
    """A parent and an export whose tensors stayed, changed, grew in both directions, or are new."""
    parent, exported = tmp_path / "parent", tmp_path / "exported"
    for folder in (parent, exported):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    w = [[1.0, 2.0], [3.0, 4.0]]
    (parent / "model.safetensors").write_bytes(shard({"same": w, "edited": w, "rows": w, "columns": w}))
    (exported / "model.safetensors").write_bytes(
        shard(
            {
                "same": w,
                "edited": [[1.0, 2.0], [0.0, 4.0]],
                "rows": [*w, [5.0, 0.0]],
                "columns": [[1.0, 2.0, 6.0], [3.0, 4.0, 0.0]],
                "new": [[7.0]],
            }
        )
    )
    (exported / "certificate.json").write_text('{"passed": true}')
    weights = hashlib.sha256((parent / "model.safetensors").read_bytes()).hexdigest()
    files = [
        {"path": "model.safetensors", "sha256": weights},
        {"path": "old.safetensors", "sha256": "0" * 64},
    ]
    recorded = {"files": files, "left_out": {"old.safetensors": "it is not loaded"}}
    (exported / "edit_manifest.json").write_text(json.dumps({"parent": recorded}))
    listed(exported)
    return parent, exported, tmp_path


def listed(exported):
    """Write the list of digests, as publishing does last."""
    names = sorted(p.name for p in exported.iterdir() if p.name != "trephine.sha256")
    lines = [f"{hashlib.sha256((exported / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (exported / "trephine.sha256").write_text("".join(lines))


def test_every_byte_comes_back(folders):
    """Copied, XORed, laid out and stored parts alike."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    rebuilt = apply_delta(delta, parent, root / "rebuilt")
    names = sorted(path.name for path in exported.iterdir())
    assert sorted(path.name for path in rebuilt.iterdir()) == names
    assert all((rebuilt / name).read_bytes() == (exported / name).read_bytes() for name in names)


def test_a_file_that_is_taken_whole_is_never_in_memory(folders):
    """A GGUF of gigabytes is packed and unpacked in pieces."""
    parent, exported, root = folders
    data = b"ten bytes." * (3 << 20)
    (exported / "model.gguf").write_bytes(data)
    listed(exported)
    tracemalloc.start()
    try:
        rebuilt = apply_delta(make_delta(parent, exported, root / "delta"), parent, root / "rebuilt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (rebuilt / "model.gguf").read_bytes() == data
    assert peak < len(data) / 2


def test_a_damaged_delta_leaves_nothing(folders):
    """A byte that no longer decompresses, or decompresses to something else."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    content = bytearray((delta / "delta.bin").read_bytes())
    content[-3] ^= 1
    (delta / "delta.bin").write_bytes(content)
    with pytest.raises((LocalFileError, HashMismatchError)):
        apply_delta(delta, parent, root / "rebuilt")
    assert sorted(path.name for path in root.iterdir()) == ["delta", "exported", "parent"]


def test_a_killed_run_leaves_nothing_behind_the_next_one(folders):
    """Kill -9 in the midst of making and of applying: no target, and the next run sweeps what is left."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    for function, words in (
        ("make_delta", (parent, exported, root / "again")),
        ("apply_delta", (delta, parent, root / "rebuilt")),
    ):
        code = (
            "import sys, time\n"
            "from trephine.client import deltas\n"
            "def wait(*_):\n"
            "    print('midst', flush=True); time.sleep(600)\n"
            "deltas._described = deltas._write = wait\n"
            f"deltas.{function}(*sys.argv[1:])\n"
        )
        command = [sys.executable, "-c", code, *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"midst\n"
            process.kill()
        assert not words[-1].exists()
        assert len(list(root.glob(".trephine-tmp-*"))) == 1
        getattr(deltas, function)(*words)
        assert words[-1].is_dir()
        assert not list(root.glob(".trephine-tmp-*"))


def test_a_path_out_of_the_folder_is_refused(folders):
    """A delta is somebody's file."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    description = json.loads((delta / "delta.json").read_text())
    description["files"][0]["path"] = "../outside"
    (delta / "delta.json").write_text(json.dumps(description))
    with pytest.raises(LocalFileError, match="out of the folder"):
        apply_delta(delta, parent, root / "rebuilt")


def test_only_an_export_has_a_delta(folders, run, capsys):
    """An empty folder, a checkpoint of something else, a parent without weights: refused, nothing is left."""
    parent, exported, root = folders
    (root / "empty").mkdir()
    for edited in (root / "empty", parent):
        with pytest.raises(LocalFileError, match=r"edit_manifest\.json: give a folder that `trephine"):
            make_delta(parent, edited, root / "delta")
    with pytest.raises(LocalFileError, match=r"no \*\.safetensors"):
        make_delta(root / "empty", exported, root / "delta")
    assert run("make-delta", str(parent), str(root / "empty"), "--out", str(root / "delta")) == 2
    assert "trephine export" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["empty", "exported", "parent"]


def test_another_model_than_the_exports_own_makes_no_delta(folders, run, capsys):
    """Not a whole export called a delta; what was left out of the export, or is no weights, may differ."""
    parent, exported, root = folders
    other = root / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(shard({"unrelated": [[1.0]]}))
    with pytest.raises(ParentChangedError, match="give the export's own parent") as caught:
        make_delta(other, exported, root / "delta")
    assert caught.value.context["file"] == "model.safetensors"
    (other / "model.safetensors").rename(other / "renamed.safetensors")
    with pytest.raises(ParentChangedError, match=r"model\.safetensors of"):
        make_delta(other, exported, root / "delta")
    assert run("make-delta", str(other), str(exported), "--out", str(root / "delta")) != 0
    assert "own parent" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["exported", "other", "parent"]
    (parent / "tokenizer.json").write_text('{"another": 1}')
    assert make_delta(parent, exported, root / "delta").is_dir()


@pytest.mark.parametrize("manifest", ["{}", "[", '{"parent": {"files": [], "left_out": {}}}'])
def test_a_manifest_that_names_no_parent_is_refused(folders, manifest):
    """What a delta is of must be known."""
    parent, exported, root = folders
    (exported / "edit_manifest.json").write_text(manifest)
    with pytest.raises(LocalFileError, match=r"edit_manifest\.json"):
        make_delta(parent, exported, root / "delta")
    assert not (root / "delta").exists()


def test_the_parent_may_be_a_fetched_model(folders, monkeypatch):
    """By name, with or without `models/`; a name that leads elsewhere or nowhere is refused."""
    parent, exported, root = folders
    monkeypatch.setenv("TREPHINE_CACHE", str(root / "cache"))
    (root / "cache" / "models").mkdir(parents=True)
    parent.rename(root / "cache" / "models" / "tiny")
    delta = make_delta("tiny", exported, root / "delta")
    rebuilt = apply_delta(delta, "models/tiny", root / "rebuilt")
    assert (rebuilt / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    (root / "elsewhere" / "empty").mkdir(parents=True)
    monkeypatch.chdir(root / "elsewhere" / "empty")  # a path that leads to weights is one, whatever its name
    for name in ("tinier", "..", "models/../models/tiny", ""):
        with pytest.raises(LocalFileError, match=r"models fetch|no \*.safetensors"):
            make_delta(name, exported, root / "other")


def test_layouts():
    """The leading corner of a larger shape; smaller and differently ranked shapes do not fit."""
    assert laid_out(b"abcd", (2, 2), (3, 3)) == b"ab\0cd\0\0\0\0"
    assert laid_out(b"ab", (2,), (4,)) == b"ab\0\0"
    assert laid_out(b"abcd", (2, 2), (2, 1)) is None
    assert laid_out(b"abcd", (4,), (2, 2)) is None
    assert xor(b"\x01\x02", b"\x03\x02") == b"\x02\x00"


def test_the_command_line_makes_and_applies(folders, run, capsys):
    """Without a server; a target that exists is refused."""
    parent, exported, root = folders
    assert run("make-delta", str(parent), str(exported), "--out", str(root / "d")) == 0
    assert run("apply-delta", str(root / "d"), "--parent", str(parent), "--out", str(root / "r")) == 0
    assert "sha256 that the delta names" in capsys.readouterr().out
    assert run("--json", "make-delta", str(parent), str(exported), "--out", str(root / "j")) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(root / "j")
    assert (
        run("--json", "apply-delta", str(root / "j"), "--parent", str(parent), "--out", str(root / "k")) == 0
    )
    assert json.loads(capsys.readouterr().out) == {"folder": str(root / "k")}
    assert run("apply-delta", str(root / "d"), "--parent", str(parent), "--out", str(root / "r")) != 0
