"""Tokens that tell an attribute: found by log-odds, deleted, or flattened in the embedding alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAssociation:
    """How strongly a token goes with the attribute's second value."""

    token: int
    z_score: float
    """Log-odds of the texts that hold it, over their standard error; negative: with the first value."""


def token_associations(texts: Sequence[Sequence[int]], attribute: Sequence[int]) -> list[TokenAssociation]:
    """Return every token with its association, the strongest first.

    A token counts once per text. Log-odds are smoothed by half a text per cell (Haldane, Anscombe), so that
    a token that was seen in two texts cannot outrank one that was seen in hundreds.

    Args:
        texts: Token ids of every text.
        attribute: 0 or 1 per text.

    Raises:
        InvalidRequestError: If the lists differ in length, or there is one value alone.
    """
    if len(texts) != len(attribute) or set(attribute) != {0, 1}:
        raise InvalidRequestError(
            "associations need texts of both values of the attribute", field="attribute"
        )
    with_token: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for ids, value in zip(texts, attribute, strict=True):
        with_token[value].update(set(ids))
    totals = (len(attribute) - sum(attribute), sum(attribute))
    found = [
        TokenAssociation(token=token, z_score=_z_score(with_token[0][token], with_token[1][token], totals))
        for token in with_token[0].keys() | with_token[1].keys()
    ]
    return sorted(found, key=lambda one: (-abs(one.z_score), one.token))


def _z_score(first: int, second: int, totals: tuple[int, int]) -> float:
    cells = (second + 0.5, totals[1] - second + 0.5, first + 0.5, totals[0] - first + 0.5)
    odds = log(cells[0] / cells[1]) - log(cells[2] / cells[3])
    return odds / sqrt(sum(1 / cell for cell in cells))


def strongest_tokens(found: Iterable[TokenAssociation], *, above: float, at_most: int) -> frozenset[int]:
    """Return the tokens whose association exceeds a z-score, at most so many, the strongest."""
    kept = [one.token for one in found if abs(one.z_score) > above]
    return frozenset(kept[:at_most])


def without_tokens(ids: Sequence[int], tokens: Collection[int]) -> list[int]:
    """Delete tokens; a text of nothing else keeps its first one, since no model reads an empty text."""
    kept = [token for token in ids if token not in tokens]
    return kept or list(ids[:1])


def flattened_embeddings(embeddings: Tensor, ids: Tensor, tokens: Collection[int]) -> Tensor:
    """Return embeddings with every chosen token's replaced by the mean one: ablation in the embedding alone.

    Args:
        embeddings: The table `(d_vocab, d_model)`.
        ids: `(rows, n_pos)`.
        tokens: Whose embedding is ablated.

    Returns:
        `(rows, n_pos, d_model)`; positions stay, unlike under deletion.
    """
    looked_up = embeddings[ids]
    chosen = torch.isin(ids, torch.tensor(sorted(tokens), dtype=ids.dtype, device=ids.device))
    return torch.where(chosen[..., None], embeddings.mean(0).to(looked_up.dtype), looked_up)
