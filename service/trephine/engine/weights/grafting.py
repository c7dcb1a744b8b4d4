"""The graft tier: what a feature's units read and write in one layer's MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import UnsupportedReplacementError
from trephine.domain.exports import GgufType
from trephine.domain.sites import Site, SiteKind
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.sets import opened
from trephine.engine.weights.mlp import StoredMlp, near_constant
from trephine.engine.weights.operations import FeatureOp, post_normed
from trephine.engine.weights.piecewise import Curve, Difference, changed, difference, feature_curve
from trephine.engine.weights.units import Bench, Feature, Fit, fit_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One feature, compiled."""

    op: FeatureOp
    layer: int
    fit: Fit
    constant: float
    """What is added to its activation everywhere."""
    direction: Tensor
    """float64 `(d_out,)`, its decoder at the MLP's output."""
    residue: float | None
    """E(u.x - 1)^2 of the direction that stands in for biases; None where there are biases."""
    fitted: str
    """Why it is not exact up to rounding; empty if it is."""

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
    return Feature(w=w.reshape(-1).cpu(), b=b, d=d.reshape(-1).cpu(), difference=_difference(op, threshold))


def _difference(op: FeatureOp, threshold: float) -> Difference:
    curve: Curve = feature_curve(threshold)
    for change, at_least in op.changes:
        curve = changed(curve, change, threshold=threshold, at_least=at_least)
    return difference(curve, threshold)


def graft(
    hosted: HostedModel,
    op: FeatureOp,
    stored: StoredMlp,
    inputs: Tensor,
    outputs: Tensor | None,
    dtype: torch.dtype,
    *,
    biases: bool,
    kind: GgufType | None = None,
) -> Graft:
    """Choose the units of one feature.

    Args:
        hosted: The model.
        op: The feature and its operations.
        stored: The MLP in the files.
        inputs: `(n, d_in)`, captured MLP inputs.
        outputs: `(n, d_out)`, what the down projection answered there; needed before a post-norm only.
        dtype: Of the files.
        biases: Whether the exported MLP has biases.
        kind: What block quantiser its units must survive.
    """
    layer = op.feature.layer
    feature = read_feature(hosted, op)
    constant, residue = (None, None) if biases else near_constant(inputs)
    fitted = ""
    if post_normed(hosted, Site(kind=SiteKind.MLP_OUT, layer=layer)):
        feature, fitted = _before_post_norm(hosted, layer, feature, inputs, outputs)
    mlp = hosted.architecture.blocks[layer].mlp
    bench = Bench(
        x=inputs.float(),
        dtype=dtype,
        activation=mlp.activation,
        gated=mlp.gated,
        constant=constant,
        kind=None if biases else kind,
        rms_down=float(stored.down.matrix.float().square().mean().sqrt()),
    )
    return Graft(
        op=op,
        layer=layer,
        fit=fit_units(feature, bench),
        constant=feature.difference.constant,
        direction=feature.d,
        residue=residue,
        fitted=fitted,
    )


def _before_post_norm(
    hosted: HostedModel, layer: int, feature: Feature, inputs: Tensor, outputs: Tensor | None
) -> tuple[Feature, str]:
    """Move a decoder in front of the norm that follows the MLP.

    The norm answers g * m / rms(m). To add c d behind it, to first order, m must gain c rms(m) d / g; rms(m)
    differs between tokens, and one column can carry its mean alone, weighted by c^2.
    """
    norm = hosted.architecture.blocks[layer].mlp_post_norm
    if norm is None or outputs is None:
        raise ValueError("a post-norm and what it reads are needed")
    added = feature.difference(inputs.to(torch.float64) @ feature.w + feature.b)
    size = 1.0 / norm.inverse_scale(outputs)[:, 0].to(torch.float64)
    weight = added.square()
    mean = float((weight * size).sum() / weight.sum()) if float(weight.sum()) else float(size.mean())
    why = (
        "the norm behind the MLP rescales what is added, so the decoder is fitted in front of it: divided by "
        f"the norm's gain and multiplied by {mean:.4g}, the mean rms of the MLP's output where it changes"
    )
    moved = Feature(
        w=feature.w, b=feature.b, d=mean * feature.d / norm.gain.double(), difference=feature.difference
    )
    return moved, why
