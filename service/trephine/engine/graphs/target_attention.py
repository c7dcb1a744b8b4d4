"""An attention score as a target: half its gradient by the query side, half by the key side.

A score is bilinear in what query and key read. With the scales of all norms frozen it is linear in either
side, so that half of it by the query's side plus half of it by the key's sums to the score, with biases: a
source gets half of what its removal does on either side. That is an estimate of removing it from both, and
marked so: a whole removal does twice as much, less the product of the source with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import AttentionScore, ExplainedTarget, TargetKind
from trephine.engine.attribution.attention_scores import HeadProjection, head_scores
from trephine.engine.attribution.live import score_gradient
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators, freeze_norm
from trephine.engine.attribution.places import BEFORE, PER_BLOCK
from trephine.engine.attribution.targets import ReadPart, TargetReadout


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGauge:
    """Computes a score anew from the stream before its block, norms live."""

    layer: FrozenLayer
    wanted: AttentionScore
    position: int

    @property
    def site(self) -> Site:
        """The stream before the block."""
        return Site(kind=SiteKind.RESID_PRE, layer=self.wanted.layer)

    @property
    def reads_changed(self) -> bool:
        """Queries and keys are of what a dictionary on the stream has written."""
        return True

    def measure(self, values: Tensor) -> Tensor:
        """Return the score before its soft cap."""
        stream = values.to(self.layer.resid_pre.dtype)
        norm = freeze_norm(self.layer.block.attention_norm, stream, stream.dtype)
        found = head_scores(replace(self.layer, resid_pre=stream, attention_norm=norm), self.wanted.head)
        return found.scaling * found.query[self.position] @ found.key[self.wanted.key]


def score_target(
    operators: FrozenOperators, wanted: AttentionScore, query: int, share: float
) -> TargetReadout:
    """Explain one head's score of a key.

    Raises:
        UnsupportedArchitectureError: If no query and key projection of the architecture is known.
    """
    layer = operators.layers[wanted.layer]
    found = head_scores(layer, wanted.head)
    gradient = score_gradient(layer, wanted.head, query, wanted.key)  # (n_pos, d_model)
    by_query, by_key = (0.5 * found.scaling * side for side in (found.key[wanted.key], found.query[query]))
    nothing = torch.zeros_like(gradient[0])
    parts = (
        _half(layer, found.queries, by_query, found.query[query], query, gradient[query]),
        _half(
            layer,
            found.keys,
            by_key,
            found.key[wanted.key],
            wanted.key,
            nothing if wanted.key == query else gradient[wanted.key],
        ),
    )
    score = sum(part.total for part in parts)
    return TargetReadout(
        about=ExplainedTarget(
            kind=TargetKind.ATTENTION,
            label=f"score of {wanted.layer}.{wanted.head} from position {query} to {wanted.key}",
            position=query,
            share=share,
            value=score,
            estimated=True,
        ),
        parts=parts,
        gauge=ScoreGauge(layer=layer, wanted=wanted, position=query),
        feature=wanted.head,
        activation=score,
    )


def _half(
    layer: FrozenLayer,
    projection: HeadProjection,
    cotangent: Tensor,
    value: Tensor,
    position: int,
    live: Tensor,
) -> ReadPart:
    """Return one side; `cotangent (d_head,)` multiplies its `value (d_head,)`."""
    at = torch.tensor([position], device=cotangent.device)
    return ReadPart(
        place=PER_BLOCK * layer.block.layer + BEFORE,
        position=position,
        adjoint=projection.pull_back(cotangent[None], at)[0],
        constant=float(cotangent @ projection.constant(at)[0]),
        total=float(cotangent @ value),
        live=live,
    )
