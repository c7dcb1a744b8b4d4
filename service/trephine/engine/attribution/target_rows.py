"""Rows of a graph's targets: one per target, also where a target enters the stream at two places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trephine.engine.attribution.influence import FLOOR, LOGIT, Row
from trephine.engine.attribution.targets import Explained, ReadPart


def parts_from_the_top(explained: Explained) -> list[tuple[int, ReadPart]]:
    """List every part with the number of its target, highest places first."""
    parts = [(number, part) for number, target in enumerate(explained.targets) for part in target.parts]
    return sorted(parts, key=lambda pair: -pair[1].place)


def joined_rows(explained: Explained, parts: Sequence[tuple[int, Row]]) -> list[Row]:
    """Add up the rows of a target's parts; return one row per target, in order, with its share."""
    rows = []
    for number, target in enumerate(explained.targets):
        own = [row for owner, row in parts if owner == number]
        row = own[0] if len(own) == 1 else _sum(own)
        rows.append(replace(row, cell=LOGIT - number, share=target.about.share))
    return rows


def _sum(rows: Sequence[Row]) -> Row:
    sources, place = torch.cat([row.sources for row in rows]).unique(return_inverse=True)
    weights = torch.zeros(len(sources)).index_add_(0, place, torch.cat([row.weights for row in rows]))
    tokens, errors = _added([row.tokens for row in rows]), _added([row.errors for row in rows])
    # What was not stored of the parts stays mass: it cannot be added up any more.
    mass = sum(row.mass - _stored(row.weights, row.tokens, row.errors) for row in rows)
    mass += _stored(weights, tokens, errors)
    order = weights.abs().argsort(descending=True)
    return replace(
        rows[0],
        sources=sources[order],
        weights=weights[order],
        tokens=tokens,
        errors=errors,
        bias=sum(row.bias for row in rows),
        total=sum(row.total for row in rows),
        mass=mass,
        ranked=int((weights.abs() > FLOOR * mass).sum()),
    )


def _added(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _stored(*parts: Tensor) -> float:
    return sum(float(part.double().abs().sum()) for part in parts)
