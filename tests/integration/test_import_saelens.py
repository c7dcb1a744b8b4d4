"""A release of SAELens' own registry, imported by SAELens itself out of a hub cache: no network is needed."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from trephine.domain.errors import ReplacementNotFoundError
from trephine.server.importing import SOURCE_FILE, import_release

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("sae_lens") is None, reason="SAELens is not installed"),
]
WRITTEN = Path(__file__).parents[1] / "fixtures" / "replacements" / "saelens" / "flat_standard"
"""Saved by SAELens (`writers/saelens_writer.py`)."""
RELEASE, SAE_ID = "gpt2-small-res-jb", "blocks.8.hook_resid_pre"
REPOSITORY = "models--jbloom--GPT2-Small-SAEs-Reformatted"
COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out one dictionary of the release as the hub's client caches it, and forbid the network."""
    repository = tmp_path / "hub" / REPOSITORY
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT / SAE_ID
    snapshot.mkdir(parents=True)
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(WRITTEN / name, snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "sets"


def test_a_release_in_the_hubs_cache_is_imported(cache: Path) -> None:
    """Weights come through byte for byte; the folder says where they are from."""
    folder = import_release(RELEASE, SAE_ID, cache / "layer_8")
    weights = (folder / "sae_weights.safetensors").read_bytes()
    assert weights == (WRITTEN / "sae_weights.safetensors").read_bytes()
    source = json.loads((folder / SOURCE_FILE).read_text())
    assert (source["release"], source["sae_id"]) == (RELEASE, SAE_ID)


def test_what_only_the_registry_says_of_the_model_comes_along(cache: Path) -> None:
    """Files that do not say that the model's weights were centred do once they are imported."""
    stored = json.loads((WRITTEN / "cfg.json").read_text())
    assert not stored["model_from_pretrained_kwargs"]
    folder = import_release(RELEASE, SAE_ID, cache / "layer_8")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["metadata"]["model_from_pretrained_kwargs"] == {"center_writing_weights": True}


def test_an_id_that_the_registry_lacks_leaves_nothing(cache: Path) -> None:
    """Near ids of SAELens' own list are named."""
    with pytest.raises(ReplacementNotFoundError, match=r"Near it are blocks\.8\.hook_resid_pre"):
        import_release(RELEASE, "blocks.8.hook_resid_pr", cache / "layer_9")
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
