"""The whole main job as a newcomer runs it: by the demo, and by the README's ten lines.

The ten lines run on the demo's own server, which is kept for them with its model: they find the circuit,
choose the edit and export it for themselves, and only what the engine still knows (the model, its answers
to the retain text, the damage of an edit) is not computed twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.e2e.servers import wait_for
from tests.e2e.test_cli_process import finish, processes_of, start
from tests.e2e.test_readme import blocks
from tests.retained import retain_ids
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import neuron
from trephine.app.circuits.circuits import Circuits
from trephine.app.circuits.pruning import numbers
from trephine.app.storage.artifacts import ArtifactStore
from trephine.client import connect
from trephine.client.verification import verify_folder
from trephine.domain.circuits import NodeKind
from trephine.domain.interventions import Ablate
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import window_logits

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(2700)]


@pytest.fixture(scope="module")
def kept() -> Iterator[ExitStack]:
    """What keeps the demo's server after the demo; closing it lets the server go."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def told(smollm2: Path, kept: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out" / "demo"
    demo = start(folder / "unused", "demo", "--out", str(folder))
    wait_for(lambda: (folder / "state" / "server.json").exists() or demo.poll() is not None)
    if demo.poll() is None:
        kept.enter_context(connect(state=folder / "state"))
    code, out, err = finish(demo, seconds=2400)
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


def test_the_stored_circuit_is_whole(summary: dict[str, Any], told: tuple[Path, str], tmp_path: Path):
    """The right baseline, rows that sum, estimates measured on 128 ablations."""
    shutil.copytree(told[0] / "state" / "circuits", tmp_path / "circuits")
    store = Circuits(tmp_path / "circuits", ArtifactStore(str(tmp_path / "artifacts")))
    circuit = asyncio.run(store.get(summary["discover"]["circuit"])).circuit
    assert circuit.figures.baseline == pytest.approx(6.12, abs=0.05)
    assert circuit.figures.selected_features == 512
    assert circuit.figures.active_features > 0.99 * 30 * 1536 * len(circuit.tokens)
    entering = np.bincount(
        numbers(circuit.edges.target),
        numbers(circuit.edges.weight),
        minlength=len(circuit.nodes),
    )
    rows = circuit.rows
    target, total = numbers(rows.target), numbers(rows.total)
    np.testing.assert_allclose(
        entering[target] + numbers(rows.bias) + numbers(rows.remainder),
        total,
        rtol=1e-3,
        atol=1e-3,
    )
    strongest = max((n for n in circuit.nodes if n.kind is NodeKind.TOKEN), key=lambda n: n.effect)
    assert circuit.tokens[strongest.position].display == " Mary"
    assert circuit.quality is not None
    assert circuit.quality.nodes == 128
    assert circuit.quality.spearman_low > 0.9
    assert 0.5 < circuit.quality.slope < 2


def test_the_edit_meets_both_bounds_where_the_load_is_honest(summary: dict[str, Any]):
    """Half of the logit difference is gone at no more than 0.1 nats, on at least 1,024 tokens."""
    choice = summary["choose"]
    assert choice["retain_tokens"] >= 1024
    chosen = next(point for point in choice["curve"] if point["count"] == choice["chosen"])
    assert chosen["drop"] >= 0.5
    assert max(chosen["retain_kl"], chosen["retain_kl_after_first"]) <= 0.1


def test_controls_back_the_effect(summary: dict[str, Any]):
    """99 random sets that write as much, hardly one as strong; the chosen effect, and position-bound.

    What has too few candidates is left out on both sides, and the effect without it is told.
    """
    assert summary["verify"]["sets"] >= 99
    assert summary["verify"]["p_value"] <= 0.03
    effects = summary["verify"]["effects"]
    unmatched = summary["verify"]["unmatched"]
    assert unmatched <= 1
    assert set(effects) == {"as_given", "position_bound"} | ({"matched_only"} if unmatched else set())
    choice = summary["choose"]
    chosen = next(point for point in choice["curve"] if point["count"] == choice["chosen"])
    assert choice["baseline"] + effects["as_given"] == pytest.approx(chosen["value"], abs=1e-3)


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


def test_law_8_on_what_was_published(summary: dict[str, Any], told: tuple[Path, str], smollm2: Path):
    """The fp32 folder, in stock transformers, is the intervened runtime within the planned bound."""
    exported = summary["export"]["float32"]
    found, limit = exported["measurements"], exported["limits"]["kl_intervened_exported_mean"]
    assert found["elements_off_plan"] == found["tensors_changed_outside_plan"] == 0
    assert exported["untouched_tensors_verified"] == 272 - exported["changed_tensors"]
    assert found["kl_intervened_exported_mean"] <= limit <= 1e-6
    assert found["retain_kl_original_exported_mean"] > 10 * found["kl_intervened_exported_mean"]
    assert found["greedy_match"] == 1.0
    pairs = (map(int, name.split(":")) for name in summary["choose"]["features"])
    plan = tuple(neuron(layer, index, Ablate()) for layer, index in pairs)
    hosted = hosted_in(smollm2)
    stock = AutoModelForCausalLM.from_pretrained(told[0] / "edited").eval()
    window = retain_ids(hosted)[1]
    with torch.inference_mode():
        kl = kl_divergence(window_logits(hosted, window, plan), stock(torch.tensor([window])).logits[0])
    assert float(kl.mean()) <= 2 * limit  # one window of ten


def test_the_audit_is_honest_and_reported(summary: dict[str, Any], told: tuple[Path, str]):
    """24 items, a verdict with a reason, four reports."""
    assert summary["audit"]["items"] == 24
    assert summary["audit"]["why"]
    assert len(list((told[0] / "audit").iterdir())) == 4


def test_python_code_runs_as_printed(told: tuple[Path, str], tmp_path: Path):
    """The client's ten lines open the model, find the circuit, store the edit and bring the weights home."""
    state = told[0] / "state"
    for published in (state / "published").glob("edited-*"):
        shutil.rmtree(published)  # or the export would be taken as it is
    with connect(state=state) as trephine:
        trephine.edits.delete("no-mary")
        before = {one.name for one in trephine.circuits.list()}
    [code] = blocks("python")
    environment = os.environ | {"TREPHINE_STATE": str(state)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with connect(state=state) as trephine:
        [circuit] = {one.name for one in trephine.circuits.list()} - before
        assert trephine.edits.get("no-mary").evidence[0] == circuit
    assert (tmp_path / "out" / "edited" / "model.safetensors").is_file()
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    [verify] = [line for line in commands if line.startswith("trephine verify")]
    words = [sys.executable, "-m", "trephine.client", *shlex.split(verify)[1:]]
    verified = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_nothing_is_left_running(told: tuple[Path, str], kept: ExitStack):
    """The demo's server ends with the last who uses it."""
    kept.close()
    wait_for(lambda: not processes_of(told[0] / "state"))
