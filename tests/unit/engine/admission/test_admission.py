"""Admission: a sound set passes, and each way to be wrong is refused with its figures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builders import FAMILIES, hosted_from, tiny_hosted, tiny_model
from tests.replacement_sets import write_saes, write_transcoders
from tests.unit.engine.replacements.fakes import fake_set, layer_info, random_layer
from trephine.domain.errors import AdmissionFailedError, BrokenReplacementError
from trephine.domain.replacements import LayerKind, SetFormat
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.admitting import admit, require_admitted
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.contexts import beginning, probe_text
from trephine.engine.replacements.conventions import following, readings
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.identity import check_model, check_sites
from trephine.engine.replacements.residency import LayerPager


@pytest.fixture(scope="module")
def hosted():
    return tiny_hosted("llama")


def probed(hosted, found, budget=10**8):
    """Admit a set and return the verdict with its pager."""
    pager = LayerPager(found.layers, budget_bytes=budget)
    infos = [reader.info for reader in found.layers]
    ways = readings(hosted.architecture, found)
    return finish(admit(hosted, pager, infos, ways, prepends_bos=found.prepends_bos)), pager


def opened_set(hosted, folder):
    return open_set(folder, SetFormat.AUTO, architecture=hosted.architecture, allow_unverified=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("write", [write_transcoders, write_saes])
def test_a_sound_set_is_admitted(family, write, tmp_path):
    """Every family, transcoders over the MLP (Gemma-2's post-norm included) and SAEs of the stream."""
    hosted = tiny_hosted(family)
    found, pager = probed(hosted, opened_set(hosted, write(hosted, tmp_path)), budget=2 * 96 * 96 * 4)
    admission = found.admission
    assert admission.passed, admission.why
    assert found.convention == "stored"
    for layer in admission.layers:
        assert layer.fvu < 1
        assert layer.margin is None
        assert layer.l0 > 0
    assert pager.residency().peak_bytes <= 2 * 96 * 96 * 4
    assert admission.tokens > 600
    assert "probe-1 (sha256 " in admission.text


@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_lost_normalisation_factor_is_said(hosted, factor, tmp_path):
    """Where a file scales its inputs and does not name by what, the verdict tells; where it does, not."""
    folder = write_saes(hosted, tmp_path, layers=[1])
    path = next(folder.rglob("cfg.json"))
    config = json.loads(path.read_text()) | {"normalize_activations": "expected_average_only_in"}
    config["metadata"]["norm_scaling_factor"] = factor
    path.write_text(json.dumps(config))
    found, _ = probed(hosted, opened_set(hosted, folder))
    assert ("1 of 1 layers were trained on scaled inputs" in found.admission.why) is (factor is None)


def test_the_figures_are_those_of_the_formulas(hosted):
    """FVU and L0 of one layer against a plain computation over the probe text, position 0 apart."""
    layer = random_layer(layer_info(1))
    found, _ = probed(hosted, fake_set([layer]))
    ids = hosted.tokenizer(probe_text(), add_special_tokens=False)["input_ids"]
    rows = [ids[i : i + 128] for i in range(0, len(ids), 128)]
    x, y = [], []

    def keep(_module, args, out):
        x.append(args[0][0])
        y.append(out[0])

    handle = hosted.architecture.blocks[1].mlp.module.register_forward_hook(keep)
    try:
        for row in rows:
            if len(row) >= 8:
                hosted.model(input_ids=torch.tensor([row]))
    finally:
        handle.remove()
    truth = torch.cat([part[1:] for part in y]).double()
    code = layer.encode(torch.cat([part[1:] for part in x]))
    error = truth - layer.decode(code)[layer.info.sites_out[0]].double()
    (seen,) = found.admission.layers
    assert seen.fvu == pytest.approx(
        float((error**2).sum() / (truth.var(0, unbiased=False) * len(truth)).sum()), rel=1e-5
    )
    start = torch.cat([part[:1] for part in y]).double()
    first = layer.encode(torch.cat([part[:1] for part in x]))
    missed = start - layer.decode(first)[layer.info.sites_out[0]].double()
    assert seen.l0_first == pytest.approx(float(first.active.sum(1).double().mean()), rel=1e-6)
    assert seen.fvu_first == pytest.approx(float((missed**2).sum() / (start**2).sum()), rel=1e-5)
    assert seen.l0 == pytest.approx(float(code.active.sum(1).double().mean()), rel=1e-6)
    assert seen.dead_share == pytest.approx(float((~code.active.any(0)).double().mean()))


def test_a_false_claim_is_refused_and_may_be_accepted(hosted, tmp_path):
    """An L0 of 5 times the claim fails in the layer that claims it; the figures and the remedy are named."""
    found = opened_set(hosted, write_transcoders(hosted, tmp_path))
    seen = found.layers[1].info.claimed_l0
    found.layers[1].__dict__["info"] = replace(found.layers[1].info, claimed_l0=seen / 5)
    admission = probed(hosted, found)[0].admission
    assert [layer.passed for layer in admission.layers] == [True, False, True]
    with pytest.raises(AdmissionFailedError, match=r"layer 1: L0 .* claimed.*--accept-degraded") as caught:
        require_admitted(admission, name="set", accept_degraded=False)
    assert caught.value.context["layer"] == 1
    require_admitted(admission, name="set", accept_degraded=True)


def test_without_claims_it_must_beat_the_mean(hosted):
    """A random dictionary claims nothing and explains nothing: FVU is 1 and more."""
    admission = probed(hosted, fake_set([random_layer(layer_info(0))]))[0].admission
    assert not admission.passed
    assert "no better than the mean" in admission.layers[0].why


def test_an_ambiguous_input_is_settled_by_measurement(hosted, tmp_path):
    """Trained after the gain and not said so: both are tried, `post_gain` wins, and the margin is told."""
    found = replace(opened_set(hosted, write_transcoders(hosted, tmp_path)), ambiguous_input=True)
    result = probed(hosted, found)[0]
    assert result.convention == "post_gain"
    assert result.admission.passed, result.admission.why
    assert all(layer.margin is not None for layer in result.admission.layers)
    assert max(layer.margin for layer in result.admission.layers) > 1.1


def test_what_was_trained_before_the_gain_is_read_so(tmp_path):
    """The same dictionaries, moved to before the gain: `pre_gain` wins and reconstructs as well."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(3)
    for block in model.model.layers:  # gains that spread as a trained model's do
        block.post_attention_layernorm.weight.copy_(torch.randn(32, generator=generator).exp())
    hosted = hosted_from(model)
    before = opened_set(hosted, write_transcoders(hosted, tmp_path / "post"))
    expected = probed(hosted, before)[0].admission
    for layer, block in enumerate(hosted.architecture.blocks):
        file = tmp_path / "post" / f"layer_{layer}" / "sae_weights.safetensors"
        tensors = load_file(file)
        tensors["W_enc"] = tensors["W_enc"] * block.mlp_norm.gain[:, None]
        save_file(tensors, file)
    found = replace(opened_set(hosted, tmp_path / "post"), ambiguous_input=True)
    result = probed(hosted, found)[0]
    assert result.convention == "pre_gain"
    assert result.admission.passed, result.admission.why
    for seen, was in zip(result.admission.layers, expected.layers, strict=True):
        assert seen.fvu == pytest.approx(was.fvu, rel=1e-3)
    ways = readings(hosted.architecture, found)
    reader = following(found.layers, next(way for way in ways if way.convention == "pre_gain"))[0]
    assert reader.read().encoder.input_gain is not None


def test_gains_of_one_need_no_choice(tmp_path):
    """Where the gain is 1 everywhere both conventions are the same, and that is no failure."""
    model = tiny_model("llama")
    for block in model.model.layers:
        block.post_attention_layernorm.weight.fill_(1.0)
    hosted = hosted_from(model)
    found = replace(opened_set(hosted, write_transcoders(hosted, tmp_path)), ambiguous_input=True)
    assert probed(hosted, found)[0].admission.passed


def test_a_close_call_between_conventions_is_refused(hosted, tmp_path, monkeypatch):
    """A sound set that does as well either way: nothing is settled, so it is refused, with both figures."""
    found = replace(opened_set(hosted, write_transcoders(hosted, tmp_path)), ambiguous_input=True)
    monkeypatch.setattr("trephine.engine.admission.admitting.read_as", lambda layer, reading: layer)
    admission = probed(hosted, found)[0].admission
    assert not admission.passed
    for layer in admission.layers:
        assert layer.fvu < 1
        assert layer.margin == pytest.approx(1.0)
        assert "cannot be settled: FVU post_gain" in layer.why
    with pytest.raises(AdmissionFailedError, match=r"1\.1 times is asked for.*--accept-degraded"):
        require_admitted(admission, name="set", accept_degraded=False)


def test_a_cross_layer_set_is_admitted_on_its_sums(hosted):
    """Layer 2 passes only because the contributions of layers 0 and 1 are counted in."""
    written = {0: (0, 1, 2), 1: (1, 2), 2: (2,)}
    layers = [
        random_layer(
            layer_info(
                layer,
                kind=LayerKind.CROSS_LAYER_TRANSCODER,
                sites_out=tuple(Site(kind=SiteKind.MLP_OUT, layer=to) for to in to_layers),
            )
        )
        for layer, to_layers in written.items()
    ]
    found = fake_set(layers)
    together = probed(hosted, found)[0].admission.layers
    alone = probed(hosted, fake_set(layers[2:]))[0].admission.layers
    assert together[0].layer == 0
    assert together[2].l0 == alone[0].l0
    assert together[2].fvu != pytest.approx(alone[0].fvu, rel=1e-3)


def test_contexts_begin_as_the_set_says(hosted):
    """BOS where it was trained so (EOS stands in where there is none), nothing where not, habit otherwise."""
    assert beginning(hosted, True).token_id == hosted.tokenizer.eos_token_id
    assert beginning(hosted, False).token_id is None
    undecided = beginning(hosted, None)
    assert undecided.token_id is None
    assert "does not say" in undecided.why


@pytest.mark.parametrize(
    "name", ["gpt2-small", "google/gemma-2-2b", "meta-llama/Llama-3.2-1B", "smollm2-135m"]
)
def test_a_set_of_another_model_is_refused_by_its_own_word(hosted, name):
    """Another family, or another size."""
    with pytest.raises(BrokenReplacementError, match="trained on"):
        check_model(hosted, name)


@pytest.mark.parametrize("name", [None, "", "tiny-llama", "my-finetune", "llama"])
def test_a_name_that_contradicts_nothing_passes(hosted, name):
    """Names prove little: only what cannot be true counts."""
    check_model(hosted, name)


def test_widths_and_sites_are_checked(hosted):
    """A wrong width names the site and both widths; a site that a parallel model lacks is named too."""
    with pytest.raises(BrokenReplacementError, match=r"48 wide at mlp_in of layer 1.*32 wide"):
        check_sites(hosted, [layer_info(1, d_in=48)])
    with pytest.raises(BrokenReplacementError, match="layer 7"):
        check_sites(hosted, [layer_info(7)])
    mid = Site(kind=SiteKind.RESID_MID, layer=1)
    with pytest.raises(BrokenReplacementError, match="resid_mid"):
        check_sites(tiny_hosted("gpt_neox"), [layer_info(1, site_in=mid, sites_out=(mid,))])
