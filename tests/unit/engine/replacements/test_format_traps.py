"""Ways in which other tools are known to open a dictionary and run another one: a test per trap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.builders import tiny_hosted
from tests.replacement_fixtures import N_LAYERS, ROOT, Fixture, copied, edited, opened, rewritten
from tests.replacement_sets import activations, write_transcoders
from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import LayerKind, SetFormat, SupportRule
from trephine.domain.sites import Site, SiteKind
from trephine.engine.replacements.crosslayer import CrossLayerDictionary
from trephine.engine.replacements.folding import with_input_gain
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.normalisation import UNNAMED_FACTOR
from trephine.engine.replacements.support import Threshold


def only(name: str, format: SetFormat = SetFormat.SAELENS) -> tuple[ReplacementLayer, Tensor]:
    """Read a fixture of one layer, with its inputs."""
    fixture = Fixture(format=format, name=name)
    return fixture.open().layers[0].read(), fixture.expected["x"]


def test_a_skip_path_is_not_lost() -> None:
    """SAELens' own wrapper calls encode and decode, which leaves `W_skip` out."""
    layer, x = only("jumprelu_skip_transcoder")
    code, matrix = layer.encode(x), layer.skip_matrix()
    assert layer.info.kind is LayerKind.SKIP_TRANSCODER
    assert layer.info.has_skip
    assert matrix is not None
    (written,) = layer.decode(code).values()
    (whole,) = layer.reconstruct(x).values()
    torch.testing.assert_close(whole - written, x @ matrix.T, atol=1e-5, rtol=1e-5)
    assert float((whole - written).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("format", "name"),
    [(SetFormat.SAELENS, "topk"), (SetFormat.CIRCUIT_TRACER, "topk"), (SetFormat.SPARSIFY, "sae")],
)
def test_topk_is_not_loaded_as_relu(format: SetFormat, name: str) -> None:
    """Some positions have more than k pre-activations above 0; only k are active."""
    fixture = Fixture(format=format, name=name)
    reader, x = fixture.open().layers[0], fixture.expected["x"]
    code = reader.read().encode(x[0] if x.ndim == 3 else x)
    assert reader.info.support is SupportRule.TOPK
    assert reader.info.claimed_l0 == 5
    assert int((code.pre > 0).sum(-1).max()) > 5
    assert int(code.active.sum(-1).max()) == 5


def test_circuit_tracers_topk_keeps_what_is_below_zero() -> None:
    """Its TopK has no ReLU, unlike SAELens' and sparsify's."""
    fixture = Fixture(format=SetFormat.CIRCUIT_TRACER, name="topk")
    code = fixture.open().layers[0].read().encode(fixture.expected["x"][0])
    assert bool(((code.pre < 0) & code.active).any())
    layer, x = only("topk")
    code = layer.encode(x)
    assert int(code.active.sum(-1).min()) < 5
    assert not bool(((code.pre <= 0) & code.active).any())


def test_decoders_of_a_cross_layer_transcoder_are_not_summed() -> None:
    """Each later layer has its own decoder; SAELens loads their sum as one."""
    fixture = Fixture(format=SetFormat.CIRCUIT_TRACER_CLT, name="jumprelu")
    readers, x = fixture.open().layers, fixture.expected["x"]
    assert [len(reader.info.sites_out) for reader in readers] == [3, 2, 1]
    layer = readers[0].read()
    stored = load_file(fixture.folder / "W_dec_0.safetensors")["W_dec_0"]
    assert [site.layer for site in layer.info.sites_out] == [0, 1, 2]
    for target, site in enumerate(layer.info.sites_out):
        assert torch.equal(layer.decoders([3, 4], site), stored[[3, 4], target])
    written = layer.decode(layer.encode(x[0]))
    assert not torch.allclose(written[layer.info.sites_out[0]], written[layer.info.sites_out[1]], atol=0.1)


def test_b_dec_of_a_cross_layer_transcoder_belongs_to_its_own_layer() -> None:
    """Added at every written layer it would count several times."""
    fixture = Fixture(format=SetFormat.CIRCUIT_TRACER_CLT, name="relu")
    layer = fixture.open().layers[0].read()
    code = layer.encode(fixture.expected["x"][0])
    written, everything = layer.decode(code), list(range(layer.info.d_sae))
    own, *later = layer.info.sites_out
    for site in later:
        summed = code.activations @ layer.decoders(everything, site)
        torch.testing.assert_close(written[site], summed, atol=1e-4, rtol=1e-4)
    b_dec = load_file(fixture.folder / "W_enc_0.safetensors")["b_dec_0"]
    summed = code.activations @ layer.decoders(everything, own)
    torch.testing.assert_close(written[own], summed + b_dec, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("format", "name"), [(SetFormat.GEMMA_SCOPE_2_CLT, "plain"), (SetFormat.CIRCUIT_TRACER_CLT, "relu")]
)
def test_the_last_layer_of_a_cross_layer_transcoder_is_not_dropped(format: SetFormat, name: str) -> None:
    """circuit-tracer's loop over gemma-scope-2 files ends one too early."""
    layers = Fixture(format=format, name=name).open().layers
    assert [layer.info.layer for layer in layers] == list(range(N_LAYERS))
    assert layers[-1].info.sites_out == (Site(kind=SiteKind.MLP_OUT, layer=N_LAYERS - 1),)


@pytest.mark.parametrize("format", [SetFormat.CIRCUIT_TRACER, SetFormat.CIRCUIT_TRACER_CLT])
@pytest.mark.parametrize("word", [True, False, None])
def test_a_word_on_contexts_is_read(format: SetFormat, word: bool | None, tmp_path: Path) -> None:
    """Sets fitted here say whether their contexts begin with BOS; the peer's files say nothing."""
    folder = copied(tmp_path, format, "relu")
    with (folder / "config.yaml").open("a") as config:
        config.write("" if word is None else f"\nprepend_bos: {str(word).lower()}\n")
    assert opened(folder).prepends_bos is word


def test_normalisation_is_not_dropped() -> None:
    """The same weights without it encode something else."""
    layer, x = only("standard_layer_norm")
    assert layer.info.normalisation == "layer_norm"
    plain, _ = only("standard")
    code = layer.encode(x)
    torch.testing.assert_close((x - code.centre) / code.scale, _layer_normed(x))
    assert isinstance(code.scale, Tensor)
    assert float((code.scale - 1).abs().max()) > 0.1
    assert plain.encode(x).scale == 1.0


def _layer_normed(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.std(-1, keepdim=True) + 1e-5)


def test_a_factor_that_is_not_named_is_no_secret(tmp_path: Path) -> None:
    """SAELens warns and goes on with inputs that are not scaled; here the description says so."""
    folder = copied(tmp_path, SetFormat.SAELENS, "standard_average_factor")
    named = opened(folder).layers[0]
    x = only("standard_average_factor")[1]
    edited(folder / "cfg.json", lambda config: config["metadata"].pop("norm_scaling_factor"))
    unnamed = opened(folder).layers[0]
    assert named.info.normalisation == "expected_average_only_in"
    assert unnamed.info.normalisation == UNNAMED_FACTOR
    assert not torch.equal(named.read().encode(x).activations, unnamed.read().encode(x).activations)


def test_a_transcoder_does_not_undo_its_normalisation() -> None:
    """It writes another site than it reads; SAELens leaves the scale out of its output."""
    layer, x = only("transcoder_layer_norm")
    code = layer.encode(x)
    assert (code.centre_out, code.scale_out) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder", "sae"])
def test_a_transposed_decoder_is_refused(tmp_path: Path, name: str) -> None:
    """SAELens' sparsify converter transposes `W_dec`."""
    folder = copied(tmp_path, SetFormat.SPARSIFY, name)
    rewritten(next(folder.rglob("sae.safetensors")), lambda t: t.update(W_dec=t["W_dec"].T))
    with pytest.raises(BrokenReplacementError, match=r"sae\.safetensors: tensor W_dec has shape \[16, 40\]"):
        opened(folder)


def test_a_sparsify_folder_of_num_latents_0_counts_by_expansion() -> None:
    """SAELens reads it as 0 features."""
    assert Fixture(format=SetFormat.SPARSIFY, name="expansion").open().layers[0].info.d_sae == 32


def test_sparsify_transcoders_are_no_residual_saes() -> None:
    """The module path is the hook: its input and output, not always the residual stream."""
    info = Fixture(format=SetFormat.SPARSIFY, name="transcoder").open().layers[0].info
    assert (info.site_in.kind, info.sites_out[0].kind) == (SiteKind.MLP_IN, SiteKind.MLP_OUT)
    sae = Fixture(format=SetFormat.SPARSIFY, name="sae").open().layers[0].info
    assert (sae.site_in.kind, sae.kind) == (SiteKind.RESID_POST, LayerKind.SAE)


def test_the_threshold_is_strict() -> None:
    """A pre-activation equal to its threshold is not active."""
    threshold = torch.tensor([0.5, 0.5, 0.0])
    activations_, active = Threshold(threshold=threshold)(torch.tensor([0.5, 0.6, 0.0]))
    assert active.tolist() == [False, True, False]
    assert activations_.tolist() == pytest.approx([0.0, 0.6, 0.0])


def test_a_threshold_below_zero_is_read_as_its_library_reads_it() -> None:
    """SAELens clamps with a ReLU first; circuit-tracer passes the negative activation on."""
    pre, threshold = torch.tensor([-0.5, -1.5, 0.5]), torch.tensor([-1.0, -1.0, -1.0])
    clamped = Threshold(threshold=threshold)
    assert clamped(pre)[1].tolist() == [False, False, True]
    assert clamped.thresholds(3) == pytest.approx(torch.zeros(3))
    passed = Threshold(threshold=threshold, clamped=False)
    assert passed(pre)[0].tolist() == [-0.5, 0.0, 0.5]
    assert passed(pre)[1].tolist() == [True, False, True]
    for format, name in ((SetFormat.SAELENS, "jumprelu"), (SetFormat.CIRCUIT_TRACER, "jumprelu_skip")):
        expected = Fixture(format=format, name=name).expected["features"]
        assert bool((expected < 0).any()) is (format is SetFormat.CIRCUIT_TRACER)


def test_topk_with_rescale_decodes_with_unit_decoders() -> None:
    """Activations carry the decoder norms, so `f @ W_dec + b_dec` would count them twice."""
    layer, x = only("topk_rescaled")
    tensors = load_file(ROOT / "saelens" / "topk_rescaled" / "sae_weights.safetensors")
    code, site = layer.encode(x), layer.info.sites_out[0]
    norms = tensors["W_dec"].norm(dim=1)
    torch.testing.assert_close(layer.decoder_norms(), torch.ones_like(norms))
    plain = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(code.pre, plain * norms, atol=1e-4, rtol=1e-4)
    naive = code.activations @ tensors["W_dec"] + tensors["b_dec"]
    assert float((layer.decode(code)[site] - naive).abs().max()) > 0.1


def test_b_dec_is_subtracted_only_where_the_file_says_so() -> None:
    """The flag is read, not assumed."""
    shifted, x = only("standard")
    unshifted, _ = only("standard_unshifted")
    b_dec = load_file(ROOT / "saelens" / "standard" / "sae_weights.safetensors")["b_dec"]
    chosen = list(range(shifted.info.d_sae))
    moved = (x - b_dec) @ shifted.encoders(chosen).T
    constant = shifted.encode(x).pre - moved
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), atol=1e-5, rtol=1e-5)
    bias = load_file(ROOT / "saelens" / "standard_unshifted" / "sae_weights.safetensors")["b_enc"]
    torch.testing.assert_close(
        unshifted.encode(x).pre, x @ unshifted.encoders(chosen).T + bias, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_both_sides_of_a_norms_gain_can_be_read(family: str, tmp_path: Path) -> None:
    """A dictionary trained before the gain, read on the MLP's input, encodes the norm's plain output."""
    hosted = tiny_hosted(family)
    read = open_set(
        write_transcoders(hosted, tmp_path, layers=[1], skip=True),
        SetFormat.AUTO,
        architecture=hosted.architecture,
        allow_unverified=False,
    )
    layer, norm = read.layers[0].read(), hosted.architecture.blocks[1].mlp_norm
    (x,) = activations(hosted, [Site(kind=SiteKind.MLP_IN, layer=1)])
    bare = (x if norm.bias is None else x - norm.bias) / norm.gain
    folded = with_input_gain(layer, norm.gain, norm.bias)
    torch.testing.assert_close(folded.encode(x).pre, layer.encode(bare).pre)
    (out,) = folded.reconstruct(x).values()
    torch.testing.assert_close(out, next(iter(layer.reconstruct(bare).values())))
    moved = (x[1:] - x[:1]) @ folded.encoders([2, 5]).T
    pre = folded.encode(x).pre[:, [2, 5]]
    torch.testing.assert_close(moved, pre[1:] - pre[:1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(folded.encode(x).pre, layer.encode(x).pre, atol=0.1)


def test_a_gain_of_zero_cannot_be_undone() -> None:
    """What stood before it is lost; refused, never a division by 0."""
    layer, _ = only("transcoder")
    gain = torch.ones(16)
    gain[3] = 0.0
    with pytest.raises(UnsupportedReplacementError, match="gain of 0"):
        with_input_gain(layer, gain, None)


def test_slots_below_a_layer_are_not_kept_in_memory() -> None:
    """gemma-scope-2 stores a decoder for every layer; those below are left on the disk."""
    layers = Fixture(format=SetFormat.GEMMA_SCOPE_2_CLT, name="plain").open().layers
    last = layers[-1].read()
    assert isinstance(last, CrossLayerDictionary)
    assert last.W_dec.shape == (40, 1, 16)
    assert layers[0].info.memory_bytes - layers[-1].info.memory_bytes == 2 * 4 * 40 * 16


def test_the_input_hook_is_the_one_that_settles_what_is_read(tmp_path: Path) -> None:
    """TransformerLens' `hook_mlp_in` feeds the MLP's output in some versions; the module path goes first."""
    folder = copied(tmp_path, SetFormat.SAELENS, "transcoder")
    edited(folder / "cfg.json", lambda config: config["metadata"].update(hook_name="blocks.1.hook_mlp_in"))
    settled = opened(folder)
    assert (settled.ambiguous_input, settled.layers[0].pre_gain) == (False, False)
    edited(folder / "cfg.json", lambda config: config["metadata"].pop("hf_hook_name"))
    assert opened(folder).ambiguous_input
    normalised = "blocks.1.ln2.hook_normalized"
    edited(folder / "cfg.json", lambda config: config["metadata"].update(hook_name=normalised))
    before = opened(folder)
    assert (before.ambiguous_input, before.layers[0].pre_gain) == (False, True)
    assert before.layers[0].info.site_in == Site(kind=SiteKind.MLP_IN, layer=1)
