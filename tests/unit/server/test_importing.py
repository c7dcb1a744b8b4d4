"""Importing a release, with a stub in SAELens' place: no network, no seconds of import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trephine.domain.errors import (
    AlreadyExistsError,
    BrokenReplacementError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
    UnsupportedOptionError,
    UnsupportedReplacementError,
)
from trephine.server.__main__ import main
from trephine.server.importing import SOURCE_FILE, import_release

STUB = """
__version__ = "6.54.12"

class SAE:
    @classmethod
    def from_pretrained(cls, release, sae_id, device):
        print("noise on standard output")
        if release == "unknown":
            raise ValueError(f"Release {release} not found")
        if release == "offline":
            raise ConnectionError("no route to host")
        if release == "pickled":
            import torch
            torch.load("weights.pt")
        if release == "dies":
            import os
            os._exit(9)
        return cls(release)

    def __init__(self, release):
        self.release = release

    def save_model(self, folder):
        (folder / "cfg.json").write_text("{}")
        if self.release == "full":
            raise OSError("no space left")
        if self.release != "half":
            (folder / "sae_weights.safetensors").write_bytes(b"weights")
"""


DIRECTORY = """
class Release:
    saes_map = {"layer_33": "a", "embedding": "b"}

def get_pretrained_saes_directory():
    return {"unknown": Release, "gemma": Release}
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stub where the importing process looks for SAELens first; return a folder to import into."""
    (tmp_path / "path" / "sae_lens").mkdir(parents=True)
    (tmp_path / "path" / "sae_lens" / "__init__.py").write_text(STUB)
    (tmp_path / "path" / "torch.py").write_text("def load(*args): return args\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    return tmp_path / "sets" / "layer_3"


def test_a_release_is_saved_whole_with_its_source(stub: Path) -> None:
    """Both files and where they came from; nothing temporary stays."""
    lines: list[str] = []
    assert import_release("good", "layer_3/width_16k", stub, lines.append) == stub
    assert (stub / "sae_weights.safetensors").read_bytes() == b"weights"
    source = json.loads((stub / SOURCE_FILE).read_text())
    assert source == {"release": "good", "sae_id": "layer_3/width_16k", "sae_lens": "6.54.12"}
    assert [path.name for path in stub.parent.iterdir() if not path.name.endswith(".lock")] == ["layer_3"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("release", "error", "match"),
    [
        ("unknown", ReplacementNotFoundError, "SAELens knows no"),
        ("offline", ReplacementNotFoundError, "could not be reached .*no route to host.*check it"),
        ("pickled", UnsafeReplacementError, "never opened"),
        ("full", BrokenReplacementError, "no space left"),
        ("half", BrokenReplacementError, r"saved no sae_weights\.safetensors"),
        ("dies", BrokenReplacementError, "exit code 9"),
    ],
)
def test_a_failure_is_typed_and_leaves_nothing(
    stub: Path, release: str, error: type[Exception], match: str
) -> None:
    """Whatever goes wrong over there, here it is an error that says what to do, and no half folder."""
    with pytest.raises(error, match=match):
        import_release(release, "layer_3", stub)
    assert [path for path in stub.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_unknown_names_are_answered_with_near_ones(stub: Path) -> None:
    """An id out of its release's list, a release out of SAELens' list, best first."""
    listed = stub.parents[1] / "path" / "sae_lens" / "loading"
    listed.mkdir()
    (listed / "__init__.py").write_text("")
    (listed / "pretrained_saes_directory.py").write_text(DIRECTORY)
    with pytest.raises(ReplacementNotFoundError, match=r"Near it are layer_33\.$"):
        import_release("unknown", "layer_3x", stub)
    (stub.parents[1] / "path" / "sae_lens" / "__init__.py").write_text(STUB.replace('"unknown"', '"unknow"'))
    with pytest.raises(ReplacementNotFoundError, match=r"Near it are unknown\.$"):
        import_release("unknow", "layer_3", stub)


def test_what_a_killed_run_left_is_swept(stub: Path) -> None:
    """A half folder under the hidden name never becomes the folder, and goes with the next run."""
    left = stub.parent / ".trephine-tmp-layer_3"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    import_release("good", "layer_3", stub)
    assert not left.exists()
    assert not (stub / "half").exists()


@pytest.mark.parametrize(
    ("release", "sae_id"),
    [("gemma-scope-2-1b-pt-clt", "layer_3"), ("gemma-scope-2", "clt/width_16k/layer_3"), ("a/CLT-x", "b")],
)
def test_cross_layer_transcoders_are_not_imported_through_saelens(
    stub: Path, release: str, sae_id: str
) -> None:
    """It adds their decoders up; refused before anything is asked."""
    with pytest.raises(UnsupportedReplacementError, match="adds its decoders up"):
        import_release(release, sae_id, stub)


def test_nothing_is_overwritten(stub: Path) -> None:
    """A folder that exists is left alone."""
    stub.mkdir(parents=True)
    with pytest.raises(AlreadyExistsError, match="nothing is overwritten"):
        import_release("good", "layer_3", stub)


def test_without_saelens_the_message_says_what_to_install(stub: Path) -> None:
    """As where only the service is installed."""
    (stub.parents[1] / "path" / "sae_lens" / "__init__.py").write_text("raise ImportError('no sae_lens')")
    with pytest.raises(UnsupportedOptionError, match=r"pip install 'trephine\[fit\]'"):
        import_release("good", "layer_3", stub)


def test_the_command_prints_the_folder(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the folder alone, progress goes to standard error; a failure has its exit code."""
    assert main(["import-release", "good", "layer_3", str(stub)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{stub}\n"
    assert "asking SAELens" in printed.err
    assert main(["import-release", "offline", "layer_3", str(stub.with_name("other"))]) == 2
    assert capsys.readouterr().err.rsplit("\n", 2)[1].startswith("REPLACEMENT_NOT_FOUND: ")
