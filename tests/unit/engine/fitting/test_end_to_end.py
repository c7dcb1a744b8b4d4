"""The end-to-end phase's loss, and thresholds between the plain and the spliced run."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import copying, random_dictionary
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.calibration import calibrate
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.end_to_end import EndToEndTrainee, drift, kl_from
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import SplicedPass, calibrated, keep, plain_logits
from trephine.engine.hosted import HostedModel
from trephine.engine.sites import touching

ROWS = torch.randint(3, 200, (8, 24), generator=torch.Generator().manual_seed(0))
STREAMS = tuple(Site(kind=SiteKind.RESID_POST, layer=layer) for layer in range(2))


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A two-layer Llama."""
    return tiny_hosted("llama", n_layers=2)


def plain_streams(hosted: HostedModel) -> dict[Site, Tensor]:
    """Return the residual stream behind every layer of the plain run."""
    kept: dict[Site, Tensor] = {}
    with torch.no_grad(), touching(hosted.architecture, {s: partial(keep, kept, s) for s in STREAMS}):
        plain_logits(hosted, ROWS)
    return kept


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


def test_drift_is_the_error_that_reaches_the_stream(hosted: HostedModel):
    """Behind the only spliced layer, the stream is off by exactly what the dictionary gets wrong."""
    plain, dictionary = plain_streams(hosted), random_dictionary(1)
    spliced = SplicedPass(dictionaries=[dictionary], support=calibrated, watched=STREAMS)
    with torch.no_grad():
        spliced.run(hosted, ROWS)
    site = dictionary.place.sites_out[0]
    wrong = (spliced.made.outputs[site] - spliced.targets[site]).flatten(0, 1).square().sum(-1).mean()
    variance = plain[STREAMS[1]].flatten(0, 1).var(0, correction=0).sum()
    assert torch.equal(spliced.kept[STREAMS[0]], plain[STREAMS[0]])
    assert float(drift(spliced.kept, plain)) == pytest.approx(float(wrong / variance), rel=1e-4)


def test_a_splice_that_copies_does_not_drift(hosted: HostedModel):
    """SAEs that copy the very stream that is watched leave it alone; the splice comes before the look."""
    spliced = SplicedPass(dictionaries=[copying(0), copying(1)], support=calibrated, watched=STREAMS)
    with torch.no_grad():
        spliced.run(hosted, ROWS)
    assert float(drift(spliced.kept, plain_streams(hosted))) < 1e-8


def test_the_phase_lowers_drift_and_kl_together(hosted: HostedModel):
    """Both halves of the loss fall; neither is bought with the other."""
    dictionaries = [random_dictionary(0), random_dictionary(1)]

    def figures() -> tuple[float, float]:
        spliced = SplicedPass(dictionaries=dictionaries, support=calibrated, watched=STREAMS)
        with torch.no_grad():
            logits = spliced.run(hosted, ROWS)[:, 1:]
            plain = plain_logits(hosted, ROWS)[:, 1:].log_softmax(-1)
        return float(drift(spliced.kept, plain_streams(hosted))), float(kl_from(plain, logits).mean())

    before = figures()
    trainee = EndToEndTrainee(
        hosted, dictionaries, k=24, rate=Rate(peak=1e-2, steps=30), dead_after_tokens=10**6
    )
    for _ in range(30):
        trainee.step(ROWS)
    drifted, kl = figures()
    assert drifted < 0.5 * before[0]
    assert kl < 0.5 * before[1]


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
