"""The exact derivative of the target by every mask value, at a masked state, without autograd.

The model is run under the mask and its clean-looking operators are those of that state, so that the live
adjoints of `trephine.engine.attribution.live` apply: nothing is frozen. On the way down a masked layer
contributes twice:
its features' own derivative, and what the mask lets through to the layer's input,

    neurons: adjoint by a is m times the adjoint by a';     set: (m - 1) times it, through the encoder,

since with the error term live the true MLP goes on beside the features. The support of sparse features and
the scale of normalised inputs are held, as everywhere in attribution.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.engine.attribution.live import live_attention_adjoint, live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.attribution.places import AFTER, ATTENTION, BEFORE, MIDDLE, MLP, PER_BLOCK
from trephine.engine.attribution.targets import Cotangents, top_place
from trephine.engine.graphs.open_layers import info_of
from trephine.engine.models.products import product
from trephine.engine.replacements.layer import Code
from trephine.engine.replacements.sets import opened
from trephine.engine.verification.derivatives import live_cotangents, measured
from trephine.engine.verification.masks import Mask, MaskedPrompt, Substitutes, Tape


def mask_slopes(
    prompt: MaskedPrompt, mask: Mask, substitutes: Substitutes | None
) -> Generator[None, None, tuple[float, dict[LayerRef, Tensor]]]:
    """Differentiate the target by the mask; the pass and every block down are a quantum each.

    Args:
        prompt: The prompt, its error term live.
        mask: Of every layer of the prompt.
        substitutes: What ablated activations become; None: zero.

    Returns:
        What is explained, and its derivative `(n_pos, width)` by layer of a set.

    Raises:
        UnsupportedOptionError: With another error term: what is replaced passes no derivative on.
    """
    if prompt.error_term is not ErrorTerm.LIVE:
        raise UnsupportedOptionError(
            "the search over masks needs the error term live; leave it out with adversary_steps 0",
            field="error_term",
        )
    operators, tape = prompt.captured(mask, substitutes)
    yield None
    state = _Slopes(prompt, mask, substitutes, tape)
    with torch.inference_mode():
        state.roots = live_cotangents(prompt.explained, operators)
        adjoint = state.enter(torch.zeros_like(operators.embedding), top_place(operators))
        for layer in reversed(operators.layers):
            adjoint = state.block(layer, adjoint)
            yield None
        state.meet(Site(kind=SiteKind.EMBED, layer=0), adjoint)
        values = {site: rows[0] for site, rows in tape.gauged.items()}
        return measured(prompt.explained, operators, values), state.slopes


class _Slopes:
    """Derivatives by the masks of features of sets, and of neurons."""

    def __init__(self, prompt: MaskedPrompt, mask: Mask, substitutes: Substitutes | None, tape: Tape) -> None:
        self.prompt, self.mask, self.substitutes, self.tape = prompt, mask, substitutes, tape
        self.slopes: dict[LayerRef, Tensor] = {}
        self.roots: Cotangents = {}
        self._infos = {ref: info_of(prompt.hosted, ref) for ref in mask if ref.replacement != NEURONS}
        self._by_feature: dict[LayerRef, Tensor] = {}

    def enter(self, adjoint: Tensor, *places: int) -> Tensor:
        """Add what the targets read at places."""
        return adjoint + sum(self.roots[place] for place in places if place in self.roots)

    def meet(self, site: Site, adjoint: Tensor) -> Tensor:
        """Score what is written at a site, then add what is read there; `(n_pos, d_model)`."""
        for ref, info in self._infos.items():
            if site in info.sites_out:
                self._score(ref, site, adjoint)
        return adjoint + self._read(site, adjoint)

    def block(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """Carry the adjoint `(n_pos, d_model)` of the stream through one block down."""
        number, post = layer.block.layer, layer.mlp_post_norm
        first = PER_BLOCK * number
        adjoint = self.meet(Site(kind=SiteKind.RESID_POST, layer=number), adjoint)
        adjoint = self.enter(adjoint, first + AFTER)
        heard = self.meet(Site(kind=SiteKind.MLP_OUT, layer=number), adjoint)
        written = heard if post is None else post.pull_back_live(heard)
        passed = self._neurons(layer, product(written, layer.block.mlp.W_down.to(adjoint.dtype)))
        middle = adjoint + live_mlp_adjoint(layer, passed)
        read = self._read(Site(kind=SiteKind.MLP_IN, layer=number), adjoint)
        middle = self.enter(middle + layer.mlp_norm.pull_back_live(read), first + MLP)
        heard = adjoint
        if not layer.block.parallel:
            middle = self.meet(Site(kind=SiteKind.RESID_MID, layer=number), middle)
        middle = self.enter(middle, first + MIDDLE)
        if not layer.block.parallel:
            heard = self.meet(Site(kind=SiteKind.ATTN_OUT, layer=number), middle)
        heard = self.enter(heard, first + ATTENTION)
        below = self.enter(middle + live_attention_adjoint(layer, heard), first + BEFORE)
        return self.meet(Site(kind=SiteKind.RESID_PRE, layer=number), below)

    def _neurons(self, layer: FrozenLayer, passed: Tensor) -> Tensor:
        """Score neurons where they are masked; return what the mask lets through, `(n_pos, d_mlp)`."""
        ref = LayerRef(replacement=NEURONS, layer=layer.block.layer)
        if ref not in self.mask:
            return passed
        value = _activation(layer)
        if self.substitutes is not None:
            value = value - self.substitutes[ref]
        self.slopes[ref] = passed * value
        return passed * self.mask[ref]

    def _score(self, ref: LayerRef, site: Site, adjoint: Tensor) -> None:
        code, d_sae = self._code(ref), self._infos[ref].d_sae
        with opened(self.prompt.hosted, ref.replacement, [ref.layer]) as resident:
            decoders = resident[ref.layer].decoders(range(d_sae), site).to(adjoint.dtype)
        found = (adjoint * code.scale_out) @ decoders.T  # (n_pos, d_sae)
        before = self._by_feature.get(ref)
        self._by_feature[ref] = found if before is None else before + found

    def _read(self, site: Site, adjoint: Tensor) -> Tensor:
        """Return what reaches a site through encoders that read it."""
        total = torch.zeros_like(adjoint)
        for ref, info in self._infos.items():
            if info.site_in != site or ref not in self._by_feature:
                continue
            code, by_feature = self._code(ref), self._by_feature.pop(ref)
            value = code.activations
            if self.substitutes is not None:
                value = value - self.substitutes[ref]
            self.slopes[ref] = by_feature * value
            through = by_feature * (self.mask[ref] - 1) * code.active
            with opened(self.prompt.hosted, ref.replacement, [ref.layer]) as resident:
                encoders = resident[ref.layer].encoders(range(info.d_sae)).to(adjoint.dtype)
            total = total + (through @ encoders) / code.scale
        return total

    def _code(self, ref: LayerRef) -> Code:
        """The one row's code, without its batch dimension."""
        code = self.tape.codes[ref]
        scales = [s[0] if isinstance(s, Tensor) and s.dim() == 3 else s for s in (code.scale, code.scale_out)]
        return Code(
            pre=code.pre[0],
            activations=code.activations[0],
            active=code.active[0],
            scale=scales[0],
            scale_out=scales[1],
        )


def _activation(layer: FrozenLayer) -> Tensor:
    """Recompute the neurons: what the tape of operators holds is masked already."""
    phi = layer.block.mlp.activation
    return phi(layer.read) if layer.gate is None else phi(layer.gate) * layer.read
