"""The part of a fit that SAELens trains; skipped where it is not installed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.engine.fitting.fits import fit, hosted_from_folder, model_folder, request, text
from trephine.domain.commands import Progress
from trephine.domain.fitting import EndToEnd
from trephine.domain.replacements import LayerKind, SetFormat
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.formats.opening import open_set

sae_lens = pytest.importorskip("sae_lens", reason="trephine[fit] is not installed")

KINDS = {
    "transcoder": (LayerKind.TRANSCODER, SiteKind.MLP_IN),
    "skip": (LayerKind.SKIP_TRANSCODER, SiteKind.MLP_IN),
    "resid_post": (LayerKind.SAE, SiteKind.RESID_POST),
    "attn_z": (LayerKind.SAE, SiteKind.ATTN_Z),
    "resid_mid": (LayerKind.SAE, SiteKind.RESID_MID),
}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> HostedModel:
    """A two-layer Llama from a folder."""
    torch.set_num_threads(1)
    return hosted_from_folder(model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of random words."""
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(text(20_000))
    return path


@pytest.mark.parametrize("name", KINDS)
def test_a_fitted_layer_is_the_same_in_our_reader_and_in_saelens(
    name: str, hosted: HostedModel, words: Path, tmp_path: Path
):
    """FVU and L0 are as asked for, and both readers compute the same from the folder."""
    kind, site = KINDS[name]
    report = fit(request(tmp_path / "set", hosted, words, kind=kind, site=site, tokens=12_000), hosted)
    found = open_set(
        tmp_path / "set", SetFormat.AUTO, architecture=hosted.architecture, allow_unverified=False
    )
    assert found.prepends_bos is False
    for reader, told in zip(found.layers, report.layers, strict=True):
        layer, info = reader.read(), reader.info
        assert told.fvu < 0.75
        # 25 contexts calibrate and 25 are measured; L0 varies from context to context by a third.
        assert told.l0 == pytest.approx(report.recipe.k, rel=0.3)
        assert info.claimed_l0 == pytest.approx(told.l0)
        assert info.site_in == Site(kind=site, layer=told.layer)
        x = torch.randn(20, info.d_in, generator=torch.Generator().manual_seed(told.layer))
        theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "set" / f"layer_{told.layer}"))
        with torch.no_grad():
            assert torch.allclose(layer.encode(x).activations, theirs.encode(x), atol=1e-5)
            assert torch.allclose(layer.reconstruct(x)[info.sites_out[0]], theirs(x), atol=1e-5)


def test_the_auxiliary_loss_is_saelens_own():
    """Ours looks at dead features alone and comes to the same loss and gradients."""
    from trephine.engine.fitting.saelens import TrainingSae

    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=16, d_sae=40, k=3.0, apply_b_dec_to_input=False)
    generator = torch.Generator().manual_seed(0)
    ours = TrainingSae(config)
    x, out, pre = (torch.randn(30, width, generator=generator) for width in (16, 16, 40))
    for dead in (torch.arange(40) % 3 == 0, torch.arange(40) < 4, torch.zeros(40, dtype=torch.bool)):
        given = {"sae_in": x, "sae_out": out, "hidden_pre": pre, "dead_neuron_mask": dead}
        expected = sae_lens.BatchTopKTrainingSAE.calculate_topk_aux_loss(ours, **given)
        assert torch.allclose(ours.calculate_topk_aux_loss(**given), expected, rtol=1e-5)


def test_a_resumed_fit_equals_an_uninterrupted_one(hosted: HostedModel, words: Path, tmp_path: Path):
    """SAELens' trainer, put down in the middle and taken up, reaches the same weights."""
    kind = LayerKind.SKIP_TRANSCODER
    whole = fit(request(tmp_path / "whole", hosted, words, kind=kind), hosted)
    made = request(tmp_path / "set", hosted, words, kind=kind)

    def killing(progress: Progress) -> None:
        if progress.stage == "local-0" and 2 * progress.done > progress.total:
            raise Killed

    with pytest.raises(Killed):
        fit(made, hosted, killing)
    report = fit(made, hosted)
    assert report.resumed == 1
    assert report.curve == whole.curve
    for layer in range(2):
        path = f"layer_{layer}/sae_weights.safetensors"
        ours, theirs = load_file(tmp_path / "set" / path), load_file(tmp_path / "whole" / path)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_warm_start_begins_ahead(hosted: HostedModel, words: Path, tmp_path: Path):
    """Started from the MLP's neurons, a short transcoder fit is better than from random weights."""
    figures = {}
    for warm in (True, False):
        made = request(
            tmp_path / str(warm), hosted, words, kind=LayerKind.TRANSCODER, tokens=3000, warm_start=warm
        )
        figures[warm] = sum(layer.fvu for layer in fit(made, hosted).layers)
    assert figures[True] < figures[False]


def test_the_end_to_end_phase_follows(hosted: HostedModel, words: Path, tmp_path: Path):
    """SAEs on the residual stream are tuned through the whole model as transcoders are."""
    made = request(
        tmp_path / "set",
        hosted,
        words,
        kind=LayerKind.SAE,
        site=SiteKind.RESID_POST,
        tokens=8000,
        end_to_end=EndToEnd(tokens=16_000, lr=1e-3, local_control=False),
    )
    report = fit(made, hosted)
    kl = [point.kl for point in report.curve if point.phase == "end_to_end"]
    assert report.gap is not None
    assert kl[-1] < kl[0]
