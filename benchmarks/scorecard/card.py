"""The card: suites that are run or kept, the tables, and the verdict of all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.scorecard.attention import attention
from benchmarks.scorecard.entries import Entry
from benchmarks.scorecard.fidelity import behaviours, global_transfer, prediction, reconstruction
from benchmarks.scorecard.groups import groups
from benchmarks.scorecard.scale import scale
from benchmarks.scorecard.subject import Subject
from benchmarks.scorecard.utility import edits, exports, spurious
from trephine.domain.findings import Figure, Verdict
from trephine.ipc.codec import from_tree, to_tree

VERSION = 1
"""Of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Lines that are measured together."""

    title: str
    run: Callable[[Subject], Iterator[Entry]]
    whole: str
    """The command that measures all of it."""


SUITES: Mapping[str, Suite] = {
    "reconstruction": Suite(
        title="Reconstruction", run=reconstruction, whole="trephine replacements evaluate"
    ),
    "attention": Suite(title="Attention through the softmax", run=attention, whole="make bench-attention"),
    "prediction": Suite(title="Circuits beside ablations", run=prediction, whole="make bench-verify"),
    "behaviours": Suite(title="Circuits of behaviours", run=behaviours, whole="make bench-circuits"),
    "global": Suite(title="Circuits over many texts", run=global_transfer, whole="make bench-global"),
    "groups": Suite(title="Groups of circuits", run=groups, whole="make bench-groups"),
    "scale": Suite(title="Scale", run=scale, whole="make bench-discovery"),
    "edits": Suite(title="An edit beside its controls", run=edits, whole="make bench-edits"),
    "exports": Suite(title="Edits in weights", run=exports, whole="make bench-export, make bench-removal"),
    "spurious": Suite(title="Spurious features", run=spurious, whole="make bench-shift"),
}


_CODE = ("trephine.domain", "trephine.engine", "trephine.app", "benchmarks")
"""What lines come from: the engine, use cases, and the benches that suites ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a suite gave."""

    name: str
    entries: tuple[Entry, ...]
    seconds: float
    """Of processor time, processes that were started included; of kept ones that of the run that measured."""


def measured(subject: Subject, names: Sequence[str], say: Callable[[str], None]) -> Iterator[Measured]:
    """Run suites, or take what the same code gave for the same model, set, texts and sizes."""
    kept = KeptRuns(subject.out / "kept.json")
    request = {"graph": "", **subject.identity, "sizes": asdict(subject.sizes), "code": code_of(*_CODE)}
    for name in names:
        answer = kept.get(name, request)
        if answer is None:
            say(f"{name} ...")
            began = _processor_time()
            found = tuple(SUITES[name].run(subject))
            answer = {"entries": to_tree(found), "seconds": _processor_time() - began}
            kept.keep(name, request, answer)
        yield Measured(
            name=name,
            entries=from_tree(tuple[Entry, ...], answer["entries"]),
            seconds=answer["seconds"],
        )


def _processor_time() -> float:
    """Seconds of this process and of those that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def verdict_of(found: Sequence[Measured]) -> Verdict:
    """PASS if every line passes, FAIL if one fails, INCONCLUSIVE else and where nothing was measured."""
    verdicts = [entry.verdict for each in found for entry in each.entries]
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    told = bool(verdicts) and all(each is Verdict.PASS for each in verdicts)
    return Verdict.PASS if told and all(each.entries for each in found) else Verdict.INCONCLUSIVE


def lines(subject: Subject, found: Sequence[Measured]) -> Iterator[str]:
    """Write the card as Markdown."""
    yield "# Scorecard\n"
    for name, value in subject.identity.items():
        yield f"- {name}: {value}"
    yield f"- {subject.sizes}\n"
    for each in found:
        yield from _suite(each)
    counts = Counter(entry.verdict for each in found for entry in each.entries)
    told = ", ".join(f"{counts[verdict]} {verdict.value.upper()}" for verdict in Verdict if counts[verdict])
    missing = [name for name in SUITES if name not in {each.name for each in found}]
    yield f"**{verdict_of(found).value.upper()}**: {told}"
    if missing:
        yield f"Not measured: {', '.join(missing)}"
    yield f"{sum(each.seconds for each in found):.0f} s of processor time"


def _suite(found: Measured) -> Iterator[str]:
    suite = SUITES[found.name]
    yield f"## {suite.title}\n"
    yield f"{found.seconds:.0f} s; in full: `{suite.whole}`\n"
    yield "| figure | of | value | beside | bar | verdict |"
    yield "|---|---|---|---|---|---|"
    for entry in found.entries:
        beside = "; ".join(f"{each.name} {shown(each)}" for each in entry.beside)
        yield (
            f"| {entry.figure} | {entry.of} | **{shown(entry.value)}** | {beside} | {entry.bar} "
            f"| {entry.verdict.value.upper()} |"
        )
    yield ""
    for how in dict.fromkeys(f"{entry.figure} ({entry.of}): {entry.how}" for entry in found.entries):
        yield f"- {how}"
    yield ""


def shown(figure: Figure) -> str:
    """Write a figure with its interval, if it has one that is not itself."""
    if isnan(figure.value):
        return "not measured"
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return f"{figure.value:.3g}"
    return f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"


def record(subject: Subject, found: Sequence[Measured]) -> dict[str, Any]:
    """Write the card as plain values for JSON."""
    return {
        "version": VERSION,
        **subject.identity,
        "sizes": asdict(subject.sizes),
        "verdict": verdict_of(found).value,
        "suites": {
            each.name: {
                "title": SUITES[each.name].title,
                "seconds": each.seconds,
                "in_full": SUITES[each.name].whole,
                "entries": [_plain(entry) for entry in each.entries],
            }
            for each in found
        },
    }


def _plain(entry: Entry) -> dict[str, Any]:
    body = asdict(entry) | {"verdict": entry.verdict.value}
    body["value"], body["beside"] = _number(entry.value), [_number(each) for each in entry.beside]
    return body


def _number(figure: Figure) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity: what is none is null."""
    numbers = {"value": figure.value, "low": figure.low, "high": figure.high}
    finite = {key: each if each is not None and isfinite(each) else None for key, each in numbers.items()}
    return {"name": figure.name, "unit": figure.unit, **finite}


def write(subject: Subject, found: Sequence[Measured]) -> Path:
    """Write `scorecard.md` and `scorecard.json`; return the folder."""
    subject.out.mkdir(parents=True, exist_ok=True)
    (subject.out / "scorecard.md").write_text("\n".join(lines(subject, found)) + "\n", encoding="utf-8")
    body = json.dumps(record(subject, found), indent=1, allow_nan=False)
    (subject.out / "scorecard.json").write_text(body + "\n", encoding="utf-8")
    return subject.out
