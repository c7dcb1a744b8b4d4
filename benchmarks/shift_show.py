"""One removal as a user sees it, twice: `python -m benchmarks.shift_show`.

Biographies are written as JSONL, `trephine serve` is started, and `trephine remove-spurious` is run on them;
then once more with an override file that a reader of the first page might write. Commands are printed as they
are run; what they print, the pages and the reports stay in `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.shift_tasks import Item, Sizes, tasks
from trephine.client.types import FeatureRef

SIZES = Sizes(training=150, examples=100, validation=8, test=100)
"""A few hundred texts, as somebody who tries it would have."""
SEED = 10
OPTIONS = ("--no-erase", "--no-refit", "--effect-texts", "64", "--random-sets", "1")
"""The head stays as it is, so that features alone do the work."""
KEPT = 3
"""Features that the reader wants back: the strongest that were removed. One undecided feature has to go."""
SHIPPED = "removed"
REPORTED = (0, 3, 4)
"""Exit statuses of a run that ended in a report: it held, it did not, it cannot be told."""
Report = dict[str, Any]


def say(line: str = "") -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Write texts, serve, remove, override, remove again, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="Name or folder.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("out/shift-show"))
    parser.add_argument("options", nargs="*", help="Options of remove-spurious, behind --, for ours.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    options = given.options or OPTIONS
    write_texts(given.data, given.out)
    with served(given.out / "state") as trephine:
        first = run(trephine, given.out, given.model, "first", options)
        write_overrides(first, given.out / "overrides.json")
        words = [*options, "--overrides", str(given.out / "overrides.json")]
        second = run(trephine, given.out, given.model, "second", words)
    compare(first, second)


def write_texts(data: Path, out: Path) -> None:
    """Write the ambiguous set, examples of gender, and balanced texts to test on."""
    task = tasks(data)["biographies"]
    draw = task.draw(SEED, SIZES)
    for name, items in (("ambiguous", draw.training), ("others", draw.examples), ("balanced", draw.test)):
        rows = [_row(one, task.labels, task.attributes) for one in items]
        if name == "ambiguous":
            rows = [{key: row[key] for key in ("text", "profession")} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _row(item: Item, labels: tuple[str, str], attributes: tuple[str, str]) -> dict[str, str]:
    found = {"text": item.text, "gender": attributes[item.attribute]}
    return found if item.label < 0 else found | {"profession": labels[item.label]}


@contextmanager
def served(state: Path) -> Iterator[list[str]]:
    """Run `trephine serve` on a state folder; yield the words that every command begins with."""
    trephine = [str(Path(sys.executable).with_name("trephine")), "--state", str(state)]
    say(f"$ trephine --state {state} serve &")
    with (state.parent / "serve.log").open("wb") as log:
        server = subprocess.Popen([*trephine, "serve"], stdout=log, stderr=log, env=os.environ)
    try:
        yield trephine
    finally:
        server.terminate()
        server.wait()


def run(trephine: Sequence[str], out: Path, model: str, name: str, options: Sequence[str]) -> Report:
    """Run one removal and return its report."""
    words = [
        "remove-spurious", str(out / "ambiguous.jsonl"), "--label-column", "profession",
        "--attribute-texts", str(out / "others.jsonl"), "--attribute-column", "gender",
        "--test", str(out / "balanced.jsonl"), "--layer", "1", "--pooling", "mean", "--model", model,
        "--page", str(out / f"{name}.html"), "--out", str(out / f"{name}.json"), *options,
    ]  # fmt: skip
    say("\n$ " + shlex.join(["trephine", "--state", str(out / "state"), *words]))
    ended = subprocess.run([*trephine, *words], stdout=subprocess.PIPE, text=True, check=False)
    say(ended.stdout)
    if ended.returncode not in REPORTED:
        raise SystemExit(ended.returncode)
    report: Report = json.loads((out / f"{name}.json").read_text())
    return report


def write_overrides(report: Report, path: Path) -> None:
    """Write a reader's words: the strongest that went are about the work, one that stayed is about gender."""
    features = report["features"]
    back = [one for one in features if one.get("removed")][:KEPT]
    undecided = [one for one in features if standing(one) == "undecided"]
    gone = max(undecided, key=lambda one: abs(one.get("effect", 0.0)))
    words = {address(one): {"remove": False, "reason": "this is about the work"} for one in back}
    words[address(gone)] = {"remove": True, "reason": "this is about gender"}
    path.write_text(json.dumps(words, indent=1))
    say(f"$ cat {path}\n{path.read_text()}")


def address(feature: Report) -> str:
    """Write a feature as an override file does."""
    found = feature["feature"]
    layer, index = (int(found.get(name, 0)) for name in ("layer", "index"))
    return str(FeatureRef(replacement=found.get("replacement", ""), layer=layer, index=index))


def standing(feature: Report) -> str:
    """Return the decision in a word."""
    return str(feature["standing"]).rpartition("_")[2].lower()


def compare(first: Report, second: Report) -> None:
    """Print what the override changed: of the features that it names, of the number, of the figures."""
    before = {address(one): one for one in first["features"]}
    for one in second["features"]:
        if one.get("override"):
            told = [
                f"{standing(f)}{', removed' if f.get('removed') else ''}" for f in (before[address(one)], one)
            ]
            say(f"{address(one)}: {told[0]} -> {told[1]} ({one['override']})")
    say(f"features removed: {first['chosen']} -> {second['chosen']}")
    figures = [_figures(one) for one in (first, second)]
    for name, value in figures[0].items():
        say(f"{name}: {value:.3f} -> {figures[1][name]:.3f}")


def _figures(report: Report) -> dict[str, float]:
    arm = next(one for one in report["arms"] if one["arm"].rpartition("_")[2].lower() == SHIPPED)
    return {one["name"]: float(one.get("value", 0.0)) for one in arm["figures"]}


if __name__ == "__main__":
    main()
