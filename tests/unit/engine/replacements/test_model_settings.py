"""What a SAELens file says of how the model was loaded (`model_from_pretrained_kwargs`) is never ignored."""

from __future__ import annotations

import pytest
import torch

from tests.builders import hosted_from, tiny_hosted, tiny_model
from tests.replacement_fixtures import edited
from tests.replacement_sets import activations, write_saes, write_transcoders
from tests.unit.engine.replacements.fakes import layer_info
from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import (
    LayerKind,
    LoadReplacementSet,
    ReplacementSource,
    SetFormat,
)
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.admission.splice import loaded_source, run_context, run_spliced
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.normalisation import UNNAMED_CENTRING, WITHOUT_MEAN
from trephine.engine.replacements.sets import opened

CENTRING = {"center_writing_weights": True}
MLP = SiteKind.MLP_IN, SiteKind.MLP_OUT


@pytest.fixture(scope="module")
def gpt2():
    """A model whose norms take the mean out of the stream."""
    return tiny_hosted("gpt2")


def written(hosted, folder, asked, *, sites=(SiteKind.RESID_POST,) * 2, centred=False, flat=False, hook=None):
    """Write one dictionary whose file says `asked`; `centred`: fitted on activations without their mean."""
    if sites[0] is sites[1]:
        write_saes(hosted, folder, kind=sites[0], layers=[1], centred=centred)
    else:
        write_transcoders(hosted, folder, layers=[1])

    def say(config):
        metadata = config["metadata"]
        metadata |= {} if asked is None else {"model_from_pretrained_kwargs": asked}
        metadata |= {} if hook is None else {"hook_name": hook}
        if flat:
            config.update(config.pop("metadata"))

    edited(folder / "layer_1" / "cfg.json", say)
    return folder


def read(hosted, folder):
    found = open_set(folder, SetFormat.AUTO, architecture=hosted.architecture, allow_unverified=False)
    return found.layers[0]


def plainly(folder):
    """Let the same dictionary's file say nothing."""
    edited(
        folder / "layer_1" / "cfg.json",
        lambda config: config["metadata"].pop("model_from_pretrained_kwargs"),
    )
    return folder


@pytest.mark.parametrize(
    "kind", [SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST, SiteKind.ATTN_OUT, SiteKind.MLP_OUT]
)
def test_a_centred_stream_is_what_is_read_and_the_mean_is_put_back(gpt2, kind, tmp_path):
    """As if the activation without its mean were encoded; what is written has the activation's own mean."""
    folder = written(gpt2, tmp_path, CENTRING, sites=(kind, kind), centred=True)
    reader = read(gpt2, folder)
    layer, site = reader.read(), reader.info.site_in
    plain = read(gpt2, plainly(folder)).read()
    (x,) = activations(gpt2, (site,), seed=1)
    x = x + 0.5  # a mean that cannot be missed
    mean = x.mean(-1, keepdim=True)
    assert reader.info.normalisation == f"none, {WITHOUT_MEAN}"
    code, expected = layer.encode(x), plain.encode(x - mean)
    torch.testing.assert_close(code.activations, expected.activations)
    torch.testing.assert_close(layer.encode_features(x, [3, 5]), expected.activations[:, [3, 5]])
    torch.testing.assert_close(layer.reconstruct(x)[site], plain.reconstruct(x - mean)[site] + mean)
    bias = layer.constants(code)[site]
    features = code.activations @ layer.decoders(range(96), site)
    torch.testing.assert_close(bias + features, layer.reconstruct(x)[site])
    torch.testing.assert_close(layer.encoders(range(96)).mean(-1), torch.zeros(96), atol=1e-6, rtol=0)


def test_centred_weights_write_the_stream_without_its_mean(gpt2):
    """What TransformerLens does to a model is what is done to an activation here."""
    sites = [
        Site(kind=kind, layer=layer)
        for layer in range(3)
        for kind in (
            SiteKind.RESID_POST,
            SiteKind.ATTN_OUT,
            SiteKind.MLP_OUT,
            SiteKind.MLP_IN,
            SiteKind.ATTN_Z,
        )
    ]
    plain, model = activations(gpt2, sites), tiny_model("gpt2")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
                weights -= weights.mean(-1, keepdim=True)
    for site, x, centred in zip(sites, plain, activations(hosted_from(model), sites), strict=True):
        concerned = site.kind not in (SiteKind.MLP_IN, SiteKind.ATTN_Z)
        expected = x - x.mean(-1, keepdim=True) if concerned else x
        torch.testing.assert_close(centred, expected, atol=1e-4, rtol=1e-4)


def test_it_is_admitted_on_what_it_was_trained_on(gpt2, tmp_path):
    """Read on the stream as it is, the same weights reconstruct worse and fire differently."""
    figures = {}
    for name, change in (("centred", lambda folder: folder), ("plain", plainly)):
        folder = change(written(gpt2, tmp_path / name, CENTRING, centred=True))
        session = Session(hosted=gpt2)
        source = ReplacementSource(name=name, folder=str(folder), accept_degraded=True)
        (figures[name],) = finish(
            load_replacement_set(session, LoadReplacementSet(source=source))
        ).admission.layers
    assert figures["centred"].fvu < 0.9 * figures["plain"].fvu
    assert abs(figures["centred"].l0 - 12) < 3


def test_with_its_error_the_model_is_the_plain_one(gpt2, tmp_path):
    """Law 2 holds: the reconstruction with the error of the plain run gives the plain logits."""
    folder = written(gpt2, tmp_path, CENTRING, centred=True)
    session = Session(hosted=gpt2)
    source = ReplacementSource(name="law", folder=str(folder), accept_degraded=True)
    finish(load_replacement_set(session, LoadReplacementSet(source=source)))
    given, ids = loaded_source(gpt2, "law", [1]), (5, 9, 40, 41, 17, 60)
    plain, values = run_context(gpt2, ids, {}, reads=given.sites)
    (site,) = given.sites_out
    with opened(gpt2, "law", [1]) as layers:
        error = values[site] - layers[1].reconstruct(values[site])[site]
    again = run_spliced(gpt2, ids, given, values, errors={site: error})
    torch.testing.assert_close(again, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", SiteKind.RESID_POST), ("gpt2", SiteKind.ATTN_Z), ("gpt2", SiteKind.MLP_IN)],
)
def test_centring_is_without_effect_elsewhere(family, kind, tmp_path):
    """RMSNorm models are never centred; heads' values and MLP inputs are the same in a centred model."""
    hosted = tiny_hosted(family)
    info = read(hosted, written(hosted, tmp_path, CENTRING, sites=(kind, kind))).info
    assert info.normalisation == layer_info(1).normalisation == "none"


@pytest.mark.parametrize("asked", [{}, {"dtype": "float16", "n_devices": 2}, {"fold_ln": True}])
def test_what_changes_nothing_on_the_stream_is_accepted(gpt2, asked, tmp_path):
    """Precision, devices and folded norms leave the stream as it is; so does what is off."""
    asked = asked | {"center_writing_weights": False, "made_up": None}
    assert read(gpt2, written(gpt2, tmp_path, asked)).info.normalisation == "none"


@pytest.mark.parametrize(
    ("sites", "asked", "says"),
    [
        (MLP, CENTRING, "without its mean over dimensions"),
        (MLP, {"fold_ln": True}, r"blocks\.L\.ln2\.hook_normalized"),
        ((SiteKind.ATTN_Z,) * 2, {"fold_value_biases": True}, "values of attention heads"),
        ((SiteKind.RESID_POST,) * 2, {"checkpoint_index": 0}, "another state of the model"),
        ((SiteKind.RESID_POST,) * 2, {"revision": "step3000"}, "another state of the model"),
        ((SiteKind.RESID_POST,) * 2, {"made_up": 3}, "made_up = 3: it is not known"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(gpt2, sites, asked, says, tmp_path):
    """The message says what is wrong and what to do."""
    with pytest.raises(UnsupportedReplacementError, match=says):
        read(gpt2, written(gpt2, tmp_path, asked, sites=sites))


def test_folded_norms_are_read_where_the_hook_says_so(gpt2, tmp_path):
    """`ln2.hook_normalized` lies before the gain by its name."""
    hook = "blocks.1.ln2.hook_normalized"
    reader = read(gpt2, written(gpt2, tmp_path, {"fold_ln": True}, sites=MLP, hook=hook))
    assert (reader.info.kind, reader.pre_gain) == (LayerKind.TRANSCODER, True)


def test_what_is_no_mapping_is_broken(gpt2, tmp_path):
    """A list says nothing that could be honoured."""
    with pytest.raises(BrokenReplacementError, match="it is a mapping of settings or null"):
        read(gpt2, written(gpt2, tmp_path, ["center_writing_weights"]))


@pytest.mark.parametrize(("asked", "unsaid"), [(None, True), ({}, False)])
def test_a_flat_file_that_is_older_than_the_setting_is_told_of(gpt2, asked, unsaid, tmp_path):
    """Only the release's entry in SAELens' list knows, so the verdict says where to look."""
    folder = written(gpt2, tmp_path, asked, flat=True)
    assert read(gpt2, folder).info.normalisation == ("none, " + UNNAMED_CENTRING if unsaid else "none")
    source = ReplacementSource(name="flat", folder=str(folder), accept_degraded=True)
    found = finish(
        load_replacement_set(Session(hosted=tiny_hosted("gpt2")), LoadReplacementSet(source=source))
    )
    assert (
        "1 of 1 layers do not say whether the model's weights were centred" in found.admission.why
    ) is unsaid
