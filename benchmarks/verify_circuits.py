"""What real ablations say about ten circuits: `python -m benchmarks.verify_circuits --data DIR`.

Ten prompts on SmolLM2 (facts of our own; agreement, indirect objects and greater-than from the last fifth of
each file, which nothing here was tuned on: the first rows that fit), each as a circuit over neurons and over
the transcoders, with a random dictionary beside the latter. Prints Markdown tables; `--out` keeps every
figure as JSON, and what it holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from benchmarks.discovery_cell import SET, load
from trephine.app.circuits.pruning import prune
from trephine.app.storage.records import decode, encode
from trephine.client.datasets import rows_of
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.findings import Figure
from trephine.domain.sites import NEURONS
from trephine.domain.verification import (
    Agreement,
    Examination,
    Predictor,
    Substitute,
    VerificationOptions,
    VerificationReport,
    VerifyCircuit,
)
from trephine.engine.attribution.readouts import baseline, logit_readout
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.verification.verify import verify_on

_HELD_BACK = 0.8
"""Rows before this share of a file are left to those who tune."""
_CLEAR = 0.5
"""The model must prefer the answer by this much, in logits: a circuit of a wrong answer explains nothing."""
SINGLES, GROUPS = 100, 16
"""Single-node ablations, and random groups."""
_FACTS = (
    ("The capital of France is", "The capital of Italy is", " Paris", " Rome"),
    ("The opposite of hot is", "The opposite of big is", " cold", " small"),
    ("The largest planet of the Sun is", "The smallest planet of the Sun is", " Jupiter", " Mer"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt with its counterfactual of the same length."""

    task: str
    clean: str
    corrupted: str
    answer: str
    wrong: str


def facts() -> Iterator[Item]:
    """Yield facts, each with another one as its counterfactual."""
    for clean, corrupted, answer, wrong in _FACTS:
        yield Item(task="fact", clean=clean, corrupted=corrupted, answer=answer, wrong=wrong)


def agreement(data: Path) -> Iterator[Item]:
    """Yield subject-verb agreement across a noun phrase."""
    rows = [json.loads(line) for line in (data / "agreement/nounpp.jsonl").read_text().splitlines()]
    for row in held_back(rows):
        yield Item(
            task="agreement",
            clean=row["clean_prefix"],
            corrupted=row["patch_prefix"],
            answer=row["clean_answer"],
            wrong=row["patch_answer"],
        )


def indirect_objects(data: Path) -> Iterator[Item]:
    """Yield indirect objects; the counterfactual's giver is the other name."""
    for row in held_back(list(rows_of(data / "ioi.csv"))):
        names = row["clean"].replace("Then, ", "").replace("After ", "").split(" and ")
        first, second = names[0].split()[-1].strip(","), names[1].split()[0].strip(",")
        giver = second if row["clean"].count(second) > 1 else first
        other = first if giver == second else second
        hard = row["corrupted_hard"]
        yield Item(task="ioi", clean=row["clean"], corrupted=hard, answer=f" {other}", wrong=f" {giver}")


def greater_than(data: Path) -> Iterator[Item]:
    """Yield greater-than: digits are tokens of their own, so that the tens digit decides."""
    for row in held_back(list(rows_of(data / "greater_than.csv"))):
        tens = int(row["label"]) // 10
        if 0 < tens < 9:
            more, less = str(tens + 1), str(tens - 1)
            yield Item(
                task="greater-than", clean=row["clean"], corrupted=row["corrupted"], answer=more, wrong=less
            )


def held_back(rows: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """Return the last fifth."""
    return rows[int(len(rows) * _HELD_BACK) :]


def chosen(hosted: HostedModel, data: Path) -> list[Item]:
    """Choose ten, a task after the other: the first that fit and that the model answers right."""
    tasks = ((facts(), 3), (agreement(data), 3), (indirect_objects(data), 2), (greater_than(data), 2))
    found = []
    for items, count in tasks:
        fitting = (item for item in items if fits(hosted, item))
        found.append([item for item, _ in zip(fitting, range(count), strict=False)])
    return [item for of_rank in zip_longest(*found) for item in of_rank if item is not None]


def fits(hosted: HostedModel, item: Item) -> bool:
    """Say whether both prompts are equally long, the answers one token each, and the right one preferred."""
    ids = hosted.encode(item.clean)
    answers = [hosted.encode(text) for text in (item.answer, item.wrong)]
    if len(ids) != len(hosted.encode(item.corrupted)) or any(len(each) != 1 for each in answers):
        return False
    return baseline(hosted, ids, logit_readout(hosted, answers[0][0], answers[1][0])) > _CLEAR


def verified(
    hosted: HostedModel,
    item: Item,
    replacement: str,
    nodes: int,
    options: VerificationOptions | None = None,
) -> VerificationReport:
    """Discover, prune and verify one circuit; without options, by all that there is."""
    options = options or VerificationOptions(
        counterfactual=item.corrupted, substitutes=tuple(Substitute), nodes=SINGLES, groups=GROUPS
    )
    discover = DiscoverCircuit(
        prompt=item.clean,
        target=LogitTarget(token=item.answer, against=item.wrong),
        replacement=replacement,
        max_feature_nodes=nodes,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, discover))
    kept = prune(circuit, node_threshold=0.8, edge_threshold=0.98)
    return finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=kept.nodes, options=options)))


def remembered(path: Path | None) -> VerificationReport | None:
    """Read what an earlier run kept."""
    if path is None or not path.exists():
        return None
    return decode(VerificationReport, path.read_bytes(), what=path.name)


# --- tables ----------------------------------------------------------------------------------------------

Row = tuple[Item, str, Examination]

_SUMMARY = (
    "| prompt | over | shown | paths | paths against magnitude, permuted | circuit alone: zero, mean | "
    "circuit ablated: zero, mean | worst mask |"
)
_AGREE = (
    "| prompt | over | graph / circuit features | shown: rank correlation | slope | "
    "paths: rank correlation | slope | groups, shown | groups, paths |"
)
_AGAINST = (
    "| prompt | over | shown - magnitude | shown - permuted | paths - magnitude | paths - act x grad | "
    "paths - permuted |"
)
_DEPTH = "| prompt | over | 1 layer up | 2 | 3-4 | 5-8 | 9-16 | 17 and more |"
_WHOLE = (
    "| prompt | over | logits: model | ablation | all ablated | circuit alone | p | circuit ablated | p | "
    "random alone | random ablated |"
)
_WORST = "| prompt | over | model | circuit alone | worst relaxed | worst rounded | best random | ablated |"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of all tables."""
    yield from ("**Summary: rank correlations; verdicts; logits with p against random circuits**", "")
    yield from _table(_SUMMARY, (_summary_row(row) for row in rows))
    yield ""
    yield from ("**Agreement with single ablations (rank correlation and slope, 95 %)**", "")
    yield from _table(_AGREE, (_agreement_row(row) for row in rows))
    yield from ("", "**Against the baselines (paired differences of rank correlations, 95 %)**", "")
    yield from _table(_AGAINST, (_against_row(row) for row in rows))
    yield from ("", "**Downstream change by depth: cosine / normalised squared error**", "")
    yield from _table(_DEPTH, (_depth_row(row) for row in rows))
    yield from ("", "**Necessity and sufficiency of the pruned circuit**", "")
    yield from _table(_WHOLE, (line for row in rows for line in _whole_rows(row)))
    yield from ("", "**Worst case over masks outside the circuit**", "")
    yield from _table(_WORST, (_worst_row(row) for row in rows if row[2].worst_case is not None))


def _table(head: str, rows: Iterator[list[str]]) -> Iterator[str]:
    yield head
    yield "|" + "---|" * (head.count("|") - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _name(row: Row) -> list[str]:
    item, over, _ = row
    return [f"{item.task}: {item.clean} [{item.answer.strip()} / {item.wrong.strip()}]", over]


def _summary_row(row: Row) -> list[str]:
    found = row[2]
    against = {(one.predictor, one.baseline): one.standing.value for one in found.comparisons}
    verdicts = [against[Predictor.PATHS, one] for one in (Predictor.MAGNITUDE, Predictor.PERMUTED)]
    asked = [one for one in found.faithfulness if one.substitute is not Substitute.RESAMPLE]
    worst = found.worst_case
    return [
        f"{_name(row)[0]}, {found.baseline:+.1f}",
        row[1],
        *(f"{_of(found, 'single nodes', p).spearman.value:.2f}" for p in (Predictor.SHOWN, Predictor.PATHS)),
        ", ".join(verdicts),
        "; ".join(f"{one.kept:+.1f} (p {one.p_sufficient:.2f})" for one in asked),
        "; ".join(f"{one.removed:+.1f} (p {one.p_necessary:.2f})" for one in asked),
        "" if worst is None else f"{worst.rounded:+.1f} (random {worst.random:+.1f})",
    ]


def _agreement_row(row: Row) -> list[str]:
    found = row[2]
    shown, paths = (_of(found, "single nodes", one) for one in (Predictor.SHOWN, Predictor.PATHS))
    groups = [_of(found, "random groups", one) for one in (Predictor.SHOWN, Predictor.PATHS)]
    cells = [cell for one in (shown, paths) for cell in (_figure(one.spearman), _figure(one.slope))]
    return [
        *_name(row),
        f"{found.graph_features} / {found.circuit_features}",
        *cells,
        *(_figure(one.spearman) for one in groups),
    ]


def _of(found: Examination, kind: str, predictor: Predictor) -> Agreement:
    return next(a for a in found.agreements if a.ablations == kind and a.predictor is predictor)


def _against_row(row: Row) -> list[str]:
    same = (Predictor.SHOWN, Predictor.ACTIVATION_GRADIENT)
    return [
        *_name(row),
        *(
            f"{_figure(one.difference)} {one.standing.value}"
            for one in row[2].comparisons
            if (one.predictor, one.baseline) != same
        ),
    ]


def _depth_row(row: Row) -> list[str]:
    by_depth = {one.nearest: one for one in row[2].depths}
    cells = [by_depth.get(nearest) for nearest in (1, 2, 3, 5, 9, 17)]
    return [*_name(row), *("" if c is None else f"{c.cosine.value:.2f} / {c.nmse.value:.2f}" for c in cells)]


def _whole_rows(row: Row) -> Iterator[list[str]]:
    for one in row[2].faithfulness:
        yield [
            *_name(row),
            f"{one.baseline:+.2f}",
            one.substitute.value,
            f"{one.empty:+.2f}",
            f"{one.kept:+.2f}{_share(one.faithfulness)}",
            f"{one.p_sufficient:.3f}",
            f"{one.removed:+.2f}{_share(one.necessity)}",
            f"{one.p_necessary:.3f}",
            f"{one.random_kept:+.2f}",
            f"{one.random_removed:+.2f}",
        ]


def _share(value: float | None) -> str:
    return "" if value is None else f" ({value:.0%})"


def _worst_row(row: Row) -> list[str]:
    one = row[2].worst_case
    if one is None:
        return []
    figures = (one.baseline, one.kept, one.relaxed, one.rounded, one.random)
    return [*_name(row), *(f"{value:+.2f}" for value in figures), f"{one.ablated:,} of {one.outside:,}"]


def _figure(figure: Figure | None) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def main() -> None:
    """Verify ten circuits over neurons and over transcoders and print the tables."""
    cache = Path(os.environ.get("TREPHINE_CACHE", "~/.cache/trephine")).expanduser()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default=str(cache / "models/smollm2"), help="Folder of the model.")
    parser.add_argument("--transcoders", required=True, help="Folder of the transcoders.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the prompts.")
    parser.add_argument("--nodes", type=int, default=256, help="Feature nodes of each graph.")
    parser.add_argument("--limit", type=int, default=10, help="Prompts.")
    parser.add_argument("--out", type=Path, help="Folder for every figure, as JSON.")
    given = parser.parse_args()
    hosted = load(given.model, given.transcoders)
    rows: list[Row] = []
    for number, item in enumerate(chosen(hosted, given.data)[: given.limit]):
        for replacement, over in ((NEURONS, "neurons"), (SET, "transcoders")):
            kept = None if given.out is None else given.out / f"{number:02d}-{over}.json"
            report = remembered(kept) or verified(hosted, item, replacement, given.nodes)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(encode(report))
            rows.append((item, over, report.given))
            if report.control is not None:
                rows.append((item, "random dictionary", report.control))
            sys.stderr.write(f"{item.task}: {item.clean!r} over {over}: {report.seconds:.0f} s\n")
    sys.stdout.write("\n".join(tables(rows)) + "\n")


if __name__ == "__main__":
    main()
