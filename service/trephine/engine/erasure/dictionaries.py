"""A random dictionary: as many features as another, as often active, with nothing learnt.

What features of it can do is what any overcomplete set of directions can do. Encoders are random directions;
thresholds let each fire on the same share of tokens; decoders are fitted by least squares, the best that a
dictionary with these codes can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError

_RIDGE = 1e-3
"""Of a feature's mean square: keeps decoders finite where codes are nearly collinear."""
_LEAST_THRESHOLD = 1e-6
"""A JumpReLU's threshold is above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDictionary:
    """Weights as SAELens names them: codes are `z * (z > threshold)` with `z = x @ W_enc`."""

    W_enc: Tensor
    """float32 `(d_in, d_sae)`, unit norm per feature."""
    threshold: Tensor
    """float32 `(d_sae,)`."""
    W_dec: Tensor
    """float32 `(d_sae, d_out)`."""
    b_dec: Tensor
    """float32 `(d_out,)`."""

    def encode(self, x: Tensor) -> Tensor:
        """Return codes `(rows, d_sae)` of inputs `(rows, d_in)`."""
        z = x @ self.W_enc
        return z * (z > self.threshold)


def random_dictionary(x: Tensor, y: Tensor, *, d_sae: int, l0: float, seed: int) -> RandomDictionary:
    """Draw a dictionary of a size and an L0.

    Args:
        x: What it reads, tokens `(rows, d_in)`.
        y: What it writes, `(rows, d_out)`.
        d_sae: Features.
        l0: Active features per token, on average over `x`.
        seed: Of the directions.

    Raises:
        InvalidRequestError: If the L0 is not between 0 and the number of features.
    """
    if not 0 < l0 < d_sae:
        raise InvalidRequestError("the L0 must be above 0 and below the number of features", field="l0")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], d_sae, generator=generator)
    directions /= directions.norm(dim=0)
    z = x.float() @ directions
    threshold = z.quantile(1 - l0 / d_sae, dim=0).clamp_min(_LEAST_THRESHOLD)
    codes = (z * (z > threshold)).double()
    b_dec = y.double().mean(0)
    gram = codes.T @ codes
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    W_dec = torch.linalg.solve(gram, codes.T @ (y.double() - b_dec))
    return RandomDictionary(W_enc=directions, threshold=threshold, W_dec=W_dec.float(), b_dec=b_dec.float())
