"""One cell of the bench in circuit-tracer: the same model, transcoders, token ids and logit targets.

Runs in the peer's environment, which knows nothing of Trephine: `python circuit_tracer_cell.py REQUEST...`.
The peer's own functions are called as its users call them; only its batches are watched. Of a long run some
are sampled, spread over the whole, and the rest is extrapolated by batch count.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import numpy as np
import psutil
import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import load_file
from transformers import AutoConfig

WARM_UP_NODES = 256
OVER_LIMIT = 3
"""Exit status of a run that needs more memory than it may take."""


def settle(device: torch.device) -> None:
    """Wait until everything that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def transcoders(folder: Path, n_layers: int, device: torch.device) -> Any:
    """Read SAELens folders into the peer's own classes; `W_enc` is transposed there."""
    layers = {}
    for layer in range(n_layers):
        stored = load_file(folder / f"layer_{layer}" / "sae_weights.safetensors")
        weights = {name: tensor.float() for name, tensor in stored.items()}
        d_in, d_sae = weights["W_enc"].shape
        one = SingleLayerTranscoder(
            d_in, d_sae, JumpReLU(weights["threshold"], 0.1), layer, device=device, dtype=torch.float32
        )
        one.load_state_dict(
            {
                "W_enc": weights["W_enc"].T.contiguous(),
                "W_dec": weights["W_dec"],
                "b_enc": weights["b_enc"],
                "b_dec": weights["b_dec"],
                "activation_function.threshold": weights["threshold"],
            }
        )
        layers[layer] = one
    return TranscoderSet(
        layers, feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out", scan="bench"
    )


def patch_transformer_lens() -> None:
    """TransformerLens refuses local folders and forgets the rotary base (10,000 in place of 100,000)."""
    import transformer_lens.loading_from_pretrained as loading

    official, convert = loading.get_official_model_name, loading.convert_hf_model_config
    loading.get_official_model_name = lambda name: name if os.path.isdir(name) else official(name)

    def converted(name: str, **options: Any) -> Any:
        config = convert(name, **options)
        if os.path.isdir(name):
            config["rotary_base"] = int(AutoConfig.from_pretrained(name).rope_theta)
        return config

    loading.convert_hf_model_config = converted


def load(request: dict[str, Any]) -> Any:
    """Open model and transcoders with one backend."""
    options: dict[str, Any] = {}
    if request["backend"] == "transformerlens":
        patch_transformer_lens()
        options["n_ctx"] = max(512, len(request["ids"]))
    n_layers = AutoConfig.from_pretrained(request["model"]).num_hidden_layers
    device = device_of(request)
    return ReplacementModel.from_pretrained_and_transcoders(
        request["model"],
        transcoders(Path(request["transcoders"]), n_layers, device),
        backend=request["backend"],
        device=device,
        dtype=torch.float32,
        **options,
    )


def device_of(request: dict[str, Any]) -> torch.device:
    """Return where everything lies: the processors, unless the request names a GPU."""
    return torch.device(request.get("device", "cpu"))


class Watch:
    """Times the peer's batches; where only some are sampled, the others answer at once with zeros."""

    def __init__(self, sampled: list[int] | None, device: torch.device) -> None:
        self.device = device
        self.sampled = None if sampled is None else set(sampled)
        self.number = 0
        self.began: list[float] = []
        self.ended: list[float] = []
        self.seconds: list[float] = []

    def around(self, context: Any) -> None:
        """Put clocks around a context's `compute_batch`."""
        compute = context.compute_batch
        last: list[Any] = []

        def watched(*args: Any, **options: Any) -> Any:
            self.began.append(time.perf_counter())
            number, self.number = self.number, self.number + 1
            if self.sampled is not None and number not in self.sampled and last:
                size = len(options.get("inject_values", args[-1] if args else last[0]))
                rows = torch.zeros(size, last[0].shape[1])
            else:
                # The graph is kept: which batch is the last one is not known when batches are skipped.
                rows = compute(*args, **(options | ({} if self.sampled is None else {"retain_graph": True})))
                settle(self.device)
                last[:] = [rows]
                self.seconds.append(time.perf_counter() - self.began[-1])
            self.ended.append(time.perf_counter())
            return rows

        context.compute_batch = watched


class PeakMemory:
    """The largest resident size of this process, beyond what it was at the start.

    A run that goes beyond the limit ends at once: the retained graph of a large batch would take the machine.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process = psutil.Process()
        # What loading freed and the process still holds would hide what a run takes.
        ctypes.CDLL(None).malloc_trim(0)
        # What the kernel calls the peak starts here: `ru_maxrss` would count loading, and who started this.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._process.memory_info().rss
        self.peak = self._before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self.peak - self._before > self._limit:
                sys.stderr.write(f"more than {self._limit} bytes\n")
                sys.stderr.flush()
                os._exit(OVER_LIMIT)

    def extra(self) -> int:
        """End the watch; return bytes."""
        self._done.set()
        self._thread.join()
        status = Path("/proc/self/status").read_text()
        largest = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return max(self.peak, largest) - self._before


class DeviceMemory:
    """The most that torch has allocated on a GPU, beyond what it had at the start."""

    def __init__(self, device: torch.device) -> None:
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._device, self._before = device, torch.cuda.memory_allocated(device)

    def extra(self) -> int:
        """Return bytes."""
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


def run(model: Any, request: dict[str, Any], watch: Watch) -> Any:
    """Attribute, with clocks around the peer's batches."""
    setup = model.setup_attribution

    def watched(ids: Any) -> Any:
        context = setup(ids)
        watch.around(context)
        return context

    model.setup_attribution = watched
    try:
        return attribute(
            torch.tensor(request["ids"]),
            model,
            attribution_targets=torch.tensor(request["logits"]),
            batch_size=request["batch"],
            max_feature_nodes=request["nodes"],
            update_interval=4,
        )
    finally:
        model.setup_attribution = setup


def warm_up(model: Any, request: dict[str, Any]) -> None:
    """Run a tiny graph once, so that what follows is not the first of anything.

    On a GPU twice more on the whole prompt, with the batch to come: kernels are loaded by shape.
    """
    attribute(torch.tensor(request["ids"][:6]), model, batch_size=8, max_feature_nodes=8, max_n_logits=1)
    for _ in range(2 if device_of(request).type == "cuda" else 0):
        attribute(
            torch.tensor(request["ids"]),
            model,
            attribution_targets=torch.tensor(request["logits"]),
            batch_size=request["batch"],
            max_feature_nodes=min(request["nodes"], max(WARM_UP_NODES, request["batch"])),
        )


def main(paths: list[str]) -> None:
    """Run the cells that JSON files describe, with the first one's model, and write what came out."""
    requests = [json.loads(Path(path).read_text()) for path in paths]
    torch.set_num_threads(requests[0]["threads"])
    torch.set_float32_matmul_precision("highest")  # no TensorFloat-32
    model = load(requests[0])
    for request in requests:
        try:
            cell(model, request)
        except torch.cuda.OutOfMemoryError as error:  # a batch that is too large for the GPU
            Path(request["answer"]).write_text(json.dumps({"failed": str(error).splitlines()[0]}))
            torch.cuda.empty_cache()


def cell(model: Any, request: dict[str, Any]) -> None:
    """Run one cell and write its answer where the request says."""
    device = device_of(request)
    warm_up(model, request)
    on_gpu = device.type == "cuda"
    memory = DeviceMemory(device) if on_gpu else PeakMemory(request["memory_bytes"])
    runs = []
    for _ in range(request.get("repeats", 1)):
        graph = None  # of the run before: it must not count twice,
        gc.collect()  # nor what its watched context still holds
        watch = Watch(request["sampled"], device)
        began, cpu = time.perf_counter(), time.process_time()
        graph = run(model, request, watch)
        settle(device)
        runs.append((time.perf_counter() - began, time.process_time() - cpu))
    seconds, cpu_seconds = sorted(runs)[len(runs) // 2]
    answer: dict[str, Any] = {
        "seconds": seconds,
        "runs": [each for each, _ in runs],
        "cpu_seconds": cpu_seconds,
        "extra_bytes": memory.extra(),
        "setup_seconds": watch.began[0] - began,
        "batches": watch.number,
        "batch_seconds": watch.seconds,
        "skipped_seconds": sum(e - s for s, e in zip(watch.began, watch.ended, strict=True))
        - sum(watch.seconds),
    }
    if request["graph"]:
        graph.to("cpu")
        scores = compute_graph_scores(graph)
        answer |= {"replacement": float(scores[0]), "completeness": float(scores[1])}
        np.savez(
            request["graph"],
            matrix=graph.adjacency_matrix.numpy(),
            selected=graph.active_features[graph.selected_features.cpu()].numpy(),
        )
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
