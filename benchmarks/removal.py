"""Removed or suppressed: `python -m benchmarks.removal`.

The ten transcoder features of SmolLM2 of the export benchmark, each ablated by a graft, exported and attacked
as `trephine export --attack` does, over windows of the whole text in which it fires. What is done is kept, as
long as the sources of exports, attacks and their thresholds stay what they were: an interrupted run goes on
after it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.export import say
from benchmarks.export_draw import add_features, drawn
from benchmarks.export_features import Texts, firing, intervention, split
from benchmarks.export_folders import write
from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.interventions import Ablate
from trephine.domain.removal import AttackFigure, Interval, Removal, judge_removal
from trephine.domain.sites import FeatureRef
from trephine.engine.attack.request import BUDGETS
from trephine.engine.attack.running import WINDOW, attacked
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.retain import RetainText
from trephine.engine.weights.operations import FeatureOp
from trephine.server.places import default_cache

_FIT_WINDOWS = 8
_ATTACKED_WINDOWS = 16
_RARE = 32
"""Firing tokens in the chosen windows, half of which teach; with fewer, more of the text is searched."""
JUDGES = ("trephine.engine.weights", "trephine.engine.attack", "trephine.domain.removal")
"""What decides a word: compiler, attacks, and the thresholds. A change of any has all of it done anew."""
_REMOVAL = TypeAdapter(Removal)
Windows = list[tuple[int, ...]]


def dense_windows(
    hosted: HostedModel, text: str, features: Sequence[FeatureRef], tokens: int
) -> tuple[dict[FeatureRef, Windows], list[FeatureRef]]:
    """Find for every feature the windows of a text in which it fires most; one pass for all of them.

    Returns:
        The windows, and the features that fire on less than `_RARE` tokens there.
    """
    ids = list(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[:tokens]
    windows = [tuple(ids[start : start + WINDOW]) for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    counts = {ref: mask[:, 1:].sum(1) for ref, mask in firing(hosted, windows, features).items()}
    densest = {
        ref: count.argsort(descending=True, stable=True)[:_ATTACKED_WINDOWS] for ref, count in counts.items()
    }
    rare = [ref for ref, chosen in densest.items() if int(counts[ref][chosen].sum()) < _RARE]
    return {ref: [windows[n] for n in chosen] for ref, chosen in densest.items()}, rare


def attack_one(
    hosted: HostedModel,
    fit: Texts,
    windows: Sequence[tuple[int, ...]],
    feature: FeatureRef,
    *,
    attacks: str,
) -> Removal:
    """Export the ablation of one feature and attack the folder."""
    text = RetainText(name="chosen", sha256="", windows=tuple(windows))
    with tempfile.TemporaryDirectory(prefix="trephine-bench-removal-") as scratch:
        folder, work = Path(scratch) / "exported", Path(scratch) / "work"
        work.mkdir()
        write(hosted, [feature], "graft", fit, folder)
        change, ops = (intervention(feature, Ablate()),), (FeatureOp(feature=feature),)
        texts = ExportTexts(calibration=text, measured=text)
        budgets, decided = (BUDGETS[:1] if attacks == "weakest" else BUDGETS), attacks == "decided"
        attack = attacked(hosted, texts, change, ops, folder, work, budgets=budgets, until_decided=decided)
        return finish(attack)


def found_before(kept: KeptRuns, request: dict[str, Any]) -> dict[str, Any] | None:
    """Look an attack up; the weakest ones are also part of all of them."""
    found = kept.get("attack", request)
    if found is None and request["attacks"] == "weakest":
        whole = kept.get("attack", request | {"attacks": "all"})
        if whole is not None:
            part = _weakest(_REMOVAL.validate_python(whole["removal"]))
            found = whole | {"removal": _REMOVAL.dump_python(part, mode="json")}
    return found


def _weakest(found: Removal) -> Removal:
    """Leave the stronger perturbations out, and judge again: attacks do not depend on one another."""
    return judge_removal(
        tuple(f for f in found.figures if f.kind != "recovery" or f.strength <= BUDGETS[0]),
        n_tokens=found.n_tokens,
        n_contexts=found.n_contexts,
        effect=found.effect,
        unrelated_behaviours=found.unrelated_behaviours,
        seed=found.seed,
        taught=found.taught,
        diverged=found.diverged,
    )


HEADER = "| feature | word | tokens | effect, nats | attack | behaviour back | unrelated ones | excess | s |"


def lines(name: str, found: Removal, seconds: float) -> Iterator[str]:
    """Write an edit's rows: one per attack, the edit's own figures in the first."""
    first = f"{name} | **{found.verdict}** | {found.n_tokens} | {found.effect:.2e}"
    spent = f"{seconds:.0f}"
    for figure in found.figures:
        shares = (figure.returned, figure.unrelated, figure.excess)
        yield f"| {first} | {_named(figure)} | " + " | ".join(map(_share, shares)) + f" | {spent} |"
        first, spent = " | | |", ""
    if not found.figures:
        yield f"| {first} | {found.why} | | | | {spent} |"


def _named(figure: AttackFigure) -> str:
    if figure.kind == "recovery":
        return f"recovery, {figure.strength:.0%}"
    return f"{figure.kind.replace('_', '-')}, {figure.strength:.0f} steps"


def _share(share: Interval) -> str:
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def summary(found: dict[str, Removal]) -> Iterator[str]:
    """Write one row per edit: how much more of the behaviour came back than of unrelated ones, by attack."""
    names = list(dict.fromkeys(_named(figure) for each in found.values() for figure in each.figures))
    yield "| feature | word | tokens | effect, nats | " + " | ".join(names) + " |"
    yield "|---" * (4 + len(names)) + "|"
    for name, each in found.items():
        excess = {_named(figure): _share(figure.excess) for figure in each.figures}
        cells = [f"**{each.verdict}**", str(each.n_tokens), f"{each.effect:.3f}"]
        yield f"| {name} | " + " | ".join(cells + [excess.get(attack, "") for attack in names]) + " |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Removed or suppressed: ten edits under attack.")
    parser.add_argument("--model", type=Path, help="the fetched smollm2 if not given")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    add_features(parser)
    parser.add_argument("--count", type=int, default=10, help="how many are in that draw")
    parser.add_argument("--only", nargs="+", metavar="LAYER:INDEX", help="of these; all of them if not given")
    parser.add_argument("--seed", type=int, default=0, help="the same")
    parser.add_argument("--tokens", type=int, default=8192, help="in which firing tokens are looked for")
    parser.add_argument(
        "--rare-tokens", type=int, default=98304, help="the same for features that hardly fire in those"
    )
    parser.add_argument(
        "--attacks",
        choices=("decided", "weakest", "all"),
        default="weakest",
        help="until the word is certain; the weakest perturbation and all training; all of them",
    )
    parser.add_argument("--keep", type=Path, default=Path("out/bench-removal.json"))
    parser.add_argument(
        "--draw", type=Path, default=Path("out/bench-export.json"), help="draws that are kept"
    )
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    hosted = load_model(given.model or default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    text = given.text.read_text(encoding="utf-8")
    fit, kept = split(hosted, text), KeptRuns(given.keep)
    code = code_of(*JUDGES)
    features = given.features
    if features is None:
        draws = drawn(hosted, fit, given.count, given.seed, KeptRuns(given.draw), say)
        features = [each.feature for each in draws]
    chosen = _chosen(hosted, text, features, (given.tokens, given.rare_tokens), kept)
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    all_found: dict[str, Removal] = {}
    for feature in features:
        if given.only and f"{feature.layer}:{feature.index}" not in given.only:
            continue
        request = {
            "feature": str(feature),
            "windows": chosen[feature],
            "attacks": given.attacks,
            "code": code,
        }
        done = found_before(kept, request)
        if done is None:
            began = time.monotonic()
            part = Texts(fit=fit.fit[:_FIT_WINDOWS], measured=[])
            found = attack_one(hosted, part, chosen[feature], feature, attacks=given.attacks)
            done = {"removal": _REMOVAL.dump_python(found, mode="json"), "s": time.monotonic() - began}
            kept.keep("attack", request, done)
        found = _REMOVAL.validate_python(done["removal"])
        all_found[f"{feature.layer}:{feature.index}"] = found
        for line in lines(f"{feature.layer}:{feature.index}", found, done["s"]):
            say(line)
    say("\nexcess over unrelated behaviours")
    for line in summary(all_found):
        say(line)
    return 0


def _chosen(
    hosted: HostedModel,
    text: str,
    features: Sequence[FeatureRef],
    tokens: tuple[int, int],
    kept: KeptRuns,
) -> dict[FeatureRef, Windows]:
    """Look the windows up, or find them: in part of the text, and in more of it for rare features."""
    request: dict[str, Any] = {
        "features": [str(ref) for ref in features],
        "tokens": tokens,
        "text": hashlib.sha256(text.encode()).hexdigest(),
    }
    found = kept.get("windows", request)
    if found is None:
        windows, rare = dense_windows(hosted, text, features, tokens[0])
        if rare:
            windows |= dense_windows(hosted, text, rare, tokens[1])[0]
        found = {"windows": [windows[ref] for ref in features]}
        kept.keep("windows", request, found)
    return {ref: [tuple(w) for w in each] for ref, each in zip(features, found["windows"], strict=True)}


if __name__ == "__main__":
    sys.exit(main())
