"""Where a dictionary was trained, by the name that its file gives: Hugging Face paths or TransformerLens.

A Hugging Face path is followed in the loaded model, module by module, and compared with the modules that
sites hang on. So `post_attention_layernorm.output` is the MLP's input in Llama and the attention's output
in Gemma-2 without a table of families. A name that is not understood is an error: SAELens logs it and runs
the model unmodified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Architecture, Block

_HUGGING_FACE = re.compile(
    r"^(?:\w+\.)*?(?:layers|h|blocks)\.(?P<layer>\d+)(?:\.(?P<module>[\w.]+?))??(?:\.(?P<end>input|output))?$"
)
_LENS = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<hook>(?:[\w]+\.)*hook_\w+)$")

_LENS_SITES = {
    "hook_resid_pre": SiteKind.RESID_PRE,
    "hook_resid_mid": SiteKind.RESID_MID,
    "hook_resid_post": SiteKind.RESID_POST,
    "hook_attn_out": SiteKind.ATTN_OUT,
    "attn.hook_z": SiteKind.ATTN_Z,
    "hook_mlp_in": SiteKind.MLP_IN,
    "mlp.hook_in": SiteKind.MLP_IN,
    "ln2.hook_normalized": SiteKind.MLP_IN,
    "mlp.hook_post": SiteKind.NEURONS,
    "hook_mlp_out": SiteKind.MLP_OUT,
    "mlp.hook_out": SiteKind.MLP_OUT,
}
_BEFORE_GAIN = "ln2.hook_normalized"
_INSIDE_POST_NORM = "mlp.hook_out"
_UNCLEAR = "hook_mlp_in"
"""After the norm in TransformerLens 3.2, before it in 2.x, and never called in 3.9 unless asked for."""

FITTING_SET = "Load the set made for this model, or load that model"
"""What to do with a set of another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPoint:
    """A site, and how its activation relates to what the dictionary was trained on."""

    site: Site
    pre_gain: bool = False
    """True if the name settles that the dictionary reads the norm's output before its gain."""
    ambiguous: bool = False
    """True if the name does not settle it; admission tries both."""


def resolve_hook(architecture: Architecture, name: str) -> HookPoint:
    """Find the site that a hook name means.

    Args:
        architecture: The model's modules.
        name: `model.layers.3.mlp.input`, `blocks.3.hook_resid_post`, ...

    Raises:
        UnsupportedReplacementError: If the name is not understood, or means no site of this model.
        BrokenReplacementError: If it names a layer that the model does not have.
    """
    lens = _LENS.match(name)
    if lens is not None:
        return _lens_point(architecture, name, int(lens["layer"]), lens["hook"])
    found = _HUGGING_FACE.match(name)
    if found is None:
        raise _not_understood(name)
    block = _block(architecture, name, int(found["layer"]))
    return HookPoint(site=_module_site(architecture, block, name, found["module"], found["end"] or "output"))


def _lens_point(architecture: Architecture, name: str, layer: int, hook: str) -> HookPoint:
    block, kind = _block(architecture, name, layer), _LENS_SITES.get(hook)
    if kind is None:
        raise _not_understood(name)
    if hook == _INSIDE_POST_NORM:
        _refuse_before_post_norm(architecture, block, name, block.mlp.module, "output")
    _refuse_parallel(architecture, block, name, kind)
    return HookPoint(
        site=Site(kind=kind, layer=layer), pre_gain=hook == _BEFORE_GAIN, ambiguous=hook == _UNCLEAR
    )


def _module_site(architecture: Architecture, block: Block, name: str, path: str | None, end: str) -> Site:
    try:
        module = block.module if path is None else block.module.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedReplacementError(
            f"{architecture.name} has no module {name!r}, which the replacement names as its hook; "
            f"it was made for a model of another kind. {FITTING_SET}",
            hook=name,
        ) from error
    kind = _known_points(block).get((module, end))
    if kind is None:
        raise _not_understood(name)
    _refuse_before_post_norm(architecture, block, name, module, end)
    _refuse_parallel(architecture, block, name, kind)
    return Site(kind=kind, layer=block.layer)


def _known_points(block: Block) -> dict[tuple[nn.Module, str], SiteKind]:
    points = {
        (block.module, "input"): SiteKind.RESID_PRE,
        (block.module, "output"): SiteKind.RESID_POST,
        (block.mlp_norm.module, "input"): SiteKind.RESID_MID,
        (block.mlp_norm.module, "output"): SiteKind.MLP_IN,
        (block.mlp.module, "input"): SiteKind.MLP_IN,
        (block.mlp.module, "output"): SiteKind.MLP_OUT,
        (block.mlp.down, "input"): SiteKind.NEURONS,
        (block.mlp.down, "output"): SiteKind.MLP_OUT,
        (block.attention.out, "input"): SiteKind.ATTN_Z,
        (block.attention.out, "output"): SiteKind.ATTN_OUT,
        (block.attention.module, "output"): SiteKind.ATTN_OUT,
    }
    if block.mlp_post_norm is not None:
        points[block.mlp_post_norm.module, "output"] = SiteKind.MLP_OUT
    if block.attention_post_norm is not None:
        points[block.attention_post_norm.module, "output"] = SiteKind.ATTN_OUT
    return points


def _refuse_before_post_norm(
    architecture: Architecture, block: Block, name: str, module: nn.Module, end: str
) -> None:
    """In Gemma-2 an MLP's own output is not what is added to the stream; `mlp_out` is."""
    before = {
        (block.mlp.module, "output"): block.mlp_post_norm,
        (block.mlp.down, "output"): block.mlp_post_norm,
        (block.attention.module, "output"): block.attention_post_norm,
        (block.attention.out, "output"): block.attention_post_norm,
    }
    if before.get((module, end)) is not None:
        raise UnsupportedReplacementError(
            f"{name!r} lies before the post-norm of {architecture.name}; what is added to the residual "
            "stream lies after it. Only sets trained on the post-norm's output can be spliced there",
            hook=name,
        )


def _refuse_parallel(architecture: Architecture, block: Block, name: str, kind: SiteKind) -> None:
    if kind is SiteKind.RESID_MID and block.parallel:
        raise UnsupportedReplacementError(
            f"{name!r} means the stream between attention and MLP; {architecture.name} runs them in "
            "parallel and has none",
            hook=name,
        )


def _block(architecture: Architecture, name: str, layer: int) -> Block:
    if layer >= architecture.n_layers:
        raise BrokenReplacementError(
            f"the replacement names {name!r}, but {architecture.name} has layers 0 to "
            f"{architecture.n_layers - 1}; it was made for another model. {FITTING_SET}",
            hook=name,
            n_layers=architecture.n_layers,
        )
    return architecture.blocks[layer]


def _not_understood(name: str) -> UnsupportedReplacementError:
    return UnsupportedReplacementError(
        f"the hook {name!r} is not understood. Understood are TransformerLens' "
        f"{', '.join(f'blocks.L.{hook}' for hook in _LENS_SITES)}, and Hugging Face paths of a block, its "
        "MLP, its attention, their output projections and norms, ending in .input or .output",
        hook=name,
    )
