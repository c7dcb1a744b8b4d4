"""Does ablating a group do what ablating its members one at a time adds up to? On the real model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trephine.domain.circuits import Circuit
from trephine.domain.verification import VerificationOptions
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.verification.ablations import measured_drops
from trephine.engine.verification.choosing import Removal, cell_of, later_features
from trephine.engine.verification.statistics import Bootstrap
from trephine.engine.verification.subject import open_subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablations:
    """What ablations to zero took from the target, in logits."""

    together: tuple[float, ...]
    """Of every group."""
    added: tuple[float, ...]
    """Of its members, one at a time, added up."""


def ablated(
    hosted: HostedModel, circuit: Circuit, groupings: Sequence[Iterable[Sequence[int]]]
) -> list[Ablations]:
    """Ablate groups and their members, those at position 0 left out.

    Args:
        hosted: The model, with the circuit's set.
        circuit: The circuit.
        groupings: Several, each of nodes by group; groups of fewer than two later features are left out.

    Returns:
        Of each grouping.
    """
    subject = finish(open_subject(hosted, VerificationOptions(), circuit, range(len(circuit.nodes))))
    later = set(later_features(subject.graph))
    kept = [
        [nodes for group in groups if len(nodes := [n for n in group if n in later]) > 1]
        for groups in groupings
    ]
    sets = {tuple(nodes) for groups in kept for nodes in groups}
    sets |= {(node,) for nodes in sets for node in nodes}
    removals = [
        Removal(kind="group", stratum="", cells=tuple(cell_of(subject.graph, node) for node in nodes))
        for nodes in sorted(sets)
    ]
    fell = finish(measured_drops(subject.prompt, removals, None, "groups and members")).tolist()
    drop = {removal.nodes: value for removal, value in zip(removals, fell, strict=True)}
    return [
        Ablations(
            together=tuple(drop[tuple(nodes)] for nodes in groups),
            added=tuple(sum(drop[(node,)] for node in nodes) for nodes in groups),
        )
        for groups in kept
    ]


def relative_error(found: Sequence[Ablations]) -> str:
    """Sum of |together - added| over sum of |together|, with its 95 % interval over groups."""
    together = torch.tensor([value for one in found for value in one.together], dtype=torch.float64)
    added = torch.tensor([value for one in found for value in one.added], dtype=torch.float64)
    if not len(together):
        return "no groups"
    figure = Bootstrap(samples=1000, seed=0).ratio("error", (together - added).abs(), together.abs())
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}] ({len(together)} groups)"


def strongest(circuit: Circuit, groups: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the places of the groups of largest influence."""
    influence = [sum(circuit.nodes[node].influence for node in nodes) for nodes in groups]
    return np.argsort(-np.array(influence), kind="stable")[:count].tolist()
