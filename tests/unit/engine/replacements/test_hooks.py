"""Hook names against the model: the same site by every dialect, and refusals where a name means no site."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.domain.errors import UnsupportedReplacementError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.sites import touching
from trephine.engine.replacements.hooks import resolve_hook

hosted_as = cache(tiny_hosted)
"""One model per family for all names; nothing here changes it."""

LLAMA = {
    "model.layers.1": SiteKind.RESID_POST,
    "model.layers.1.output": SiteKind.RESID_POST,
    "layers.1": SiteKind.RESID_POST,
    "model.layers.1.input": SiteKind.RESID_PRE,
    "model.layers.1.mlp.input": SiteKind.MLP_IN,
    "model.layers.1.mlp": SiteKind.MLP_OUT,
    "model.layers.1.mlp.output": SiteKind.MLP_OUT,
    "model.layers.1.mlp.down_proj.input": SiteKind.NEURONS,
    "model.layers.1.self_attn.o_proj.input": SiteKind.ATTN_Z,
    "model.layers.1.self_attn.output": SiteKind.ATTN_OUT,
    "model.layers.1.post_attention_layernorm.output": SiteKind.MLP_IN,
    "model.layers.1.post_attention_layernorm.input": SiteKind.RESID_MID,
    "blocks.1.hook_resid_pre": SiteKind.RESID_PRE,
    "blocks.1.hook_resid_mid": SiteKind.RESID_MID,
    "blocks.1.hook_resid_post": SiteKind.RESID_POST,
    "blocks.1.hook_attn_out": SiteKind.ATTN_OUT,
    "blocks.1.attn.hook_z": SiteKind.ATTN_Z,
    "blocks.1.mlp.hook_in": SiteKind.MLP_IN,
    "blocks.1.hook_mlp_in": SiteKind.MLP_IN,
    "blocks.1.ln2.hook_normalized": SiteKind.MLP_IN,
    "blocks.1.hook_mlp_out": SiteKind.MLP_OUT,
    "blocks.1.mlp.hook_out": SiteKind.MLP_OUT,
    "blocks.1.mlp.hook_post": SiteKind.NEURONS,
}
GEMMA2 = {
    "model.layers.1.pre_feedforward_layernorm.output": SiteKind.MLP_IN,
    "model.layers.1.pre_feedforward_layernorm.input": SiteKind.RESID_MID,
    "model.layers.1.post_feedforward_layernorm.output": SiteKind.MLP_OUT,
    "model.layers.1.post_attention_layernorm.output": SiteKind.ATTN_OUT,
    "blocks.1.hook_mlp_out": SiteKind.MLP_OUT,
}
GPT2 = {
    "transformer.h.1.mlp.input": SiteKind.MLP_IN,
    "transformer.h.1.ln_2.output": SiteKind.MLP_IN,
    "h.1.attn.c_proj.input": SiteKind.ATTN_Z,
    "transformer.h.1.mlp.c_proj.input": SiteKind.NEURONS,
}
NEOX = {
    "gpt_neox.layers.1.mlp.input": SiteKind.MLP_IN,
    "gpt_neox.layers.1.attention.dense.input": SiteKind.ATTN_Z,
}


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        (family, name, kind)
        for family, names in (("llama", LLAMA), ("gemma2", GEMMA2), ("gpt2", GPT2), ("gpt_neox", NEOX))
        for name, kind in names.items()
    ],
)
def test_a_name_means_its_site(family: str, name: str, kind: SiteKind) -> None:
    """Both dialects, every family."""
    point = resolve_hook(hosted_as(family).architecture, name)
    assert point.site == Site(kind=kind, layer=1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_hugging_face_name_reads_what_a_hook_on_that_module_reads(family: str) -> None:
    """The site's activation is the module's own input or output, number for number."""
    hosted = hosted_as(family)
    names = {"llama": LLAMA, "gemma2": GEMMA2, "gpt2": GPT2}[family]
    ids = torch.tensor([[5, 6, 7, 8]])
    for name in [name for name in names if not name.startswith("blocks")]:
        path, _, end = name.rpartition(".")
        if end not in ("input", "output"):
            path, end = name, "output"
        module = hosted.model if hasattr(hosted.model, path.split(".")[0]) else hosted.model.base_model
        found: list[torch.Tensor] = []

        def keep(_: object, args: tuple, kwargs: dict, output: object, end: str = end) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            wanted = given if end == "input" else output
            found.append((wanted[0] if isinstance(wanted, tuple) else wanted).clone())  # noqa: B023

        handle = module.get_submodule(path).register_forward_hook(keep, with_kwargs=True)
        seen: list[torch.Tensor] = []
        site = resolve_hook(hosted.architecture, name).site
        with torch.inference_mode(), touching(hosted.architecture, {site: lambda x: seen.append(x.clone())}):  # noqa: B023
            hosted.model(input_ids=ids)
        handle.remove()
        assert torch.equal(found[0], seen[0]), name


@pytest.mark.parametrize(
    ("name", "pre_gain", "ambiguous"),
    [
        ("blocks.1.mlp.hook_in", False, False),
        ("blocks.1.ln2.hook_normalized", True, False),
        ("blocks.1.hook_mlp_in", False, True),
    ],
)
def test_what_a_name_settles_about_the_gain(name: str, pre_gain: bool, ambiguous: bool) -> None:
    """`hook_mlp_in` means different things in different versions; admission has to measure."""
    point = resolve_hook(hosted_as("llama").architecture, name)
    assert (point.pre_gain, point.ambiguous) == (pre_gain, ambiguous)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.output",
        "model.layers.1.mlp.down_proj.output",
        "blocks.1.mlp.hook_out",
        "model.layers.1.self_attn.output",
    ],
)
def test_what_lies_before_a_post_norm_is_refused(name: str) -> None:
    """In Gemma-2 `mlp.output` is not what is added to the stream; fed silently it would be wrong."""
    with pytest.raises(UnsupportedReplacementError, match="post-norm"):
        resolve_hook(hosted_as("gemma2").architecture, name)


def test_parallel_blocks_have_no_stream_in_between() -> None:
    """GPT-NeoX reads one residual with both branches."""
    with pytest.raises(UnsupportedReplacementError, match="parallel"):
        resolve_hook(hosted_as("gpt_neox").architecture, "blocks.1.hook_resid_mid")


@pytest.mark.parametrize("name", ["", "blocks.1.hook_scale", "hook_embed", "blocks.x.hook_resid_pre", "mlp"])
def test_unknown_names_raise(name: str) -> None:
    """Never a silent run of the unmodified model."""
    with pytest.raises(UnsupportedReplacementError, match="not understood"):
        resolve_hook(hosted_as("llama").architecture, name)
