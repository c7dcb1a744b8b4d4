"""Concept bottleneck: a classifier that sees a text only as its likeness to named concepts.

After Yan et al. 2023, as Marks et al. 2025 use it: each concept is a direction, the activations of a few
words that name it; a text becomes its cosine with each of them; the head is trained on those numbers alone.
What no named concept reflects cannot reach the decision, and neither can what the task needs beyond them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError


def concept_directions(concepts: Tensor, centre: Tensor) -> Tensor:
    """Return unit directions `(concepts, width)`: activations of the concepts' words, less a centre.

    Args:
        concepts: Pooled activations of each concept's words, `(concepts, width)`.
        centre: Mean activations of texts, `(width,)`; without it all directions share the mean's.

    Raises:
        InvalidRequestError: If there is no concept, or one lies at the centre.
    """
    moved = concepts - centre
    norms = moved.norm(dim=1, keepdim=True)
    if not len(concepts) or float(norms.min()) == 0.0:
        raise InvalidRequestError(
            "a concept bottleneck needs concepts that differ from the mean text", field="concepts"
        )
    return moved / norms


def concept_scores(x: Tensor, directions: Tensor, centre: Tensor) -> Tensor:
    """Return cosines `(rows, concepts)` of centred activations `(rows, width)` with the directions."""
    moved = x - centre
    return (moved / moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)) @ directions.T
