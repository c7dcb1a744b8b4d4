"""One cell of the discovery bench in Trephine's engine: `python -m benchmarks.discovery_cell REQUEST...`.

The same request as the peer's cell: token ids, logit targets, feature nodes, transcoders. A fresh process
per cell; extra memory is the peak of the resident size over what it was after loading and a warm-up, on a GPU
the peak of what torch has allocated there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.resident import peak_bytes, reset_peak
from trephine.domain.models import LoadModel, ModelSource
from trephine.domain.replacements import LoadReplacementSet, ReplacementSource
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.attribution.assembly import order_nodes
from trephine.engine.attribution.expansion import Expansion, expand
from trephine.engine.attribution.influence import LOGIT
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.basis import FeatureBasis
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.target_kinds import logit_targets_at
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.loading import load_model
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.residency import return_freed_memory

SET = "bench"
WARM_UP_NODES = 256


class PeakMemory:
    """The largest resident size of this process from here on, beyond what it is here."""

    def __init__(self) -> None:
        return_freed_memory()  # what loading freed and the process still holds would hide what a run takes
        self._before = reset_peak()

    def extra(self) -> int:
        """Return bytes."""
        return peak_bytes() - self._before


class DeviceMemory:
    """The most that torch has allocated on a GPU, beyond what it had at the start."""

    def __init__(self, device: torch.device) -> None:
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._device, self._before = device, torch.cuda.memory_allocated(device)

    def extra(self) -> int:
        """Return bytes."""
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


def settle(device: torch.device) -> None:
    """Wait until everything that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load(model: str, transcoders: str, device: str = "cpu") -> HostedModel:
    """Open the model with the set, all layers resident."""
    session = Session()
    finish(load_model(session, LoadModel(source=ModelSource(name="bench", folder=model, device=device))))
    source = ReplacementSource(name=SET, folder=transcoders, memory_budget_bytes=1 << 40)
    finish(load_replacement_set(session, LoadReplacementSet(source=source)))
    hosted = session.require_model()
    pager = hosted.replacements[SET].pager
    with pager.pinned(hosted.replacements[SET].covered):
        return hosted


def discover(
    hosted: HostedModel, ids: Sequence[int], logits: Sequence[int], nodes: int
) -> tuple[ActiveFeatures, Expansion]:
    """Grow a graph from some logits, weighted by their probability."""
    operators = capture(hosted.model, hosted.architecture, ids)
    covered = hosted.replacements[SET].covered
    active = finish(activate(hosted, operators, layers_of(SET, covered)))
    readouts = [logit_readout(hosted, token) for token in logits]
    last = operators.n_pos - 1
    with torch.inference_mode():
        targets = tuple(logit_targets_at(hosted, operators, readouts, last))
    basis = FeatureBasis(
        hosted=hosted,
        operators=operators,
        active=active,
        explained=Explained(targets=targets, n_pos=operators.n_pos),
        meter=MemoryMeter(operators.device, held=0),
        max_nodes=nodes,
    )
    return active, finish(expand(basis, max_nodes=nodes))


def adjacency(active: ActiveFeatures, expansion: Expansion) -> tuple[np.ndarray, np.ndarray]:
    """Lay the graph out as the peer does: features, errors by layer, tokens, logits; rows are targets.

    Errors at position 0 are left out, as the peer leaves them out.
    """
    order = order_nodes(expansion)
    n_features, n_pos = len(order.features), active.n_pos
    first_token = n_features + active.n_errors
    size = first_token + n_pos + order.n_targets
    matrix = np.zeros((size, size), dtype=np.float32)
    place = torch.full((active.count,), -1, dtype=torch.int64)
    place[order.features] = torch.arange(n_features)
    for row in expansion.rows:
        number = int(place[row.cell]) if row.cell > LOGIT else first_token + n_pos + LOGIT - row.cell
        columns = place[row.sources]
        matrix[number, columns[columns >= 0].numpy()] = row.weights[columns >= 0].numpy()
        errors = row.errors.reshape(-1, n_pos).clone()
        errors[:, 0] = 0
        matrix[number, n_features:first_token] = errors.flatten().numpy()
        matrix[number, first_token : first_token + n_pos] = row.tokens.numpy()
    selected = torch.stack(active.split(order.features), dim=1).numpy()
    return matrix, selected


def warm_up(hosted: HostedModel, request: dict[str, Any]) -> None:
    """Find a tiny graph once, so that what follows is not the first of anything.

    On a GPU twice more on the whole prompt, as the peer does: kernels are loaded by shape.
    """
    discover(hosted, request["ids"][:6], request["logits"][:1], 8)
    for _ in range(2 if hosted.model.device.type == "cuda" else 0):
        discover(hosted, request["ids"], request["logits"], min(request["nodes"], WARM_UP_NODES))


def main(paths: Sequence[str]) -> None:
    """Run the cells that JSON files describe, with the first one's model, and write what came out."""
    requests: list[dict[str, Any]] = [json.loads(Path(path).read_text()) for path in paths]
    first = requests[0]
    torch.set_num_threads(first["threads"])
    torch.set_float32_matmul_precision("highest")  # no TensorFloat-32
    hosted = load(first["model"], first["transcoders"], first.get("device", "cpu"))
    for request in requests:
        run(hosted, request)


def timed(hosted: HostedModel, request: dict[str, Any]) -> tuple[float, float, ActiveFeatures, Expansion]:
    """Grow a cell's graph; return its seconds on the clock and of processors, and what it gave."""
    began, cpu = time.perf_counter(), time.process_time()
    active, expansion = discover(hosted, request["ids"], request["logits"], request["nodes"])
    settle(hosted.model.device)
    return time.perf_counter() - began, time.process_time() - cpu, active, expansion


def run(hosted: HostedModel, request: dict[str, Any]) -> None:
    """Run one cell and write its answer where the request says."""
    device = hosted.model.device
    if request.get("choose_logits"):
        operators = capture(hosted.model, hosted.architecture, request["ids"])
        request["logits"] = operators.logits.topk(request["choose_logits"]).indices.tolist()
    warm_up(hosted, request)
    before = peak_bytes()
    memory = PeakMemory() if device.type == "cpu" else DeviceMemory(device)
    runs = [timed(hosted, request)[:2] for _ in range(request.get("repeats", 1) - 1)]
    *last, active, expansion = timed(hosted, request)
    runs.append((last[0], last[1]))
    seconds, cpu_seconds = sorted(runs)[len(runs) // 2]
    answer = {
        "seconds": seconds,
        "runs": [each for each, _ in runs],
        "cpu_seconds": cpu_seconds,
        "extra_bytes": memory.extra(),
        "peak_bytes": max(before, peak_bytes()),
        "active": active.count,
        "logits": request["logits"],
        "shares": [row.share for row in expansion.rows if row.cell <= LOGIT],
    }
    if request["graph"]:
        matrix, selected = adjacency(active, expansion)
        np.savez(request["graph"], matrix=matrix, selected=selected)
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
