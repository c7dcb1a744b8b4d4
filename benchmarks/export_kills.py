"""Kill -9 while a graft is exported: `python -m benchmarks.export_kills`.

A server of its own exports the ablation of a transcoder feature. At moments drawn by seed over the seconds
that an undisturbed export took, its engine or the whole server is killed; after each kill no folder may be
visible in the export root but those that were published. The operation goes on by itself where the engine
died, and on the next server where the server did, and is killed again. At last it is left alone: it must
publish a folder that verifies and has the weights of an undisturbed export, and nothing else may be left.

Exit code 0 if all of that holds, 3 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from trephine.client import Operation, Trephine, connect, feature
from trephine.client.types import Edit, Export
from trephine.client.verification import verify_folder

_POLL_SECONDS = 0.1


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def processes(state: Path) -> tuple[psutil.Process, list[psutil.Process]]:
    """Return the server of a state folder and its engines."""
    server = psutil.Process(json.loads((state / "server.json").read_text(encoding="utf-8"))["pid"])
    engines = [each for each in server.children(recursive=True) if "trephine.engine" in each.cmdline()]
    return server, engines


def visible(exports: Path) -> list[str]:
    """Name what a user sees in the export root."""
    return sorted(path.name for path in exports.iterdir() if not path.name.startswith("."))


def hidden(state: Path) -> list[str]:
    """Name half-built folders anywhere below."""
    return sorted(str(path.relative_to(state)) for path in state.rglob(".trephine-tmp-*") if path.is_dir())


def started(trephine: Trephine, given: argparse.Namespace, name: str) -> Operation[Export]:
    """Open model and set, store the edit once, start its export."""
    model = trephine.load_model(given.model)
    model.load_replacements(given.set)
    layer, index = map(int, given.feature.split(":"))
    name_of_set = model.replacements()[0].name.rpartition("/")[2]
    target = feature(layer, index, replacement=name_of_set)
    known = {edit.name: edit for edit in trephine.edits.list()}
    edit: Edit = known.get("edits/cut") or trephine.edits.create("cut", [target.ablate()], model=model.name)
    return trephine.exports.start(edit, name)


def killed(operation: Operation[Export], state: Path, victim: str, seconds: float) -> bool:
    """Wait so long while the operation works, then kill; False if it ended before."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if operation.refresh().is_final:
            return False
        time.sleep(_POLL_SECONDS)
    server, engines = processes(state)
    for each in [server] if victim == "server" else engines:
        os.kill(each.pid, signal.SIGKILL)
        each.wait()
    return True


def run(given: argparse.Namespace, state: Path) -> list[tuple[str, bool]]:
    """Export undisturbed, then under kills; return what must hold and whether it does."""
    draw = random.Random(given.seed)
    exports = state / "published"
    with connect(state=state) as trephine:
        operation = started(trephine, given, "first")
        began = time.monotonic()
        first = operation.result(timeout_seconds=given.patience)
        usual = time.monotonic() - began
        say(f"undisturbed: {usual:.0f} s")
    kills, clean = 0, True
    with connect(state=state) as trephine:
        name = started(trephine, given, "second").name
    while kills < given.kills:
        victim = "server" if kills % 3 == 2 else "engine"  # a server gives up after three engines
        with connect(state=state) as trephine:
            operation = trephine.operations.get(name)
            if not killed(operation, state, victim, draw.uniform(0, usual)):
                say("it ended before it could be killed")
                break
        kills += 1
        seen = visible(exports)
        clean = clean and seen == ["first"]
        say(f"kill {kills}: {victim}; visible: {', '.join(seen)}; hidden: {len(hidden(state))}")
    with connect(state=state) as trephine:
        operation = trephine.operations.get(name)
        second = operation.result(timeout_seconds=given.patience)
        attempts = operation.refresh().attempts
        whole = verify_folder(exports / "second").passed
    weights = [{f.sha256 for f in made.files if f.path.endswith(".safetensors")} for made in (first, second)]
    return [
        (f"{given.kills} kills, {kills} met the export", kills == given.kills),
        ("no folder was ever visible but what had been published", clean),
        (f"the operation ended after {attempts} attempts, and its folder verifies", whole),
        ("its weights are those of the undisturbed export", weights[0] == weights[1]),
        (f"nothing half-built is left: {hidden(state)}", not hidden(state)),
    ]


def main() -> int:
    """Print what happened."""
    parser = argparse.ArgumentParser(description="Kill -9 while a graft is exported.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--set", required=True, help="a set in a replacement root, or a folder")
    parser.add_argument("--feature", default="0:1968", help="of the set, LAYER:INDEX")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=3000.0, help="seconds that an operation may take")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trephine-bench-kills-") as folder:
        outcome = run(given, Path(folder) / "state")
    for what, held in outcome:
        say(f"{'PASS' if held else 'FAIL'} {what}")
    return 0 if all(held for _, held in outcome) else 3


if __name__ == "__main__":
    sys.exit(main())
