"""Where training starts: neurons that never fire are no features, whatever is asked for."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builders import tiny_folder
from tests.unit.engine.fitting.fits import SMALL, fit, hosted_from_folder, request, text
from trephine.domain.fitting import EndToEnd
from trephine.domain.replacements import LayerKind
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.start import places, started
from trephine.engine.models.hosted import HostedModel

LAYERS, SILENT = 2, (0, 5, 47)
ROWS = torch.randint(3, 200, (40, 24), generator=torch.Generator().manual_seed(0))
needs_saelens = pytest.mark.skipif(find_spec("sae_lens") is None, reason="trephine[fit] is not installed")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def hosted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostedModel:
    """A two-layer model in which some neurons never fire, or write nothing."""
    torch.set_num_threads(1)
    folder = tiny_folder(request.param, tmp_path_factory.mktemp("model") / "tiny", n_layers=LAYERS)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.endswith("mlp.c_fc.bias"):
            value[list(SILENT)] = -1e4
        if name.endswith("mlp.down_proj.weight"):
            value[:, list(SILENT)] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return hosted_from_folder(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of random words."""
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(text(12_000))
    return path


def per_neuron(hosted: HostedModel) -> int:
    """Candidates that warm starts take from one neuron."""
    return 3 if hosted.architecture.blocks[0].mlp.gated else 1


def candidates(hosted: HostedModel) -> int:
    """Count what warm starts choose from."""
    return per_neuron(hosted) * hosted.architecture.d_mlp


@pytest.mark.parametrize("spare", [0, 10])
@pytest.mark.parametrize(
    "kind", [LayerKind.TRANSCODER, LayerKind.SKIP_TRANSCODER, LayerKind.CROSS_LAYER_TRANSCODER]
)
def test_what_never_fires_is_no_feature(hosted: HostedModel, kind: LayerKind, spare: int):
    """Every decoder has a direction, and the features that are left over are those of a random start."""
    asked = replace(SMALL, kind=kind, d_sae=candidates(hosted) + spare)
    pairs = places(asked, range(LAYERS))
    sites = list(dict.fromkeys(site for site_in, outs in pairs for site in (site_in, *outs)))
    sample = read_sites(hosted, ROWS, sites)
    warm = started(hosted, asked, range(LAYERS), sample)
    cold = started(hosted, replace(asked, warm_start=False), range(LAYERS), sample)
    for made, drawn in zip(warm, cold, strict=True):
        assert float(made.norms().detach().min()) > 1e-4
        assert all(bool(torch.isfinite(p).all()) for p in made.parameters())
        left = per_neuron(hosted) * len(SILENT) + spare
        assert torch.equal(made.W_enc[:, -left:], drawn.W_enc[:, -left:])
        assert torch.equal(made.W_dec[:, -left:], drawn.W_dec[:, -left:])
        assert not torch.equal(made.W_dec[:, 0], drawn.W_dec[:, 0])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(LayerKind.TRANSCODER, marks=needs_saelens),
        LayerKind.CROSS_LAYER_TRANSCODER,
    ],
)
def test_all_candidates_can_be_asked_for(hosted: HostedModel, kind: LayerKind, words: Path, tmp_path: Path):
    """A fit with as many features as candidates runs through both phases, with figures that are numbers."""
    made = request(
        tmp_path / "set",
        hosted,
        words,
        kind=kind,
        d_sae=candidates(hosted),
        tokens=4000,
        end_to_end=EndToEnd(tokens=2000, lr=1e-3),
    )
    report = fit(made, hosted)
    assert all(layer.fvu < 1 for layer in report.layers)
    assert all(point.fvu == point.fvu for point in report.curve)
