"""Clean runs whose values are numbers: a figure of NaN or infinity would look like a finding."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.errors import NonFiniteValueError
from trephine.engine.attribution.operators import FrozenOperators


def require_finite(operators: FrozenOperators) -> None:
    """Refuse a captured run of which anything is no number.

    Every position hears the ones before it, so that the last norm and the logits tell of all below them.

    Raises:
        NonFiniteValueError: Naming where on the way up it begins.
    """
    if _is_finite(operators.final) and _is_finite(operators.logits):
        return
    places = {f"what block {layer.block.layer} reads": layer.resid_pre for layer in operators.layers}
    places |= {"what the last norm reads": operators.stream, "what it gives": operators.final}
    where = next((name for name, values in places.items() if not _is_finite(values)), "the logits")
    raise NonFiniteValueError(
        f"the model computes NaN or infinity on this text, first in {where}: either its weights hold some, "
        "or it overflows in the dtype that it is loaded with. Load it as float32, or check the checkpoint",
        field="model",
    )


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
