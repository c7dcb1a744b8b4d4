"""Reading a dictionary that was trained before a norm's gain on a site that lies after it."""

from __future__ import annotations

from torch import Tensor

from trephine.domain.errors import UnsupportedReplacementError
from trephine.engine.replacements.crosslayer import CrossLayerDictionary
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import InputGain
from trephine.engine.replacements.layer import ReplacementLayer


def with_input_gain(layer: ReplacementLayer, gain: Tensor, bias: Tensor | None) -> ReplacementLayer:
    """Return the layer with a norm's gain folded into its encoder side.

    The site's activation is `n * gain + bias`; the dictionary was trained on `n`. The given layer is
    not changed, so that both readings can be tried.

    Args:
        layer: As read from disk.
        gain: `(d_in,)`, as the norm applies it (Gemma's offset of 1 included).
        bias: `(d_in,)`, or None.

    Raises:
        UnsupportedReplacementError: If the gain is 0 somewhere, so that `n` cannot be had back, or the
            layer has no encoder of its own (neurons).
    """
    if not isinstance(layer, DictionaryLayer | CrossLayerDictionary):
        raise UnsupportedReplacementError(
            f"the input convention of {layer.info.kind.value} cannot be chosen; it reads the site as it is",
            layer=layer.info.layer,
        )
    if bool((gain == 0).any()):
        raise UnsupportedReplacementError(
            f"the norm before the MLP of layer {layer.info.layer} has a gain of 0, so what stands before the "
            "gain cannot be had back from the MLP's input; use a set trained on the MLP's input",
            layer=layer.info.layer,
        )
    return layer.with_input_gain(InputGain(gain=gain, bias=bias))
