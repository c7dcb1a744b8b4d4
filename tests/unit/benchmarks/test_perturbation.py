"""Every arm answers the same perturbations; what comes back is what running from the first layer says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.paired import changes
from benchmarks.perturbation import Answers, Perturbation, answered, perturbations
from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import random_dictionary
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.reconstruction import SplicedPass, calibrated, plain_logits
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

ROWS = torch.randint(3, 200, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A Llama of three layers."""
    return tiny_hosted("llama", n_layers=3)


@pytest.fixture(scope="module")
def dictionaries() -> list[Dictionary]:
    """Transcoders of all its layers."""
    return [random_dictionary(layer) for layer in range(3)]


def streams(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], perturbation: Perturbation | None
) -> list[Tensor]:
    """Run from the first layer, the perturbation added on the way; the stream behind every layer."""
    kept: dict[int, Tensor] = {}

    def add(layer: int, x: Tensor) -> None:
        if perturbation is not None and layer == perturbation.layer:
            x[torch.arange(len(x)), perturbation.positions] += perturbation.changes
        kept[layer] = x.clone()

    sites = {Site(kind=SiteKind.RESID_POST, layer=i): partial(add, i) for i in range(3)}
    with torch.no_grad(), touching(hosted.architecture, sites):
        if dictionaries:
            SplicedPass(dictionaries=dictionaries, support=calibrated).run(hosted, ROWS)
        else:
            plain_logits(hosted, ROWS)
    return [kept[layer] for layer in range(3)]


def test_answers_are_those_of_whole_passes(hosted: HostedModel, dictionaries: list[Dictionary]) -> None:
    """Passes that begin behind the perturbed layer change nothing; each depth is where it belongs."""
    asked = perturbations(hosted, dictionaries, ROWS, per_context=2, seed=0)
    assert [each.layer for each in asked] == [0, 0, 1, 1]
    answers = answered(hosted, {"ours": dictionaries}, ROWS, asked)["ours"]
    for number, each in enumerate(asked):
        assert (each.positions >= 1).all()
        true, spliced = (
            [
                after - before
                for after, before in zip(streams(hosted, d, each), streams(hosted, d, None), strict=True)
            ]
            for d in ((), dictionaries)
        )
        for depth in range(2):
            layer = each.layer + 1 + depth
            if layer == 3:
                assert answers.sizes[:, number, depth].eq(0).all()
                continue
            wrong = (spliced[layer] - true[layer]).square().sum((1, 2))
            size = true[layer].square().sum((1, 2))
            assert torch.allclose(answers.errors[:, number, depth].float(), wrong, rtol=1e-3, atol=1e-7)
            assert torch.allclose(answers.sizes[:, number, depth].float(), size, rtol=1e-3)


def test_every_set_answers_the_same(hosted: HostedModel, dictionaries: list[Dictionary]) -> None:
    """The truth is one; a set that stands beside others answers as it does alone."""
    asked = perturbations(hosted, dictionaries, ROWS, per_context=1, seed=0)
    other = [random_dictionary(layer, seed=7) for layer in range(3)]
    both = answered(hosted, {"ours": dictionaries, "other": other}, ROWS, asked)
    alone = answered(hosted, {"other": other}, ROWS, asked)["other"]
    assert both["other"].errors.equal(alone.errors)
    assert both["ours"].sizes.equal(alone.sizes)
    assert not both["ours"].errors.equal(alone.errors)


def test_a_change_is_told_with_its_interval() -> None:
    """An error half as large again is +50 %, certainly; one that is larger here and smaller there is not."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(20, 4, 3, generator=generator, dtype=torch.float64) + 1
    errors = sizes * torch.rand(20, 4, 3, generator=generator, dtype=torch.float64)
    base, more = Answers(errors=errors, sizes=sizes), Answers(errors=1.5 * errors, sizes=sizes)
    for change in changes([more, more], [base, base]):
        assert change.value == pytest.approx(0.5)
        assert change.low == pytest.approx(0.5, abs=1e-6)
    factors = torch.where(torch.arange(20) % 2 == 0, 1.5, 0.5)[:, None, None]
    mixed = Answers(errors=factors * errors, sizes=sizes)
    assert all(change.low < 0 < change.high for change in changes([mixed], [base]))
    assert all(change.value == change.low == change.high == 0 for change in changes([base], [base]))
