"""The graft tier: what a feature's units read and write in one layer's MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import UnsupportedReplacementError
from trephine.domain.exports import GgufType
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened
from trephine.engine.weights.mlp import NearConstant, StoredMlp, near_constant
from trephine.engine.weights.operations import FeatureOp
from trephine.engine.weights.piecewise import Difference, difference_of
from trephine.engine.weights.units import Bench, Feature, Fit, Trial, fit_units, trial_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One feature, compiled."""

    op: FeatureOp
    layer: int
    feature: Feature
    fit: Fit
    direction: Tensor
    """float64 `(d_out,)`, its decoder where the down projection writes."""
    near: NearConstant | None
    """The direction that stands in for biases; None where there are biases."""
    unseen: Trial | None = None
    """What the units do on windows that neither they nor that direction have seen; None: none were kept back,
    as where there are biases."""
    fitted: str = ""
    """Why it is not exact up to rounding; empty if it is."""

    @property
    def constant(self) -> float:
        """What is added to its activation everywhere."""
        return self.feature.difference.constant

    @property
    def does_nothing(self) -> bool:
        """True if the operations leave the feature as it is."""
        return not self.fit.units and self.constant == 0.0


def read_feature(hosted: HostedModel, op: FeatureOp) -> Feature:
    """Return a feature's affine pre-activation on the MLP's input, its decoder, and what is to be added.

    Raises:
        UnsupportedReplacementError: If the layer has no thresholds.
    """
    ref = op.feature
    site = Site(kind=SiteKind.MLP_OUT, layer=ref.layer)
    with opened(hosted, ref.replacement, [ref.layer]) as layers:
        layer = layers[ref.layer]
        thresholds = layer.thresholds()
        if thresholds is None:
            raise UnsupportedReplacementError(
                f"layer {ref.layer} of {ref.replacement} has no thresholds", layer=ref.layer
            )
        code = layer.encode(torch.zeros(1, layer.info.d_in, dtype=torch.float64, device=thresholds.device))
        w = layer.encoders([ref.index])[0].to(torch.float64) / code.scale
        b = float(code.pre[0, ref.index])
        d = layer.decoders([ref.index], site)[0].to(torch.float64) * code.scale_out
        threshold = float(thresholds[ref.index])
    return Feature(
        w=w.reshape(-1).cpu(), b=b, d=d.reshape(-1).cpu(), difference=_difference(op, w, b, threshold)
    )


def _difference(op: FeatureOp, w: Tensor, b: float, threshold: float) -> Difference:
    """Return what the operations add; of a feature that reads nothing, the constant that this is."""
    found = difference_of(op.changes, threshold)
    if bool(w.any()):
        return found
    return Difference(constant=float(found(torch.tensor([b], dtype=torch.float64))), knots=())


def graft(
    hosted: HostedModel,
    op: FeatureOp,
    stored: StoredMlp,
    inputs: Tensor,
    dtype: torch.dtype,
    *,
    biases: bool,
    kept: Tensor | None = None,
    kind: GgufType | None = None,
) -> Graft:
    """Choose the units of one feature, as if no norm followed the MLP.

    Args:
        hosted: The model.
        op: The feature and its operations.
        stored: The MLP in the files.
        inputs: `(n, d_in)`, captured MLP inputs.
        dtype: What is served: of the files, or of the runtime if that is coarser.
        biases: Whether the exported MLP has biases.
        kept: bool `(n,)`, the inputs of windows that are kept back where it has none: the direction that
            stands in for biases may be far worse elsewhere than where it was fitted. None: none are.
        kind: What block quantiser its units must survive.
    """
    layer = op.feature.layer
    feature = read_feature(hosted, op)
    if biases or kept is None:
        kept = torch.zeros(len(inputs), dtype=torch.bool)
    taken, unseen = inputs[~kept], inputs[kept]
    near = None if biases else near_constant(taken, unseen)
    mlp = hosted.architecture.blocks[layer].mlp

    def bench(captured: Tensor) -> Bench:
        return Bench(
            x=captured.to(dtype).float(),
            runtime=captured.float(),
            dtype=dtype,
            activation=mlp.activation,
            gated=mlp.gated,
            constant=None if near is None else near.direction,
            kind=None if biases else kind,
            rms_down=float(stored.down.matrix.float().square().mean().sqrt()),
        )

    fit = fit_units(feature, bench(taken))
    return Graft(
        op=op,
        layer=layer,
        feature=feature,
        fit=fit,
        direction=feature.d,
        near=near,
        unseen=trial_of(feature, fit, bench(unseen)) if len(unseen) else None,
    )
