"""Skylines: features chosen with what removal does not get to see, labels and attributes that come apart.

A skyline is no rival: it says how far features of a dictionary can go at all when they are chosen by balanced
data (Marks et al. 2025 choose neurons and features in this way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trephine.domain.errors import EmptyGroupError


@dataclass(frozen=True, slots=True, kw_only=True)
class Skyline:
    """Numbers of features tried, and the best of them."""

    counts: tuple[int, ...]
    worst_groups: tuple[float, ...]
    """On the balanced validation texts, by count."""

    @property
    def chosen(self) -> int:
        """The count of the best worst group; the smallest of equals."""
        best = max(self.worst_groups)
        return self.counts[self.worst_groups.index(best)]


def skyline_order(contributions: Tensor, labels: Tensor, attributes: Tensor) -> Tensor:
    """Rank features by how much of the attribute and how little of the label they bring into a decision.

    A feature's attribute effect is the mean difference of its contributions between the attribute's values
    with every label weighing the same; its label effect likewise. Those with more of the attribute than of
    the label come first, the largest attribute effect ahead.

    Args:
        contributions: `(n_texts, n_features)` to the decision, on balanced texts, logits.
        labels: 0 or 1, `(n_texts,)`.
        attributes: 0 or 1, `(n_texts,)`.

    Returns:
        Feature numbers `(n,)` of those with more of the attribute.

    Raises:
        EmptyGroupError: If a pair of label and attribute does not occur.
    """
    means = {}
    for y in (0, 1):
        for a in (0, 1):
            group = (labels == y) & (attributes == a)
            if not bool(group.any()):
                raise EmptyGroupError("a skyline needs balanced texts of all four groups", field="validation")
            means[y, a] = contributions[group].double().mean(0)
    attribute = ((means[0, 1] - means[0, 0]) + (means[1, 1] - means[1, 0])) / 2
    label = ((means[1, 0] - means[0, 0]) + (means[1, 1] - means[0, 1])) / 2
    order = attribute.abs().sort(descending=True, stable=True).indices
    return order[attribute.abs()[order] > label.abs()[order]]


def counts_up_to(available: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Return the counts that can be tried, none and all that there are included."""
    return tuple(sorted({0, *(count for count in counts if count < available), available}))
