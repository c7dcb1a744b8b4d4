"""The end-to-end phase, and thresholds between the plain and the spliced run."""

import pytest
import torch

from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import random_dictionary
from trephine.engine.fitting import end_to_end
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.calibration import calibrate
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.end_to_end import EndToEndTrainee, kl_from
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import (
    SplicedPass,
    calibrated,
    plain_logits,
    reconstruct,
    sites_of,
    unexplained,
)
from trephine.engine.models.hosted import HostedModel

ROWS = torch.randint(3, 200, (8, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A two-layer Llama."""
    return tiny_hosted("llama", n_layers=2)


def spliced_l0(hosted: HostedModel, dictionaries: list[Dictionary]) -> list[float]:
    """Return every layer's L0 with all of them spliced."""
    spliced = SplicedPass(dictionaries=dictionaries, support=calibrated)
    with torch.no_grad():
        spliced.run(hosted, ROWS)
    return [float((a > 0).sum(-1).float().mean()) for a in spliced.made.activations.values()]


def plain_l0(hosted: HostedModel, dictionaries: list[Dictionary]) -> list[float]:
    """Return every layer's L0 on the plain run."""
    found = []
    for dictionary in dictionaries:
        x = read_sites(hosted, ROWS, [dictionary.place.site_in])[dictionary.place.site_in]
        active = calibrated(dictionary, dictionary.pre(x).detach())
        found.append(float((active > 0).sum(-1).float().mean()))
    return found


def test_the_phase_lowers_error_and_kl_together(hosted: HostedModel):
    """Both halves of the loss fall; neither is bought with the other."""
    dictionaries = [random_dictionary(0), random_dictionary(1)]

    def figures() -> tuple[float, float]:
        spliced = SplicedPass(dictionaries=dictionaries, support=calibrated)
        with torch.no_grad():
            logits = spliced.run(hosted, ROWS)[:, 1:]
            plain = plain_logits(hosted, ROWS)[:, 1:].log_softmax(-1)
            errors = unexplained(spliced.made, spliced.targets)
        return float(sum(errors.values())), float(kl_from(plain, logits).mean())

    before = figures()
    trainee = EndToEndTrainee(
        hosted, dictionaries, k=24, rate=Rate(peak=1e-2, steps=30), dead_after_tokens=10**6
    )
    for _ in range(30):
        trainee.step(ROWS)
    error, kl = figures()
    assert error < 0.5 * before[0]
    assert kl < 0.5 * before[1]


def test_the_phase_learns_from_the_plain_run_too(hosted: HostedModel, monkeypatch: pytest.MonkeyPatch):
    """With the errors on the plain run alone in the loss, those errors fall."""

    def plain_errors() -> float:
        sites = sites_of(dictionaries)
        rows = read_sites(hosted, ROWS, sites)
        with torch.no_grad():
            return float(sum(unexplained(reconstruct(dictionaries, rows, calibrated), rows).values()))

    dictionaries = [random_dictionary(0), random_dictionary(1)]
    monkeypatch.setattr(end_to_end, "PLAIN_WEIGHT", 1.0)
    monkeypatch.setattr(end_to_end, "kl_from", lambda plain, logits: 0.0 * logits.sum(-1))
    before = plain_errors()
    trainee = EndToEndTrainee(
        hosted, dictionaries, k=24, rate=Rate(peak=1e-2, steps=30), dead_after_tokens=10**6
    )
    for _ in range(30):
        trainee.step(ROWS)
    assert plain_errors() < 0.5 * before


def test_thresholds_lie_between_the_plain_and_the_spliced_run(hosted: HostedModel):
    """Over both runs together k features per position remain; the plain run alone gives another L0."""
    dictionaries = [random_dictionary(0), random_dictionary(1)]
    calibrate(hosted, dictionaries, ROWS, 5)
    assert plain_l0(hosted, dictionaries) == pytest.approx([5, 5], rel=0.01)
    apart = abs(spliced_l0(hosted, dictionaries)[1] - 5)
    assert apart > 0.1
    calibrate(hosted, dictionaries, ROWS, 5, spliced=True)
    plain, spliced = plain_l0(hosted, dictionaries), spliced_l0(hosted, dictionaries)
    assert [(a + b) / 2 for a, b in zip(plain, spliced, strict=True)] == pytest.approx([5, 5], rel=0.01)
    assert abs(spliced[1] - 5) < apart
