"""The whole main job as a newcomer runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import wait_for
from tests.e2e.test_cli_process import finish, processes_of, start
from trephine.client.verification import verify_folder

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def told(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out" / "demo"
    code, out, err = finish(start(folder / "unused", "demo", "--out", str(folder)), seconds=800)
    assert code == 0, f"{out[-3000:]}\n{err[-3000:]}"
    return folder, out


@pytest.fixture(scope="module")
def summary(told: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((told[0] / "summary.json").read_text())


def test_every_chapter_is_told(told: tuple[Path, str]):
    """Seven chapters, in order, on stdout."""
    places = [told[1].index(f"\n{number}. ") for number in range(1, 8)]
    assert places == sorted(places)


def test_the_circuit_is_backed_by_real_ablations(summary: dict[str, Any], told: tuple[Path, str]):
    """At least 100 neurons were ablated for real; page and JSON are there."""
    assert summary["discover"]["ablated_nodes"] >= 100
    assert (told[0] / "circuit.html").stat().st_size > 10_000
    graph = json.loads((told[0] / "circuit.json").read_text())
    assert graph["nodes"]
    assert graph["links"]


def test_the_edit_meets_both_bounds_where_the_load_is_honest(summary: dict[str, Any]):
    """Half of the logit difference is gone at no more than 0.1 nats, on at least 1,024 tokens."""
    choice = summary["choose"]
    assert choice["retain_tokens"] >= 1024
    chosen = next(point for point in choice["curve"] if point["count"] == choice["chosen"])
    assert chosen["drop"] >= 0.5
    assert max(chosen["retain_kl"], chosen["retain_kl_after_first"]) <= 0.1


def test_controls_back_the_effect(summary: dict[str, Any]):
    """99 matched random sets, none as strong, and the position-bound form beside."""
    assert summary["verify"]["sets"] >= 99
    assert summary["verify"]["p_value"] <= 0.05
    assert set(summary["verify"]["effects"]) == {"as_given", "position_bound"}


def test_tokens_came_while_a_discovery_ran(summary: dict[str, Any]):
    """Both rows were generated, and tokens arrived during the discovery."""
    steering = summary["steer"]
    assert 2 <= steering["tokens"] <= 80
    assert steering["tokens_while_discovering"] >= 2
    assert steering["plain"] != steering["changed"]


@pytest.mark.parametrize("name", ["edited", "edited-bf16"])
def test_exports_verify_and_a_flipped_byte_is_found(name: str, told: tuple[Path, str], tmp_path: Path):
    """Green as published; red once one byte of the weights differs."""
    folder = tmp_path / name
    shutil.copytree(told[0] / name, folder)
    assert verify_folder(folder).passed
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert any("model.safetensors" in problem for problem in outcome.problems)


def test_certificates_hold_their_gates(summary: dict[str, Any]):
    """Every gate of both exports was measured within its limit."""
    for dtype in ("float32", "bfloat16"):
        exported = summary["export"][dtype]
        assert exported["verified"]
        assert exported["untouched_tensors_verified"] > 0


def test_the_audit_is_honest_and_reported(summary: dict[str, Any], told: tuple[Path, str]):
    """24 items, a verdict with a reason, four reports."""
    assert summary["audit"]["items"] == 24
    assert summary["audit"]["why"]
    assert len(list((told[0] / "audit").iterdir())) == 4


def test_nothing_is_left_running(told: tuple[Path, str]):
    """The demo's server ended with it."""
    wait_for(lambda: not processes_of(told[0] / "state"))
