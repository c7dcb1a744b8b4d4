"""The ten features through the product: `python -m benchmarks.export_shipped`.

`make bench-export` compiles grafts and measures them with its own means. Here a server does all of it: it
loads the parent and the set, stores one edit that ablates the features, exports it over a text, certifies
the folder in its clean process and signs it; then the folder is verified as anybody would, with the server's
public key. Prints the certificate's verdict, gates and figures, for a parent in float32 and one in bfloat16.

Exit code 0 if every export passed and verifies, 3 if not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from benchmarks.export import say
from benchmarks.export_draw import add_features
from benchmarks.export_folders import bfloat16_parent
from benchmarks.graft_rounding import FEATURES
from trephine.client import connect, feature, verify_folder
from trephine.client.cli.certificate_text import main_rows, verdict_word
from trephine.client.trephine import Trephine
from trephine.client.types import Certificate, Export, ExportVerdict
from trephine.server.places import default_cache

DTYPES = ("float32", "bfloat16")

DTYPES = ("float32", "bfloat16")


def main() -> int:
    """Export, verify, print; 3 if something did not pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--letters", type=int, default=40_000, help="of the text that are handed over")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        help="of the parents' files",
    )
    parser.add_argument("--compute", choices=DTYPES, default="float32", help="what the server computes in")
    parser.add_argument("--patience", type=float, default=3600, help="seconds that an export may take")
    add_features(parser, FEATURES)
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")[: given.letters]
    held = True
    for dtype in given.dtypes:
        with tempfile.TemporaryDirectory(prefix="trephine-bench-shipped-") as scratch:
            held &= ship(given, dtype, text, Path(scratch))
    return 0 if held else 3


def ship(given: argparse.Namespace, dtype: str, text: str, folder: Path) -> bool:
    """Export from a parent of a dtype, fetch, verify and print; say whether all of it passed."""
    parent = (
        given.model if dtype == "float32" else bfloat16_parent(given.model, folder / "parents" / "parent")
    )
    state, began = folder / "state", monotonic()
    with connect(state=state, model_roots=[parent.parent]) as trephine:
        made = exported(trephine, given, parent, text)
        seconds = monotonic() - began
        passed = made.certificate.verdict is ExportVerdict.PASSED
        if passed:
            trephine.exports.download(made, folder / "shipped")
            found = verify_folder(folder / "shipped", public_key=state / "signing.pub.pem")
            passed = found.passed
    say(f"\n## {dtype} files, {given.compute} arithmetic: {seconds:.0f} s")
    say(f"ablated: {len(given.features)} features")
    for line in lines(made.certificate):
        say(line)
    say(f"verified with the server's public key: {'yes' if passed else 'NO'}")
    return passed


def exported(trephine: Trephine, given: argparse.Namespace, parent: Path, text: str) -> Export:
    """Load parent and set, store the edit, export it."""
    model = trephine.load_model(parent, dtype=given.compute)
    name = model.load_replacements(given.transcoders).name.rpartition("/")[2]
    cuts = [feature(one.layer, one.index, replacement=name).ablate() for one in given.features]
    edit = trephine.edits.create("ten", cuts, model=model.name)
    operation = trephine.exports.start(edit, "shipped", text=text)
    return operation.result(timeout_seconds=given.patience)


def lines(certificate: Certificate) -> Iterator[str]:
    """Write a certificate: its word, the main figures, every gate."""
    yield f"verdict: {verdict_word(certificate.verdict, certificate.doubt)}"
    changed, same = len(certificate.changed_tensors), certificate.untouched_tensors_verified
    yield f"{changed} tensors changed, {same} as before"
    yield "| figure | export | beside | which is |"
    yield "|---|---|---|---|"
    for row in main_rows(certificate):
        yield f"| {' | '.join(row)} |"
    yield "| gate | limit | measured | holds |"
    yield "|---|---|---|---|"
    for one in certificate.gates:
        holds = "yes" if one.passed else "NO"
        yield f"| {one.gate.name} | {one.gate.limit:.3g} {one.gate.unit} | {one.measured:.3g} | {holds} |"


if __name__ == "__main__":
    sys.exit(main())
