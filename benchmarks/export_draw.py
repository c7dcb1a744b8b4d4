"""The draw of an export benchmark's features, kept beside its rows: other benches take the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import export_features
from benchmarks.export_features import Drawn, Texts, draw
from benchmarks.kept_runs import KeptRuns
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel


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
