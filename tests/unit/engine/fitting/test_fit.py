import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.engine.fitting.fits import fit, hosted_from_folder, kept, model_folder, request, text
from trephine.domain.commands import Progress
from trephine.domain.errors import BrokenCorpusError
from trephine.domain.fitting import EndToEnd, FitReport
from trephine.domain.replacements import LayerKind, SetFormat
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.contexts import cut, split
from trephine.engine.fitting.request import read_report
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.formats.opening import open_set

TUNED = EndToEnd(tokens=6000, lr=1e-3)


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


@pytest.fixture(scope="module")
def fitted(
    hosted: HostedModel, words: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FitReport]:
    """A cross-layer transcoder, local phase, end-to-end phase and control."""
    folder = tmp_path_factory.mktemp("fitted") / "set"
    return folder, fit(request(folder, hosted, words, end_to_end=TUNED), hosted)


def test_a_fit_reconstructs_far_better_than_it_began(fitted: tuple[Path, FitReport]):
    """FVU falls well below the first point's, which a warm start has already, and below 1."""
    report = fitted[1]
    first = [p for p in report.curve if p.phase == "local" and p.tokens == report.curve[0].tokens]
    for layer in report.layers:
        began = next(p for p in first if p.layer == layer.layer)
        assert layer.fvu < 0.6
        assert layer.fvu < 0.8 * began.fvu


def test_a_fit_has_the_l0_that_was_asked_for(fitted: tuple[Path, FitReport]):
    """Thresholds are calibrated: they hold on other text, as far as so little can tell."""
    report = fitted[1]
    assert all(layer.l0 == pytest.approx(report.recipe.k, rel=0.2) for layer in report.layers)


def test_the_report_holds_the_curve_and_the_gap(fitted: tuple[Path, FitReport]):
    """Every phase has points; the end-to-end phase has KL, the control and both times."""
    folder, report = fitted
    assert {point.phase for point in report.curve} == {"local", "end_to_end", "local_control"}
    assert all((point.kl is not None) == (point.phase == "end_to_end") for point in report.curve)
    gap = report.gap
    assert gap is not None
    assert gap.ce_local_control is not None
    assert abs(gap.l0_change) < 0.1
    assert gap.seconds_end_to_end > 0
    assert gap.seconds_local_control
    assert report.tokens == pytest.approx(30_000, rel=0.3)
    assert read_report(kept(folder).report) == report
    assert all(path.name == "config.yaml" or path.name.startswith("W_") for path in folder.iterdir())


def test_a_fitted_clt_loads_and_reconstructs_what_the_report_says(
    fitted: tuple[Path, FitReport], hosted: HostedModel, words: Path
):
    """Our reader of circuit-tracer's layout finds sites and weights whose FVU and L0 are the report's."""
    folder, report = fitted
    found = open_set(folder, SetFormat.AUTO, architecture=hosted.architecture, allow_unverified=False)
    layers = [reader.read() for reader in found.layers]
    wanted = report.recipe.tokens + report.recipe.end_to_end.tokens
    rows = cut(hosted, [words.read_text()], length=32, wanted_tokens=wanted, separated=False)
    held = split(rows, prepends_bos=False).held_out
    sites = [Site(kind=kind, layer=i) for i in range(2) for kind in (SiteKind.MLP_IN, SiteKind.MLP_OUT)]
    values = read_sites(hosted, held, sites)
    sums: dict[Site, Any] = {}
    for layer, told in zip(layers, report.layers, strict=True):
        code = layer.encode(values[layer.info.site_in])
        assert float(code.active.sum(-1).float().mean()) == pytest.approx(told.l0, rel=1e-3)
        for site, written in layer.decode(code).items():
            sums[site] = sums.get(site, 0.0) + written
        own = layer.info.sites_out[0]
        error = (sums[own] - values[own]).double().square().sum()
        assert float(
            error / values[own].double().var(0, correction=0).sum() / len(values[own])
        ) == pytest.approx(told.fvu, rel=1e-3)


@pytest.mark.parametrize("stage", ["local-0", "end_to_end", "local_control"])
def test_a_resumed_fit_equals_an_uninterrupted_one(
    fitted: tuple[Path, FitReport], hosted: HostedModel, words: Path, tmp_path: Path, stage: str
):
    """Cut off in the middle of any stage, it goes on from a checkpoint to the same weights and figures."""
    made = request(tmp_path / "set", hosted, words, end_to_end=TUNED)

    def killing(progress: Progress) -> None:
        if progress.stage == stage and 2 * progress.done > progress.total:
            raise Killed

    with pytest.raises(Killed):
        fit(made, hosted, killing)
    assert list((kept(tmp_path / "set").work / stage).glob("chunk-*"))
    report = fit(made, hosted)
    whole_folder, whole = fitted
    assert report.resumed == 1
    assert report.layers == whole.layers
    assert report.curve == whole.curve
    for file in whole_folder.glob("W_*.safetensors"):
        ours, theirs = load_file(tmp_path / "set" / file.name), load_file(file)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_finished_fit_is_not_done_again(fitted: tuple[Path, FitReport], hosted: HostedModel, words: Path):
    """Asked for once more, it writes the set out of its last checkpoints, without training."""
    folder, report = fitted
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    stages: list[str] = []
    made = request(folder, hosted, words, end_to_end=TUNED)
    again = fit(made, hosted, lambda progress: stages.append(progress.stage))
    assert set(stages) == {"measure"}
    assert (again.layers, again.curve, again.resumed) == (report.layers, report.curve, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_models_own_samples_are_the_default(hosted: HostedModel, tmp_path: Path):
    """Without a corpus the model writes the text, batch by batch; a second run samples nothing again."""
    made = request(tmp_path / "set", hosted, None, tokens=2000)
    stages: list[str] = []

    def killing(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == "local-0":
            raise Killed

    with pytest.raises(Killed):
        fit(made, hosted, killing)
    rows = load_file(kept(tmp_path / "set").rows)["rows"]
    assert rows.shape[1] == 32
    assert len(set(rows[:, 0].tolist())) > 20
    assert "sample" in stages
    stages.clear()
    report = fit(made, hosted, lambda progress: stages.append(progress.stage))
    assert "sample" not in stages
    assert report.layers


def test_junk_leaves_no_set(hosted: HostedModel, tmp_path: Path):
    """A corpus that is no text fails before anything is trained."""
    bad = tmp_path / "bad.txt"
    bad.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(BrokenCorpusError):
        fit(request(tmp_path / "set", hosted, bad), hosted)
    assert not (tmp_path / "set").exists()


def test_skipping_the_control_compares_with_the_local_phase(hosted: HostedModel, words: Path, tmp_path: Path):
    """Without a control the gap is measured against the set before the phase."""
    phase = EndToEnd(tokens=2000, lr=1e-3, local_control=False)
    report = fit(request(tmp_path / "set", hosted, words, tokens=4000, end_to_end=phase), hosted)
    gap = report.gap
    assert gap is not None
    assert gap.ce_local_control is None
    expected = (gap.ce_local - gap.ce_end_to_end) / (gap.ce_local - gap.ce_plain)
    assert gap.closed == pytest.approx(expected, rel=1e-4)
    assert report.recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER
