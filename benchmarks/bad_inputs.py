"""Every kind of bad input and the error that it gets: `python -m benchmarks.bad_inputs`.

The same cases are an e2e test (`tests/e2e/test_bad_input.py`). Those of replacement sets are command lines
and stand apart (`benchmarks/bad_sets.py`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from trephine.client import Model, Trephine, TrephineError, Where, connect, feature
from trephine.client.server_process import default_state

PROMPT = "When Mary and John went to the store, John gave a drink to"
SHORT_TEXT = " ".join([PROMPT] * 20)
"""Enough to measure an export on where it comes to nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case works with."""

    trephine: Trephine
    model: Model
    folder: Path
    """Scratch folder, empty for every case."""
    state: Path
    """State folder of the server."""

    def ablate(self, *interventions: object, **changes: object) -> object:
        """A sound ablation with something spoilt."""
        given: dict[str, object] = {"prompt": PROMPT, "target": " Mary", "controls": 0} | changes
        return self.model.ablate(interventions=interventions or (feature(3, 7).ablate(),), **given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Case:
    """One bad input."""

    name: str
    reason: str
    """The stable reason of the error that must come."""
    run: Callable[[Bench], object]
    says: str = ""
    """Words that its message must hold."""


def _folder(bench: Bench, **config: object) -> Path:
    model = bench.folder / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | config)
    )
    return model


def _missing_shard(bench: Bench) -> object:
    model = _folder(bench)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return bench.trephine.load_model(model)


def _pickle(bench: Bench) -> object:
    model = _folder(bench)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return bench.trephine.load_model(model)


def _unsupported(bench: Bench) -> object:
    model = _folder(bench, architectures=["MixtralForCausalLM"], model_type="mixtral")
    (model / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return bench.trephine.load_model(model)


def _bound_edit(bench: Bench) -> object:
    bound = feature(3, 7).ablate(at=Where(positions=(4,)))
    edit = bench.trephine.edits.create("bound", [bound], model=bench.model.name)
    try:
        return bench.trephine.edits.plan(edit)
    finally:
        bench.trephine.edits.delete("bound")


def _existing_target(bench: Bench) -> object:
    edit = bench.trephine.edits.create("taken", [feature(3, 7).ablate()], model=bench.model.name)
    try:
        return bench.trephine.export(edit, bench.folder)
    finally:
        bench.trephine.edits.delete("taken")


@contextmanager
def _no_room(state: Path, most: int = 64 << 20) -> Iterator[None]:
    """Let no file of the server's engines grow beyond `most` bytes: their writes fail as on a full disk.

    The kernel refuses them (`ulimit -f`), in the processes that run and without a disk to fill.
    """
    server = psutil.Process(json.loads((state / "server.json").read_text())["pid"])
    engines = [each for each in server.children(recursive=True) if "trephine.engine" in each.cmdline()]
    before = [engine.rlimit(psutil.RLIMIT_FSIZE) for engine in engines]
    try:
        for engine, (_, hard) in zip(engines, before, strict=True):
            engine.rlimit(psutil.RLIMIT_FSIZE, (most, hard))
        yield
    finally:
        for engine, limits in zip(engines, before, strict=True):
            engine.rlimit(psutil.RLIMIT_FSIZE, limits)


def _full_disk(bench: Bench) -> object:
    edit = bench.trephine.edits.create("too-large", [feature(3, 7).ablate()], model=bench.model.name)
    try:
        with _no_room(bench.state):
            return bench.trephine.exports.start(edit, "too-large", text=SHORT_TEXT).result()
    finally:
        bench.trephine.edits.delete("too-large")


def _broken_reason(bench: Bench) -> object:
    ablated = [feature(3, 7).ablate()]
    return bench.trephine.edits.create("broken", ablated, model=bench.model.name, reason="half \ud83d")


def _same_request_id(bench: Bench) -> object:
    same = "3f0e2a52-0d0b-4d5e-9a6c-7a8f0f4f1c11"
    first = bench.model.start_discover(
        PROMPT, target=" Mary", request_id=same, max_feature_nodes=4, verify_nodes=0
    )
    try:
        return bench.model.start_discover("The capital of France is", target=" Paris", request_id=same)
    finally:
        first.cancel()


def _passed_deadline(bench: Bench) -> object:
    from trephine.client import requests

    wire = bench.model._wire
    what = requests.target(" Mary", None)
    request = requests.ablate(bench.model.name, PROMPT, what, (feature(3, 7).ablate(),), None, 5000, 0, ())
    return wire.call(wire.effects.Ablate, request, timeout=0.5)


CASES: tuple[Case, ...] = (
    Case("unknown model", "MODEL_NOT_FOUND", lambda b: b.trephine.load_model("no-such-model")),
    Case(
        "folder that does not exist", "MODEL_NOT_FOUND", lambda b: b.trephine.load_model(b.folder / "nothing")
    ),
    Case("unknown layer", "LAYER_OUT_OF_RANGE", lambda b: b.ablate(feature(99, 0).ablate())),
    Case("unknown feature", "FEATURE_OUT_OF_RANGE", lambda b: b.ablate(feature(0, 99_999).ablate())),
    Case(
        "unknown position",
        "POSITION_OUT_OF_RANGE",
        lambda b: b.ablate(feature(0, 1).ablate(at=Where(positions=(400,)))),
    ),
    Case(
        "nothing matched",
        "INTERVENTION_MATCHED_NOTHING",
        lambda b: b.ablate(feature(0, 1).ablate(at=Where(tokens=(5,)))),
    ),
    Case("empty prompt", "EMPTY_PROMPT", lambda b: b.ablate(prompt="")),
    Case("prompt with half an emoji", "INVALID_REQUEST", lambda b: b.ablate(prompt="a \ud83d b")),
    Case("reason with half an emoji", "INVALID_REQUEST", _broken_reason),
    Case("prompt longer than the context", "PROMPT_TOO_LONG", lambda b: b.ablate(prompt="word " * 9_000)),
    Case("NaN strength", "NON_FINITE_VALUE", lambda b: b.ablate(feature(0, 1).scale(float("nan")))),
    Case("infinite strength", "NON_FINITE_VALUE", lambda b: b.ablate(feature(0, 1).add(float("inf")))),
    Case("target of two tokens", "TARGET_NOT_ONE_TOKEN", lambda b: b.ablate(target=" Mary John")),
    Case("target id outside the vocabulary", "TOKEN_OUT_OF_RANGE", lambda b: b.ablate(target="#999999")),
    Case("folder with a missing shard", "BROKEN_CHECKPOINT", _missing_shard),
    Case("folder with a pickle", "UNSAFE_CHECKPOINT", _pickle),
    Case("unsupported architecture", "UNSUPPORTED_ARCHITECTURE", _unsupported),
    Case("edit with positions sent to export", "EDIT_NOT_EXPRESSIBLE", _bound_edit),
    Case("export target that exists", "EXPORT_TARGET_EXISTS", _existing_target),
    Case("full disk", "DISK_FULL", _full_disk, says="make room"),
    Case("the same request id with another request", "REQUEST_ID_REUSED", _same_request_id),
    Case("deadline that passes", "DEADLINE_PASSED", _passed_deadline),
    Case("unknown circuit", "RESOURCE_NOT_FOUND", lambda b: b.trephine.circuits.get("circuits/none")),
    Case("unknown edit", "RESOURCE_NOT_FOUND", lambda b: b.trephine.edits.get("none")),
    Case("unknown auditor", "AUDITOR_NOT_FOUND", lambda b: b.trephine.audit(b.model, "no-such-auditor")),
)


def outcomes(trephine: Trephine, model: Model, state: Path) -> Iterator[tuple[Case, TrephineError | None]]:
    """Run every case; a case that raises nothing, or nothing of ours, is yielded without an error."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                case.run(Bench(trephine, model, Path(folder), state))
            except TrephineError as error:
                yield case, error
            else:
                yield case, None


def main() -> None:
    """Print the table; exit 1 if a case gets another error than its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    wrong = 0
    with connect() as trephine:
        model = trephine.load_model(parser.parse_args().model)
        for case, error in outcomes(trephine, model, default_state()):
            got = "nothing was raised" if error is None else error.reason
            wrong += got != case.reason
            print(f"{'ok ' if got == case.reason else 'BAD'} {case.name}\n      {got}: {error}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
