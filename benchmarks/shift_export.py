"""A removal shipped and reloaded: `python -m benchmarks.shift_export [--tasks ...]`.

The tasks of `benchmarks.shift` with the head where stock classifiers read: the final norm's output at the
last token. Per task and seed a server removes what is spurious, exports the edit, puts the head on the export
and sends the folder; stock transformers reload it in a clean process that imports nothing of Trephine, and
decide on the same test texts as the runtime with its hooks. Ends with status 3 if a folder decides otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.shift import DECIDERS, ORACLES, TASKS, say, texts_digest
from benchmarks.shift_arms import PLAIN_ARMS, Bench
from benchmarks.shift_figures import Gate, Table, data_gates, decided, gate_line, table_lines, targets
from benchmarks.shift_tasks import Draw, Item, Sizes, Task, tasks
from trephine.client import connect
from trephine.client.model import Model
from trephine.client.trephine import Trephine
from trephine.client.types import AttributeText, LabelledText, Probe, SpuriousRemoval
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_heads import Pooling
from trephine.engine.certificates.clean_process import run_clean
from trephine.engine.models.quanta import finish
from trephine.server.places import default_cache

CELL = Path(__file__).with_name("shift_export_cell.py")
SHIPPED_TASKS = ("agreement-twins",)
"""The one of short texts; the others cost several times as much: name them in `--tasks`."""
WAYS: dict[str, dict[str, Any]] = {
    "erased": {"counts": (1, 20)},
    "features alone": {"counts": (20, 100), "refit": False, "erase": False},
}
"""What is asked for: first the product as it is, then with the original head kept, so that the edit of the
weights does all of the work."""
REFERENCES = ("original", "token deletion", "LEACE", *ORACLES)
SIZES = Sizes(training=150)
"""Half of the bench's ambiguous texts: a server tries every number of features on them."""
SAME = 0.999
"""Least share of decisions that must be the runtime's."""
_MAKERS = (*DECIDERS, "benchmarks.shift_export", "benchmarks.shift_export_cell", "trephine.engine.weights")


def main() -> int:
    """Run what is not kept yet, print the tables; 3 if a folder decides otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=SHIPPED_TASKS)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--seeds", type=int, default=5, help="How many.")
    parser.add_argument(
        "--first-seed", type=int, help="Unset: the first of those that a task is reported over."
    )
    parser.add_argument("--training", type=int, default=SIZES.training, help="Ambiguous texts per label.")
    parser.add_argument("--test", type=int, default=SIZES.test, help="Texts per group and seed.")
    parser.add_argument(
        "--out", type=Path, default=Path("out/shift-export"), help="Folder that keeps decisions."
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    known, runs, held = tasks(given.data), Runs(given), True
    for name in given.tasks:
        task = at_the_stock_site(known[name])
        first = task.first_seed if given.first_seed is None else given.first_seed
        held &= report(task, given, [runs.run(task, seed) for seed in range(first, first + given.seeds)])
    return 0 if held else 3


def at_the_stock_site(task: Task) -> Task:
    """Move a task's head to where stock classifiers read."""
    return replace(task, layer=None, pooling=Pooling.LAST)


# --- one seed ------------------------------------------------------------------------------------


class Runs:
    """Decisions and figures of seeds, out of the file where they are there."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._sizes = Sizes(training=given.training, test=given.test)
        self._code = code_of(*_MAKERS)
        self._hosted: Any = None

    def run(self, task: Task, seed: int) -> dict[str, Any]:
        """Return labels, attributes, decisions by arm and what was shipped, running what is missing."""
        draw, given = task.draw(seed, self._sizes), self._given
        kept = KeptRuns(given.out / f"{task.name}.json")
        request: dict[str, Any] = {
            "seed": seed, "sizes": asdict(self._sizes), "model": given.model.name, "code": self._code,
            "texts": texts_digest(draw, task.listed, task.neutral),
        }  # fmt: skip
        found: dict[str, Any] = {"arms": {}, "shipped": {}}
        bench: Bench | None = None
        for name in (*REFERENCES, *given.ways):
            answer = kept.get(name, request)
            if answer is None:
                started = monotonic()
                bench = bench or Bench(hosted=self._model(), task=task, draw=draw, seed=seed)
                answer = self._answer(name, bench)
                kept.keep(name, request, answer)
                say(f"{task.name}, seed {seed}, {name}: {monotonic() - started:.0f} s")
            found["arms"] |= answer["arms"]
            if name in WAYS:
                found["shipped"][name] = answer["shipped"]
        return found | {"draw": draw, "seed": seed}

    def _answer(self, name: str, bench: Bench) -> dict[str, Any]:
        if name not in WAYS:
            return {"arms": {name: decided(PLAIN_ARMS[name](bench))}}
        with tempfile.TemporaryDirectory(prefix="trephine-bench-shift-") as scratch:
            shipped = ship(bench, self._given.model, WAYS[name], Path(scratch))
            return compared(bench, name, shipped, Path(scratch))

    def _model(self) -> Any:
        if self._hosted is None:
            self._hosted = load_model(self._given.model)
        return self._hosted


def ship(bench: Bench, model: Path, way: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Remove, export, put the head on top and fetch it into `folder / "classifier"`, through a server."""
    with connect(state=folder / "state", model_roots=[model.parent]) as trephine:
        removal = remove(trephine.load_model(model), bench, way)
        figures = {str(arm.arm): {one.name: one.value for one in arm.figures} for arm in removal.arms}
        exported = _exported(trephine, removal)
        texts = [one.text for one in bench.draw.test]
        made = trephine.spurious_removals.start_export_classifier(
            removal, "classifier", texts, export=None if exported is None else "exported"
        ).result()
        trephine.spurious_removals.download_classifier(made, folder / "classifier")
        return {
            "removal": removal,
            "outcome": f"{removal.outcome.verdict.value}: {removal.outcome.why}",
            "seconds": removal.seconds,
            "chosen": removal.chosen,
            "spurious": sum(one.standing.value == "spurious" for one in removal.features),
            "ships": figures[str(removal.ships)],
            "original": figures["original"],
            "certificate": exported,
            "architecture": made.architecture,
        }


def remove(model: Model, bench: Bench, way: dict[str, Any]) -> SpuriousRemoval:
    """Ask for a removal as `benchmarks.shift_arms` does, with the test split for the report."""
    draw, twins = bench.draw, bench.draw.training[0].twin is not None
    return model.remove_spurious(
        [_labelled(bench.task, one, told=False) for one in draw.training],
        test=[_labelled(bench.task, one, told=True) for one in draw.test],
        attribute_texts=[
            AttributeText(text=one.text, attribute=_named(bench.task.attributes, one.attribute))
            for one in (() if twins else draw.examples)
        ],
        neutral_examples=bench.task.neutral and way.get("erase", True),
        decision=Probe(pairs=bench.task.pairs),
        replacement=NEURONS,
        exact=0,
        effect_texts=128,
        fit_texts=len(draw.training),
        random_sets=0,
        edit_id="cleaned",
        unproven=True,
        author="benchmarks.shift_export",
        seed=bench.seed,
        **way,
    )


def _labelled(task: Task, one: Item, *, told: bool) -> LabelledText:
    attribute = _named(task.attributes, one.attribute) if told else None
    return LabelledText(
        text=one.text,
        label=_named(task.labels, one.label),
        attribute=attribute,
        twin=one.twin,
        pair=one.pair,
    )


def _named(names: tuple[str, str], number: int) -> str:
    """Name a value so that names sort as numbers do."""
    return f"{number} {names[number]}"


def _exported(trephine: Trephine, removal: SpuriousRemoval) -> dict[str, Any] | None:
    """Export the removal's edit; None where nothing was removed, and no weight changes."""
    if not removal.chosen:
        return None
    made = trephine.exports.start(removal.edit, "exported").result()
    certificate = made.certificate
    return {
        "verdict": str(certificate.verdict),
        "changed": len(certificate.changed_tensors),
        "untouched": certificate.untouched_tensors_verified,
    }


# --- what the folder decides ---------------------------------------------------------------------


def compared(bench: Bench, name: str, shipped: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Decide on the test texts with hooks, and with the reloaded folder; say how far they are apart."""
    removal: SpuriousRemoval = shipped.pop("removal")
    texts = [one.text for one in bench.draw.test]
    score = load_file(folder / "classifier" / "score.safetensors")["score.weight"].float()
    hooked = bench.pool(bench.ids(bench.draw.test), features_of(removal)) @ score.T
    whole = bench.plain("test") @ score.T
    exported, labels = reloaded(folder / "classifier", texts, folder)
    expected = [_named(bench.task.labels, number) for number in (0, 1)]
    if labels != expected:
        raise SystemExit(f"the folder's labels are {labels}, and should be {expected}")
    arms = {"with hooks": hooked, "exported": exported, "its head, nothing removed": whole}
    return {
        "arms": {f"{name}, {arm}": found.argmax(1).tolist() for arm, found in arms.items()},
        "shipped": shipped | differences(hooked, exported, whole),
    }


def features_of(removal: SpuriousRemoval) -> list[FeatureRef]:
    """Return what was removed, as the engine names it."""
    gone = [one.feature for one in removal.features if one.removed]
    if len(gone) != removal.chosen:
        raise SystemExit(f"the report removed {removal.chosen} features and lists {len(gone)}")
    return [FeatureRef(layer=one.layer, index=one.index) for one in gone]


def reloaded(classifier: Path, texts: Sequence[str], work: Path) -> tuple[Tensor, list[str]]:
    """Return logits `(n, 2)` and names of a folder, of stock transformers in a clean process."""
    request = work / "request.json"
    body = {"folder": str(classifier), "texts": list(texts), "threads": torch.get_num_threads()}
    request.write_text(json.dumps(body), encoding="utf-8")
    found = finish(
        run_clean(
            ["-I", str(CELL), str(request)], work, "a reload", "stock transformers could not run the folder"
        )
    )
    if found["imported"]:
        raise SystemExit(f"the process that reloads must not import {', '.join(found['imported'])}")
    return torch.tensor(found["logits"]), found["labels"]


def differences(hooked: Tensor, exported: Tensor, whole: Tensor) -> dict[str, float]:
    """Hold a folder's logits `(n, 2)` against the runtime's, and these against those of the whole model."""
    return {
        "texts": len(hooked),
        "agreeing": int((hooked.argmax(1) == exported.argmax(1)).sum()),
        "apart": float((hooked - exported).abs().max()),
        "largest": float(hooked.abs().max()),
        "edit": float((hooked - whole).abs().max()),
    }


# --- tables --------------------------------------------------------------------------------------


def report(task: Task, given: argparse.Namespace, found: Sequence[dict[str, Any]]) -> bool:
    """Print a task's tables; return whether every folder decides as was measured."""
    draws: list[Draw] = [one["draw"] for one in found]
    table = Table(
        {arm: [one["arms"][arm] for one in found] for arm in found[0]["arms"]},
        [[item.label for item in draw.test] for draw in draws],
        [[item.attribute for item in draw.test] for draw in draws],
    )
    texts, seeds = table.texts
    say(
        f"\n## {task.name}, final norm, last token; {texts} test texts per group over {seeds} seeds; "
        "per cent [95 %]"
    )
    for each in table_lines(table):
        say(each)
    _print_seeds(found, given.ways)
    gates = [("counts as a data set", gate) for gate in data_gates(table)]
    same = [gate for way in given.ways for gate in same_decisions(table, way, found)]
    gates += [("exported", gate) for gate in same]
    if "erased" in given.ways:
        gates += [
            (f"targets, by {oracle}", gate)
            for oracle in ORACLES
            for gate in targets(table, "erased, exported", oracle)
        ]
    for title, gate in gates:
        say(gate_line(title, gate))
    return all(gate.holds for gate in same)


def _print_seeds(found: Sequence[dict[str, Any]], ways: Sequence[str]) -> None:
    say(
        "\n| way, seed | removed of spurious | outcome | certificate, tensors changed | as with hooks "
        "| logits apart (largest) | edit moves logits by | as the original "
        "| report: worst group, label accuracy, agreement |"
    )
    say("|---" * 9 + "|")
    for way in ways:
        for one in found:
            told = one["shipped"][way]
            exported, original = one["arms"][f"{way}, exported"], one["arms"]["original"]
            unchanged = sum(a == b for a, b in zip(exported, original, strict=True)) / len(exported)
            certificate = told["certificate"] or {"verdict": "none", "changed": 0}
            figures = [
                told["ships"][name] for name in ("worst_group", "label_accuracy", "attribute_agreement")
            ]
            say(
                f"| {way}, {one['seed']} | {told['chosen']} of {told['spurious']} "
                f"| {told['outcome'].partition(':')[0]} | {certificate['verdict']}, {certificate['changed']} "
                f"| {told['agreeing']} of {told['texts']} | {told['apart']:.1e} ({told['largest']:.1f}) "
                f"| {told['edit']:.1e} | {100 * unchanged:.1f} % | "
                + ", ".join(f"{100 * value:.1f}" for value in figures)
                + " |"
            )


def same_decisions(table: Table, way: str, found: Sequence[dict[str, Any]]) -> list[Gate]:
    """Say whether a way's folders decide as the runtime does, and whether that could have been missed."""
    told = [one["shipped"][way] for one in found]
    agreeing, texts = (sum(one[name] for one in told) for name in ("agreeing", "texts"))
    gap = table.difference(f"{way}, exported", f"{way}, with hooks", "worst group")
    return [
        Gate(
            name=f"{way}: the worst group is the runtime's",
            measured=f"{gap} points",
            holds=abs(gap.value) <= 1 - SAME,
        ),
        Gate(
            name=f"{way}: at least {100 * SAME:.1f} % of decisions are the runtime's",
            measured=f"{agreeing} of {texts}, logits at most {max(one['apart'] for one in told):.1e} apart",
            holds=agreeing >= SAME * texts,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
