"""A removal whose server is killed goes on with the next one, and ends as one that never was interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from tests.builders import tiny_folder
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.client import connect
from trephine.client.errors import CancelledByCallerError
from trephine.client.types import (
    AttributeText,
    FeatureOverride,
    FeatureRef,
    LabelledText,
    Probe,
    SpuriousRemoval,
)

pytestmark = pytest.mark.integration
GIVEN: dict[str, Any] = {
    "test": [LabelledText(text=one.text, label=one.label, attribute=one.attribute) for one in balanced(8)],
    "attribute_texts": [AttributeText(text=one.text, attribute=one.attribute) for one in attribute_texts()],
    "decision": Probe(layer=1, pooling="mean"),
    "overrides": [FeatureOverride(feature=FeatureRef(layer=0, index=1), remove=True, reason="so one goes")],
    "unproven": True, "author": "us", "exact": 8, "counts": (1, 2, 4, 8, 16, 32), "random_sets": 2,
    "resamples": 20,
}  # fmt: skip
TRAINING = [LabelledText(text=one.text, label=one.label, attribute=one.attribute) for one in ambiguous(24)]


def _kill(state: Path) -> None:
    """Kill the server of a state folder and its engines, as a machine that loses power does."""
    server = psutil.Process(json.loads((state / "server.json").read_text())["pid"])
    for each in (server, *server.children(recursive=True)):
        os.kill(each.pid, signal.SIGKILL)
    server.wait(30)


def _told(found: SpuriousRemoval) -> dict[str, Any]:
    """What a report says, without its name, its edit's and its time."""
    told: dict[str, Any] = json.loads(found.to_json())
    return {key: told[key] for key in sorted(set(told) - {"name", "edit", "createTime", "seconds"})}


def test_a_removal_outlives_its_server(tmp_path: Path):
    """The same request goes on as the same operation: one report, one edit, the same figures."""
    tiny_folder("llama", tmp_path / "roots" / "tiny")
    state, request = tmp_path / "state", str(uuid4())
    place: dict[str, Any] = {"state": state, "model_roots": [tmp_path / "roots"]}
    with connect(**place) as trephine:
        model = trephine.load_model("tiny")
        expected = model.remove_spurious(TRAINING, edit_id="whole", **GIVEN)
        started = model.start_remove_spurious(TRAINING, edit_id="broken", request_id=request, **GIVEN)
        for update in started.watch():
            if update.metadata.progress.stage == "choosing":
                break
        assert not started.done, "it ended before it could be killed"
        _kill(state)
    with connect(**place) as trephine:
        model = trephine.load_model("tiny")
        again = model.start_remove_spurious(TRAINING, edit_id="broken", request_id=request, **GIVEN)
        assert again.name == started.name
        found = again.result()
        assert _told(found) == _told(expected)
        assert trephine.edits.get("broken").evidence == (found.name,)
        assert {one.name for one in trephine.spurious_removals.list()} == {expected.name, found.name}
        once_more = model.start_remove_spurious(TRAINING, edit_id="broken", request_id=request, **GIVEN)
        assert once_more.result() == found
        stopped = model.start_remove_spurious(TRAINING, edit_id="stopped", **GIVEN)
        stopped.cancel()
        with pytest.raises(CancelledByCallerError):
            stopped.result()
        assert sorted(one.name for one in trephine.edits.list()) == ["edits/broken", "edits/whole"]
