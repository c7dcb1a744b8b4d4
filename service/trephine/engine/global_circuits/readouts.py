"""What stands above features: logits, and a direction of the stream that a circuit is grown from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import ShapeMismatchError, TrephineError
from trephine.domain.global_circuits import GrowthStart
from trephine.domain.targets import DirectionValue
from trephine.engine.global_circuits.virtual import stream_boundary
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import require_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Readouts:
    """Read-outs of the stream that are named; logits first."""

    tokens: tuple[int, ...]
    """Vocabulary ids of the logits."""
    direction: DirectionValue | None
    directions: Tensor
    """`(count, d_model)`, on the stream: of logits folded through the final norm, at a scale of 1."""
    boundary: Tensor
    """int64 `(count,)` on the CPU: the first block whose MLP each does not see."""

    @property
    def count(self) -> int:
        """Logits and direction."""
        return len(self.directions)


def logit_directions(hosted: HostedModel, tokens: Sequence[int]) -> Tensor:
    """Return what logits less the mean logit read of the stream, `(n, d_model)`, at scale 1."""
    architecture = hosted.architecture
    wide = architecture.mean_unembedding.dtype
    rows = architecture.W_U[list(tokens)].to(wide) - architecture.mean_unembedding
    norm = architecture.final_norm
    return norm.centre(rows * norm.gain.to(wide))


def named_readouts(hosted: HostedModel, start: GrowthStart) -> Readouts:
    """Resolve what is named.

    Raises:
        TargetNotOneTokenError: If a text is not one token.
        TokenOutOfRangeError: If there is no such token.
        LayerOutOfRangeError: If the direction's layer does not exist.
        ShapeMismatchError: If the direction is not as long as the stream is wide.
    """
    tokens = [_token(hosted, text, number) for number, text in enumerate(start.tokens)]
    directions = logit_directions(hosted, tokens)
    boundary = [hosted.info.n_layers] * len(tokens)
    if start.direction is not None:
        directions = torch.cat([directions, _vector(hosted, start.direction).to(directions)[None]])
        boundary.append(stream_boundary(start.direction.site.kind, start.direction.site.layer))
    return Readouts(
        tokens=tuple(tokens),
        direction=start.direction,
        directions=directions,
        boundary=torch.tensor(boundary, dtype=torch.int64),
    )


def _token(hosted: HostedModel, text: str, number: int) -> int:
    try:
        return hosted.resolve_target(text)
    except TrephineError as error:
        raise error.with_field(f"start_tokens[{number}]") from None


def _vector(hosted: HostedModel, direction: DirectionValue) -> Tensor:
    try:
        require_site(hosted.architecture, direction.site)
    except TrephineError as error:
        raise error.with_field("start_direction.site") from None
    if len(direction.vector) != hosted.info.d_model:
        raise ShapeMismatchError(
            f"the direction has {len(direction.vector)} numbers, and the stream of {hosted.info.name} is "
            f"{hosted.info.d_model} wide",
            field="start_direction.vector",
        )
    return torch.tensor(direction.vector, dtype=torch.float64)
