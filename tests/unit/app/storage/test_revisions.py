"""Revisions of a folder in Hugging Face's cache."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.app.house import house, model_folder
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    ModelNotFoundError,
    PathDeniedError,
)
from trephine.domain.models import LoadModel
from trephine.domain.tokens import RenderChat, Text

NAME = "models--org--small"
OLD, NEW, OTHER = "a1b2c3d" + "0" * 33, "a1b2c3d" + "1" * 33, "ffff" * 10


def ignore(_: Progress) -> None:
    """Nobody listens."""


def snapshot(cached: Path, commit: str) -> Path:
    """Add a snapshot whose files are links into the folder's blobs, as the hub's client makes it."""
    blobs = model_folder(cached / "blobs", commit)
    folder = cached / "snapshots" / commit
    folder.mkdir(parents=True)
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(Path("../../blobs", commit, blob.name))
    return folder


@pytest.fixture
def cached(tmp_path):
    """A folder of the cache in the model root: three commits, `main`, a tag and a pull request."""
    folder = tmp_path / "models" / NAME
    for commit in (OLD, NEW, OTHER):
        snapshot(folder, commit)
    for name, commit in (("main", NEW), ("v1.0", OLD), ("refs/pr/3", OTHER)):
        ref = folder / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return folder


@pytest.mark.parametrize(
    ("revision", "commit"),
    [
        (None, NEW),
        ("main", NEW),
        ("v1.0", OLD),
        ("refs/pr/3", OTHER),
        (OLD, OLD),
        (OLD[:8], OLD),
        ("fffffff", OTHER),
    ],
)
def test_a_revision_is_a_commit_its_prefix_or_a_ref(cached, tmp_path, revision, commit):
    """It becomes that snapshot's folder, and its commit is remembered; the name is the source's own."""
    source = house(tmp_path).models.resolve(NAME, revision=revision)
    assert (source.name, source.revision) == (NAME, commit)
    assert source.folder == str(cached / "snapshots" / commit)


@pytest.mark.parametrize("revision", ["v2", "", "ffffff", "a" * 40, "../refs", f"../snapshots/{OLD}", "a\0b"])
def test_an_unknown_revision_lists_those_there_are(cached, tmp_path, revision):
    """Too short a prefix and a path are no revisions either; commits with a ref are listed by it."""
    if revision == "":
        (cached / "refs" / "main").unlink()  # what an unset revision means is gone
    with pytest.raises(ModelNotFoundError, match=rf"v1\.0 \({OLD[:12]}\)") as caught:
        house(tmp_path).models.resolve(NAME, revision=revision or None)
    assert caught.value.context["field"] == "revision"
    assert f"refs/pr/3 ({OTHER[:12]})" in str(caught.value)
    assert (NEW in str(caught.value)) is (revision == "")


def test_a_prefix_of_two_commits_is_not_guessed(cached, tmp_path):
    """Both are listed instead."""
    with pytest.raises(ModelNotFoundError, match="begins several commits") as caught:
        house(tmp_path).models.resolve(NAME, revision="a1b2c3d")
    assert OLD[:12] in str(caught.value)
    assert NEW[:12] in str(caught.value)


def test_a_ref_whose_snapshot_is_not_here_names_none(cached, tmp_path):
    """The hub's client writes a ref before the files are there."""
    (cached / "refs" / "v3").write_text("e" * 40)
    with pytest.raises(ModelNotFoundError, match="'v3' is not among"):
        house(tmp_path).models.resolve(NAME, revision="v3")


def test_a_plain_folder_has_no_revisions(tmp_path):
    """It is refused, rather than loaded at whatever revision it is."""
    with pytest.raises(InvalidRequestError, match="tiny is a plain folder and has no revisions"):
        house(tmp_path).models.resolve("tiny", revision="main")


def test_links_of_a_snapshot_stay_inside_the_root(cached, tmp_path):
    """Blobs of the cache may be linked to; a file elsewhere may not, nor may a snapshot be elsewhere."""
    here = house(tmp_path)
    outside = model_folder(tmp_path / "elsewhere")
    nested = cached / "snapshots" / OLD / "onnx"
    nested.mkdir()
    (nested / "model.safetensors").symlink_to(outside / "model.safetensors")
    (cached / "snapshots" / ("d" * 40)).symlink_to(outside)
    for revision in (OLD, "d" * 40):
        with pytest.raises(PathDeniedError):
            here.models.resolve(NAME, revision=revision)
    assert here.models.resolve(NAME).revision == NEW


def test_a_folder_of_the_cache_is_listed_as_a_model(cached, tmp_path):
    """Beside plain ones; a cached data set is none."""
    snapshot(tmp_path / "models" / "datasets--org--data", OLD)
    assert [entry.name for entry in house(tmp_path).models.list()] == [NAME, "tiny"]


async def test_a_lost_engine_comes_back_at_its_revision(cached, tmp_path):
    """Though `main` has moved on meanwhile; and the name does not serve two revisions at once."""
    here = house(tmp_path, {RenderChat: Text(text="chat")})
    await here.models.load(here.models.resolve(NAME), ignore)
    (cached / "refs" / "main").write_text(OLD)
    here.launcher.latest.lose()
    await here.models.engine(NAME).run(RenderChat(messages=()))
    again = house(tmp_path, {RenderChat: Text(text="chat")})
    await again.models.engine(NAME).run(RenderChat(messages=()))
    for engine in (here.launcher.latest, again.launcher.latest):
        (loaded,) = [one for one in engine.commands if isinstance(one, LoadModel)]
        assert loaded.source.revision == NEW
        assert loaded.source.folder == str(cached / "snapshots" / NEW)
    with pytest.raises(AlreadyExistsError, match="revision"):
        await asyncio.wait_for(here.models.load(here.models.resolve(NAME), ignore), 5)
