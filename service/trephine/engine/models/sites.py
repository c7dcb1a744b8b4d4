"""Where sites are in the modules of a loaded model: one hook per site and forward pass.

A hook is given the live tensor and may write into it. Writing in place is what makes `resid_mid`
writable: the tensor that the MLP's norm reads is the residual stream itself, not a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trephine.domain.errors import LayerOutOfRangeError, UnsupportedOptionError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Architecture, Block

Touch = Callable[[Tensor], None]
"""Reads or writes, in place, the activation `(rows, columns, width)` of a site."""

_ORDER = (
    SiteKind.EMBED,
    SiteKind.RESID_PRE,
    SiteKind.ATTN_Z,
    SiteKind.ATTN_OUT,
    SiteKind.RESID_MID,
    SiteKind.MLP_IN,
    SiteKind.NEURONS,
    SiteKind.MLP_OUT,
    SiteKind.RESID_POST,
)


def place_in_pass(site: Site) -> tuple[int, int]:
    """Return a key that sorts sites by when a forward pass reaches them."""
    return site.layer, _ORDER.index(site.kind)


def site_width(architecture: Architecture, site: Site) -> int:
    """Return the length of the activation vector at a site."""
    if site.kind is SiteKind.NEURONS:
        return architecture.d_mlp
    if site.kind is SiteKind.ATTN_Z:
        return architecture.blocks[site.layer].attention.W_O[0].numel()
    return architecture.d_model


def require_layer(architecture: Architecture, layer: int) -> int:
    """Return the layer if the model has it.

    Raises:
        LayerOutOfRangeError: If it does not.
    """
    if not 0 <= layer < architecture.n_layers:
        raise LayerOutOfRangeError(
            f"layer {layer} does not exist; {architecture.name} has layers 0 to {architecture.n_layers - 1}",
            layer=layer,
            n_layers=architecture.n_layers,
        )
    return layer


def require_site(architecture: Architecture, site: Site) -> Site:
    """Return the site if the model has it.

    Raises:
        LayerOutOfRangeError: If the layer does not exist, or `embed` is asked for above layer 0.
        UnsupportedOptionError: If blocks are parallel, so that there is no stream between the branches.
    """
    require_layer(architecture, site.layer)
    if site.kind is SiteKind.EMBED and site.layer != 0:
        raise LayerOutOfRangeError(f"`embed` is read by layer 0, not {site.layer}", layer=site.layer)
    if site.kind is SiteKind.RESID_MID and architecture.blocks[site.layer].parallel:
        raise UnsupportedOptionError(
            f"{architecture.name} runs attention and MLP in parallel, so layer {site.layer} has no "
            "`resid_mid`; use `resid_pre`",
            site=site.kind.value,
        )
    return site


@contextmanager
def touching(architecture: Architecture, touches: Mapping[Site, Touch]) -> Iterator[None]:
    """Call each function on its site's tensor in the forward passes inside.

    Hooks are removed on the way out whatever happened (law 6). Must not span a quantum.
    """
    handles: list[RemovableHandle] = []
    try:
        # Two sites may be one module's input, `embed` and `resid_pre` 0: hooks run as they were installed.
        for site in sorted(touches, key=place_in_pass):
            handles.append(_install(architecture.blocks[site.layer], site.kind, touches[site]))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _install(block: Block, kind: SiteKind, touch: Touch) -> RemovableHandle:
    module, reads_input = hook_point(block, kind)
    if reads_input:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: touch(_first(args, kwargs)), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: touch(_first_output(output)))


def hook_point(block: Block, kind: SiteKind) -> tuple[nn.Module, bool]:
    """Return the module, and True if the site is what it reads rather than what it returns."""
    if kind in (SiteKind.EMBED, SiteKind.RESID_PRE):
        return block.module, True
    if kind is SiteKind.RESID_MID:
        return block.mlp_norm.module, True
    if kind is SiteKind.MLP_IN:
        return block.mlp.module, True
    if kind is SiteKind.NEURONS:
        return block.mlp.down, True
    if kind is SiteKind.ATTN_Z:
        return block.attention.out, True
    if kind is SiteKind.ATTN_OUT:
        post = block.attention_post_norm
        return (block.attention.module if post is None else post.module), False
    if kind is SiteKind.MLP_OUT:
        post = block.mlp_post_norm
        return (block.mlp.module if post is None else post.module), False
    return block.module, False


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def _first_output(output: Tensor | tuple[Any, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
