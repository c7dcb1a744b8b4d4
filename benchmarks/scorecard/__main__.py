"""One card for a model and its set: `python -m benchmarks.scorecard [--suites ...] [--out FOLDER]`.

Every line is a figure with its 95 % interval, beside baselines and controls, held to a bar: PASS where the
whole interval is on the bar's side, FAIL where it is wholly on the other, INCONCLUSIVE everywhere else.
Suites that were measured by the same code for the same model, set, texts and sizes are kept and not run
again. Exit code 0 if every line passes, 3 if one fails, 4 if none fails and some are in doubt.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.scorecard.card import SUITES, Measured, lines, measured, verdict_of, write
from benchmarks.scorecard.subject import Sizes, Subject
from trephine.domain.findings import Verdict
from trephine.server.places import default_cache

_STATUS = {Verdict.PASS: 0, Verdict.FAIL: 3}


def say(text: str) -> None:
    """Tell on stderr where the run is: the card alone goes to stdout."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    """Print the card."""
    shared = Path("../shared")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scorecard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=default_cache() / "models" / "smollm2",
        help="A plain Hugging Face folder.",
    )
    parser.add_argument(
        "--transcoders",
        type=Path,
        default=shared / "replacements" / "smollm2-135m-tc",
        help="Its set: transcoders of all MLPs.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=shared / "data",
        help="The folder with `agreement`, `ioi.csv` and others.",
    )
    parser.add_argument(
        "--text", type=Path, default=shared / "data" / "wikitext-2" / "heldout.txt", help="Held out."
    )
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=tuple(SUITES), metavar="SUITE",
                        help=f"Of {', '.join(SUITES)}; unset: all.")  # fmt: skip
    parser.add_argument("--seed", type=int, default=Sizes.seed)
    parser.add_argument(
        "--out", type=Path, default=Path("out/scorecard"), help="Where card and parts are kept."
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(
        model=given.model,
        folder=given.transcoders,
        data=given.data,
        text=given.text,
        out=given.out,
        sizes=replace(Sizes(), seed=given.seed),
    )
    found: list[Measured] = []
    for each in measured(subject, given.suites, say):
        found.append(each)
        say(f"{each.name}: {each.seconds:.0f} s")
        write(subject, found)
    sys.stdout.write("\n".join(lines(subject, found)) + "\n")
    return _STATUS.get(verdict_of(found), 4)


if __name__ == "__main__":
    sys.exit(main())
