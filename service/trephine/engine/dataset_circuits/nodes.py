"""Activations of nodes and what they write: neurons, heads, features, error terms, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.live import live_heads_adjoint, mlp_read_adjoint
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import clean_value
from trephine.engine.dataset_circuits.places import NodeKind
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.replacements.layer import Code, ReplacementLayer
from trephine.engine.replacements.sets import opened


class Heads:
    """A layer's attention heads: what the output projection reads of each, `d_head` numbers a node."""

    def __init__(self, number: int) -> None:
        self.source = Site(kind=SiteKind.ATTN_Z, layer=number)
        self.outputs = (self.source,)

    def captured(self, operators: FrozenOperators) -> Tensor:
        """Mixed values, the heads side by side: `(n_rows, n_heads * d_head)`."""
        layer = operators.layers[self.source.layer]
        attention, dtype = layer.block.attention, layer.pattern.dtype
        value = layer.attention_norm.apply(layer.resid_pre) @ attention.W_V.to(dtype).transpose(1, 2)
        if attention.b_V is not None:
            value = value + attention.b_V.to(dtype)[:, None]  # (n_kv_heads, n_rows, d_head)
        mixed = layer.pattern @ value.repeat_interleave(attention.group, 0)  # (n_heads, n_rows, d_head)
        return mixed.transpose(0, 1).flatten(1)

    def gradient(self, operators: FrozenOperators, site: Site, adjoint: Tensor) -> Tensor:
        """The sweep has been through the output projection already."""
        return adjoint

    def seed(self, operators: FrozenOperators, cotangent: Tensor) -> Tensor:
        """Through values, queries and keys of the heads, to the stream before the block."""
        return live_heads_adjoint(operators.layers[self.source.layer], cotangent)


class Neurons:
    """A layer's own neurons; their output site is the down projection's input."""

    def __init__(self, number: int) -> None:
        self.source = neuron_site(number)
        self.outputs = (self.source,)

    def captured(self, operators: FrozenOperators) -> Tensor:
        """Hidden activations."""
        return operators.layers[self.source.layer].activation

    def gradient(self, operators: FrozenOperators, site: Site, adjoint: Tensor) -> Tensor:
        """The sweep has been through the down projection already."""
        return adjoint

    def seed(self, operators: FrozenOperators, cotangent: Tensor) -> Tensor:
        """Exact slope of phi(g) u, or of phi(u)."""
        return mlp_read_adjoint(operators.layers[self.source.layer], cotangent)


class Features:
    """A layer of a set; open only inside `node_layer`."""

    def __init__(self, layer: ReplacementLayer) -> None:
        self.layer = layer
        self.source = layer.info.site_in
        self.outputs = layer.info.sites_out

    def captured(self, operators: FrozenOperators) -> Tensor:
        """Activations by the set's support rule."""
        return self.encode(operators).activations

    def encode(self, operators: FrozenOperators) -> Code:
        """Encode the run's activation at the input site."""
        return self.layer.encode(clean_value(operators, self.source))

    def gradient(self, operators: FrozenOperators, site: Site, adjoint: Tensor) -> Tensor:
        """Through the decoder; a normalised dictionary's scale is the clean run's."""
        decoders = self.layer.decoders(range(self.layer.info.d_sae), site).to(adjoint.dtype)
        return (adjoint @ decoders.T) * self.encode(operators).scale_out

    def seed(self, operators: FrozenOperators, cotangent: Tensor) -> Tensor:
        """Through the encoder, where the feature is active."""
        code = self.encode(operators)
        wanted = (cotangent != 0).any(0).nonzero()[:, 0]
        encoders = self.layer.encoders(wanted.tolist()).to(cotangent.dtype)
        return ((cotangent * code.active)[:, wanted] @ encoders) / code.scale


class Errors:
    """What a layer of a set does not reconstruct: one node of as many numbers as its output site has."""

    def __init__(self, layer: ReplacementLayer) -> None:
        self.layer = layer
        self.source = layer.info.site_in
        self.outputs = layer.info.sites_out

    def captured(self, operators: FrozenOperators) -> Tensor:
        """Output less reconstruction, `(n_rows, d_out)`."""
        (site,) = self.outputs
        x = clean_value(operators, self.source)
        return clean_value(operators, site) - reconstruction(self.layer, x, self.layer.encode(x))

    def gradient(self, operators: FrozenOperators, site: Site, adjoint: Tensor) -> Tensor:
        """It is added as it is."""
        return adjoint

    def seed(self, operators: FrozenOperators, cotangent: Tensor) -> Tensor:
        """Error terms have no inputs (Marks et al. 2025)."""
        return torch.zeros_like(clean_value(operators, self.source))


def reconstruction(layer: ReplacementLayer, x: Tensor, code: Code) -> Tensor:
    """Return what a layer with one output site makes of a code of `x (n_rows, d_in)`, skip path included."""
    (site,) = layer.info.sites_out
    decoded, skipped = layer.decode(code)[site], layer.skip(x, code)
    return decoded if skipped is None else decoded + skipped


@contextmanager
def node_layer(
    hosted: HostedModel, space: NodeSpace, place: int
) -> Iterator[Neurons | Heads | Features | Errors]:
    """Open the k-th place of a space; must not span a quantum."""
    described = space.places[place]
    if not described.is_of_set:
        own = Neurons if described.kind is NodeKind.NEURON else Heads
        yield own(described.layer)
        return
    with opened(hosted, described.set_name, [described.layer]) as resident, torch.inference_mode():
        layer = resident[described.layer]
        yield Features(layer) if described.kind is NodeKind.FEATURE else Errors(layer)
