"""What `validate_only` predicts beside what is taken: verifications, evaluations, removals, feature indexes.

    python -m benchmarks.prediction_costs --transcoders ../shared/replacements/smollm2-135m-tc
    python -m benchmarks.prediction_costs --only verify edits

Seconds are processor time of the engine, so that other work on the machine does not count; a case takes about
a minute of a core at most. Discoveries have a table of their own (`discovery_costs`), and so do circuits of
behaviours and global ones (`dataset_circuits`, `global_circuits`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.discovery_costs import TEXT
from benchmarks.shift_biographies import GENDERS, PROFESSIONS, Biography, biographies
from trephine.client import Model, Trephine, connect, feature
from trephine.client.types import (
    AttributeText,
    ChoiceItem,
    EvaluationRole,
    EvaluationSet,
    LabelledText,
    LabelTokens,
    Probe,
)

NEURONS = "neurons"
Run = tuple[Callable[[], Any], Callable[[], Any]]
"""What predicts, and what does the work; the first one's answer has `seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    kind: str
    features: str
    """`neurons` or `set`."""
    size: str
    """In words."""
    run: Callable[[Trephine, Model, str | None], Run]
    """Of the client, the model and the set's id, or None for neurons."""


def main() -> int:
    """Print the table; 1 if a prediction is off by more than a factor of two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcoders", help="A set for SmolLM2; left out: neurons only.")
    parser.add_argument("--only", nargs="+", choices=sorted({case.kind for case in CASES}), help="Kinds.")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [case for case in CASES if arguments.only is None or case.kind in arguments.only]
    worst = 1.0
    sys.stdout.write("kind\tfeatures\tsize\tseconds\tpredicted\tratio\n")
    with tempfile.TemporaryDirectory() as state, connect(state=Path(state)) as trephine:
        for name in (NEURONS, *filter(None, [arguments.transcoders])):
            own = [case for case in chosen if case.features == ("neurons" if name == NEURONS else "set")]
            for case, spent, predicted in _rows(trephine, Path(state), name, own):
                ratio = predicted / spent
                worst = max(worst, ratio, 1 / ratio)
                row = (case.kind, name if name == NEURONS else "transcoders", case.size)
                sys.stdout.write("\t".join((*row, f"{spent:.1f}", f"{predicted:.1f}", f"{ratio:.2f}")) + "\n")
                sys.stdout.flush()
    sys.stdout.write(f"worst factor {worst:.2f}\n")
    return int(worst > 2)


def _rows(
    trephine: Trephine, state: Path, name: str, cases: list[Case]
) -> Iterator[tuple[Case, float, float]]:
    if not cases:
        return
    model = trephine.load_model("smollm2")
    chosen = None if name == NEURONS else model.load_replacements(name).set_id
    for case in cases:
        predict, work = case.run(trephine, model, chosen)
        predicted, engine = predict().seconds, _engine(state)
        before = engine.cpu_times()
        work()
        after = engine.cpu_times()
        yield case, after.user + after.system - before.user - before.system, predicted
    model.unload()


def _engine(state: Path) -> psutil.Process:
    server = psutil.Process(int(json.loads((state / "server.json").read_text())["pid"]))
    engines = [one for one in server.children(recursive=True) if "trephine.engine" in " ".join(one.cmdline())]
    return engines[-1]


# --- verifications -----------------------------------------------------------------------------------------


def _verify(words: int, size: int, **options: Any) -> Callable[[Trephine, Model, str | None], Run]:
    def run(_: Trephine, model: Model, chosen: str | None) -> Run:
        prompt = " ".join((TEXT * 3).split()[:words])
        circuit = model.discover(
            prompt, target=" the", replacement=chosen, max_feature_nodes=size, verify_nodes=0
        )
        return (lambda: circuit.predict_verify(**options)), (lambda: circuit.verify(**options))

    return run


# --- evaluations of edits ----------------------------------------------------------------------------------

_PEOPLE = ("Mary", "John", "Alice", "Robert", "Susan", "Peter", "Laura", "Henry", "Emma", "Paul")


def _items(count: int) -> tuple[ChoiceItem, ...]:
    pairs = [(one, other) for one in _PEOPLE for other in _PEOPLE if one != other]
    return tuple(
        ChoiceItem(
            prompt=f"When {one} and {other} went to the store, {other} gave a drink to",
            choices=(f" {one}", f" {other}"),
            answer=0,
        )
        for one, other in pairs[:count]
    )


def _texts(count: int, words: int) -> tuple[str, ...]:
    told = TEXT.split() * 10
    return tuple(f"Number {place}. " + " ".join(told[place : place + words]) for place in range(count))


def _edit(
    items: int, texts: int, words: int, *, add: bool = False, **options: Any
) -> Callable[[Trephine, Model, str | None], Run]:
    def run(trephine: Trephine, model: Model, chosen: str | None) -> Run:
        first, second = (feature(12, index, replacement=chosen or "") for index in (100, 200))
        changes = [first.add(4.0)] if add else [first.ablate(), second.ablate()]
        name = f"edit-{items}-{texts}-{words}-{len(options)}-{add}".lower()
        edit = trephine.edits.create(
            f"{name}-{chosen or NEURONS}", model=model.info.name, interventions=changes, reason="a price"
        )
        sets = [EvaluationSet(name="items", role=EvaluationRole.TARGET, items=_items(items))]
        if texts:
            sets.append(EvaluationSet(name="texts", role=EvaluationRole.RETAIN, texts=_texts(texts, words)))
        edits = trephine.edits
        return (
            lambda: edits.predict_evaluation(edit, sets, **options),
            lambda: edits.evaluate(edit, sets, **options),
        )

    return run


# --- evaluations of sets -----------------------------------------------------------------------------------


def _set(**options: Any) -> Callable[[Trephine, Model, str | None], Run]:
    def run(_: Trephine, model: Model, chosen: str | None) -> Run:
        loaded = next(one for one in model.replacements() if one.set_id == chosen)
        return (lambda: loaded.predict_evaluate(**options)), (lambda: loaded.evaluate(**options))

    return run


# --- removals ----------------------------------------------------------------------------------------------


def _labelled(found: Sequence[Biography]) -> list[LabelledText]:
    return [LabelledText(text=one.text, label=one.profession, attribute=one.gender) for one in found]


def _remove(training: int, test: int, **options: Any) -> Callable[[Trephine, Model, str | None], Run]:
    def run(_: Trephine, model: Model, chosen: str | None) -> Run:
        confounded = [(*pair, training // 2) for pair in zip(PROFESSIONS, GENDERS, strict=True)]
        crossed = [(label, value, test // 4) for label in PROFESSIONS for value in GENDERS]
        examples = [("other", value, 16) for value in GENDERS]
        taken: set[str] = set()
        drawn = [
            biographies(groups, seed=seed, avoid=taken)
            for seed, groups in enumerate((confounded, crossed, examples))
        ]
        asked: dict[str, Any] = {
            "test": _labelled(drawn[1]),
            "attribute_texts": [AttributeText(text=one.text, attribute=one.gender) for one in drawn[2]],
            **({} if chosen is None else {"replacement": chosen}),
            **options,
        }
        texts = _labelled(drawn[0])
        return (
            lambda: model.predict_remove_spurious(texts, **asked),
            lambda: model.remove_spurious(texts, **asked),
        )

    return run


def _index(**options: Any) -> Callable[[Trephine, Model, str | None], Run]:
    def run(_: Trephine, model: Model, chosen: str | None) -> Run:
        features = model.features(chosen or "")
        return (lambda: features.predict_index(**options)), (lambda: features.index(**options))

    return run


_BRIEF: dict[str, Any] = {
    "groups": 8, "depth_nodes": 10, "adversary_steps": 2, "substitutes": ("zero",), "control": False,
}  # fmt: skip
_FEW: dict[str, Any] = {"controls": 19, "wrong_layer_sets": 4, "tokens": 64}
_SMALL: dict[str, Any] = {
    "candidates": 256, "exact": 4, "counts": (1, 10), "fit_texts": 48, "effect_texts": 16, "random_sets": 1,
}  # fmt: skip
_TINY = {**_SMALL, "exact": 0, "counts": (5,), "fit_texts": 24, "effect_texts": 8}
_EARLY = Probe(layer=2, pooling="mean")
_WORDS = LabelTokens(tokens={"physician": " doctor", "nurse": " nurse"}, template="{text} This is a")
_PLAIN: dict[str, Any] = {"layers": [3, 12], "controls": [], "perturbations": 0}


def _cases() -> Iterator[Case]:
    """List the table; what is asked of sets alone comes last."""
    both = (
        ("verify", "6 tokens", _verify(5, 64, depth_nodes=20, adversary_steps=4)),
        ("verify", "28 tokens, 300 nodes, in brief", _verify(24, 512, **_BRIEF, nodes=300)),
        ("verify", "100 tokens, in brief", _verify(90, 64, **_BRIEF, nodes=100)),
        ("edits", "20 items, 23 controls", _edit(20, 0, 0, **_FEW)),
        ("edits", "20 items, 16 texts", _edit(20, 16, 60, **_FEW)),
        ("edits", "20 items, steered, prompts", _edit(20, 0, 0, add=True, **{**_FEW, "controls": 9})),
        ("removal", "48 texts, layer 2", _remove(48, 16, decision=_EARLY, **_SMALL)),
        ("removal", "32 texts, stock", _remove(32, 8, **_TINY)),
        ("removal", "120 texts, layer 2", _remove(120, 64, decision=_EARLY, **{**_SMALL, "fit_texts": 120})),
        ("removal", "32 texts, label tokens", _remove(32, 8, decision=_WORDS, **_TINY)),
        ("index", "built-in text", _index()),
    )
    for features in ("neurons", "set"):
        for kind, size, run in both:
            yield Case(kind=kind, features=features, size=size, run=run)
    for size, run in (
        ("2 layers, 4 x 64", _set(**_PLAIN, max_contexts=4, context_tokens=64)),
        ("30 layers, 2 x 64", _set(**{**_PLAIN, "layers": None}, max_contexts=2, context_tokens=64)),
        (
            "2 layers, 2 x 64, 8 perturbed",
            _set(**{**_PLAIN, "perturbations": 8}, max_contexts=2, context_tokens=64),
        ),
        (
            "2 layers, 2 x 64, random",
            _set(**{**_PLAIN, "controls": ["random"]}, max_contexts=2, context_tokens=64),
        ),
        ("2 layers, 8 x 128", _set(**_PLAIN, max_contexts=8, context_tokens=128)),
    ):
        yield Case(kind="sets", features="set", size=size, run=run)


CASES = tuple(_cases())


if __name__ == "__main__":
    sys.exit(main())
