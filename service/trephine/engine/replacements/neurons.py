"""The model's own neurons under the contract of a replacement layer: exact, untrained, nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.neuron_layers import neurons_of
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import Site
from trephine.engine.models.architecture import Architecture, Block
from trephine.engine.models.indices import Indices, chosen
from trephine.engine.models.neurons import decoder_norms, decoders
from trephine.engine.models.sites import require_layer
from trephine.engine.replacements.layer import Code


def neuron_layer_info(architecture: Architecture, layer: int) -> ReplacementLayerInfo:
    """Describe a layer's neurons.

    Raises:
        LayerOutOfRangeError: If the model has no such layer.
    """
    require_layer(architecture, layer)
    return neurons_of(layer, d_model=architecture.d_model, d_mlp=architecture.d_mlp)


def neuron_layer(architecture: Architecture, layer: int) -> NeuronLayer:
    """Open a layer's neurons; the weights are the model's, not copies.

    Raises:
        LayerOutOfRangeError: If the model has no such layer.
    """
    info = neuron_layer_info(architecture, layer)
    return NeuronLayer(info=info, architecture=architecture, block=architecture.blocks[layer])


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronLayer:
    """A `ReplacementLayer` over an MLP. `pre` is what the down projection reads, as `activations` are."""

    info: ReplacementLayerInfo
    architecture: Architecture
    block: Block

    def encode(self, x: Tensor) -> Code:
        """Run the MLP up to what its down projection reads."""
        hidden = self._hidden(x, slice(None))
        active = torch.ones_like(hidden, dtype=torch.bool)
        return Code(pre=hidden, activations=hidden, active=active)

    def encode_features(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """Run a few neurons only."""
        return self._hidden(x, list(indices))

    def decode(self, code: Code) -> Mapping[Site, Tensor]:
        """Run the down projection, and the post-norm where there is one."""
        mlp, post = self.block.mlp, self.block.mlp_post_norm
        raw = functional.linear(code.activations.to(mlp.W_down.dtype), mlp.W_down, mlp.b_down)
        if post is not None:
            scaled = post.centre(raw) * post.inverse_scale(raw).to(raw.dtype) * post.gain
            raw = scaled if post.bias is None else scaled + post.bias
        return {self.info.sites_out[0]: raw}

    def constants(self, code: Code) -> Mapping[Site, Tensor]:
        """Return the down projection's bias, through a post-norm that sees nothing else."""
        return self.decode(replace(code, activations=torch.zeros_like(code.activations)))

    def skip(self, x: Tensor, code: Code) -> Tensor | None:
        """Neurons have no skip path."""
        return None

    def skip_matrix(self) -> Tensor | None:
        """Neurons have no skip path."""
        return None

    def reconstruct(self, x: Tensor) -> Mapping[Site, Tensor]:
        """Run the whole MLP."""
        return self.decode(self.encode(x))

    def encoders(self, indices: Indices) -> Tensor:
        """Return the rows of the projection that carries the value (`u`), not the gate's."""
        rows = self.block.mlp.W_in[chosen(indices)]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def decoders(self, indices: Indices, site: Site) -> Tensor:
        """Return columns of the down projection, through the post-norm's gain."""
        return decoders(self.architecture, self.info.layer, indices)

    def decoder_norms(self) -> Tensor:
        """Return the L2 norm of every neuron's decoder."""
        return decoder_norms(self.architecture, self.info.layer)

    def thresholds(self) -> Tensor | None:
        """Neurons have none."""
        return None

    def _hidden(self, x: Tensor, own: slice | list[int]) -> Tensor:
        """Return hidden activations `(..., k)` of some neurons, in the weights' dtype."""
        mlp = self.block.mlp
        x = x.to(mlp.W_in.dtype)
        read = functional.linear(x, mlp.W_in[own], _chosen(mlp.b_in, own))
        if mlp.W_gate is None:
            return mlp.activation(read)
        gate = functional.linear(x, mlp.W_gate[own], _chosen(mlp.b_gate, own))
        return mlp.activation(gate) * read


def _chosen(bias: Tensor | None, own: slice | list[int]) -> Tensor | None:
    return None if bias is None else bias[own]
