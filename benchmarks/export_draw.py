"""The draw of an export benchmark's features, kept beside its rows: other benches take the same ones."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import export_features
from benchmarks.export_features import Drawn, Texts, draw
from benchmarks.kept_runs import KeptRuns
from benchmarks.replacements import NAME
from trephine.domain.sites import FeatureRef
from trephine.engine.models.hosted import HostedModel


def feature_of(word: str) -> FeatureRef:
    """Read `LAYER:INDEX`, a feature of the set that benches load.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    layer, colon, index = word.partition(":")
    if not (colon and layer.isdecimal() and index.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word!r} is not LAYER:INDEX, as 0:1968")
    return FeatureRef(replacement=NAME, layer=int(layer), index=int(index))


def add_features(parser: argparse.ArgumentParser, default: Sequence[FeatureRef] | None = None) -> None:
    """Let a bench be given its features, as those of an earlier draw whose table is to be printed again."""
    of = "the export benchmark's draw" if default is None else "those of `make bench-export`"
    parser.add_argument(
        "--features", type=feature_of, nargs="+", metavar="LAYER:INDEX", default=default, help=f"unset: {of}"
    )


def drawn(
    hosted: HostedModel,
    texts: Texts,
    count: int,
    seed: int,
    kept: KeptRuns,
    say: Callable[[str], None],
) -> list[Drawn]:
    """Draw the features, or take those that the same draw gave before."""
    rules = hashlib.sha256(Path(export_features.__file__).read_bytes()).hexdigest()
    request = {"count": count, "seed": seed, "text": texts.digest, "model": str(hosted.folder)}
    request["rules"] = rules
    found = kept.get("draw", request)
    if found is None:
        fresh = draw(hosted, texts, count, seed, say)
        found = {"drawn": [asdict(each) for each in fresh]}
        kept.keep("draw", request, found)
    return [_drawn_from(each) for each in found["drawn"]]


def _drawn_from(body: dict[str, Any]) -> Drawn:
    feature = FeatureRef(**body["feature"])
    return Drawn(**body | {"feature": feature})


def drawn_table(features: Sequence[Drawn]) -> Iterator[str]:
    """Write what each drawn feature fulfils."""
    yield "| feature | density | firing tokens | KL(original, ablated) on them | KL(ablated, original) |"
    yield "|---|---|---|---|---|"
    for each in features:
        name = f"{each.feature.layer}:{each.feature.index}"
        yield f"| {name} | {each.density:.2%} | {each.tokens} | {each.kl:.2e} | {each.kl_of_edit:.2e} |"
