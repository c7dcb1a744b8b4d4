"""Heads without the attribute: what is forbidden, what is preferred, how far the covariance is shrunk."""

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.covariances import covariance_of
from trephine.engine.spurious.erasing import (
    changed_directions,
    erased_head,
    fit_erased,
)
from trephine.engine.spurious.heads import STOCK
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.study import open_study
from trephine.engine.spurious.vectors import Twins

PROBE = Readout(layer=1, pooling=Pooling.MEAN)


def _confounded(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors (n, 12) whose label is written weakly on axis 0, and an attribute, equal to it, on axis 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    y = torch.arange(n) % 2
    x[:, 0] += 2 * (2 * y - 1)
    x[:, 1] += 6 * (2 * y - 1)
    attribute = torch.zeros(12)
    attribute[1] = 12.0
    return x, y, attribute


@pytest.mark.parametrize("readout", [PROBE, STOCK], ids=["probe", "stock"])
def test_the_attribute_moves_nothing(readout):
    """The decision does not change along a forbidden direction, and still tells the labels apart."""
    x, y, attribute = _confounded(400)
    head = fit_erased(readout, x, y, attribute[None])
    moved = head.margin(x + 5 * attribute) - head.margin(x)
    assert moved.abs().max() < 1e-4 * head.margin(x).abs().mean()
    assert (head.decide(x) == y).double().mean() > 0.95


def test_crossed_groups_are_decided_by_the_label():
    """Where attribute and label are at odds, a free head follows the one and this head the other."""
    x, y, attribute = _confounded(400)
    crossed, label, _ = _confounded(400, seed=1)
    crossed[:, 1] *= -1
    free = fit_erased(PROBE, x, y, torch.zeros(0, 12))
    erased = fit_erased(PROBE, x, y, attribute[None])
    assert (free.decide(crossed) == label).double().mean() < 0.05
    assert (erased.decide(crossed) == label).double().mean() > 0.95


def test_several_directions_and_a_repeated_one():
    """Every row is forbidden; one that says nothing new changes nothing."""
    x, y, attribute = _confounded(400)
    other = torch.zeros(12)
    other[2] = 1.0
    head = fit_erased(PROBE, x, y, torch.stack([attribute, other, 3 * attribute]))
    assert head.direction[[1, 2]].abs().max() < 1e-5
    twice = fit_erased(PROBE, x, y, torch.stack([attribute, other]))
    torch.testing.assert_close(head.direction, twice.direction, rtol=1e-4, atol=1e-6)


def test_noise_within_a_label_costs_weight():
    """Of two axes that tell the label alike, the one that varies within a label gets less."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(600) % 2
    x = 0.5 * torch.randn(600, 2, generator=generator)
    x[:, 1] *= 8
    x += (2 * y - 1)[:, None]
    head = fit_erased(PROBE, x, y, torch.zeros(0, 2))
    assert head.direction[0] > 20 * head.direction[1].abs()


def test_nothing_left_is_no_head():
    """None if the forbidden direction is all that tells labels apart; a constant input is no cause."""
    y = torch.arange(40) % 2
    x = torch.zeros(40, 3)
    x[:, 0] = (2 * y - 1) + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    assert fit_erased(PROBE, x, y, torch.tensor([[1.0, 0.0, 0.0]])) is None
    kept = fit_erased(PROBE, x, y, torch.tensor([[0.0, 1.0, 0.0]]))
    assert kept is not None
    assert (kept.decide(x) == y).all()


def test_the_stock_form_has_no_bias():
    """Half-way between the means lies on the boundary without one."""
    x, y, attribute = _confounded(400)
    head = fit_erased(STOCK, x + 3.0, y, attribute[None])
    assert not head.bias.any()
    middle = torch.stack([(x + 3.0)[y == label].mean(0) for label in (0, 1)]).mean(0)
    assert abs(float(head.margin(middle[None]))) < 1e-4 * float(head.margin(x + 3.0).abs().mean())


def test_edits_that_move_texts_differently_are_forbidden_whole():
    """Changes of opposite sign have no mean; what holds most of them is taken, what is small is not."""
    generator = torch.Generator().manual_seed(0)
    originals, amounts = torch.randn(200, 6, generator=generator), torch.randn(200, 2, generator=generator)
    twins = originals.clone()
    twins[:, 1] += 3 * amounts[:, 0]
    twins[:, 4] += 2 * amounts[:, 1]
    twins[:, 5] += 0.1
    found = changed_directions(originals, twins)
    assert found.shape == (2, 6)
    plane = found.T @ found
    assert plane[1, 1] > 0.99 < plane[4, 4]
    assert plane[5, 5] < 0.01


def test_twins_say_what_varies_within_a_label():
    """An edit also moves what is too little to be forbidden: a head that is told of the edits leaves that."""
    x, y, attribute = _confounded(400)
    sides = (2 * y - 1)[:, None]
    aside = torch.zeros(12)
    aside[3] = 0.8
    x = x + sides * aside
    twins = x - sides * (attribute + 2 * aside)
    told = Twins(rows=torch.arange(0, 400, 4), vectors=twins[::4])
    moved = []
    for known in (None, told):
        head = fit_erased(PROBE, x, y, attribute[None], twins=known)
        assert head is not None
        moved.append(float((head.margin(twins) - head.margin(x)).abs().mean() / head.margin(x).std()))
    assert moved[1] < 0.5 * moved[0]


def test_a_twin_counts_as_a_text_of_its_label():
    """Twins that are the texts themselves change nothing but how often those count."""
    x, y, attribute = _confounded(300)
    everything = torch.arange(300)
    alone = fit_erased(PROBE, x, y, attribute[None])
    doubled = fit_erased(PROBE, x, y, attribute[None], twins=Twins(rows=everything, vectors=x))
    again = fit_erased(PROBE, torch.cat([x, x]), torch.cat([y, y]), attribute[None])
    assert alone is not None
    assert doubled is not None
    assert again is not None
    torch.testing.assert_close(doubled.direction, again.direction)
    assert not torch.equal(doubled.direction, alone.direction)


def test_shrinkage_follows_the_noise():
    """Few rows are drawn far towards the mean variance, many hardly; the share is Ledoit and Wolf's."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 3.0, 30).double()
    few = torch.randn(20, 30, generator=generator).double() * spread
    many = torch.randn(20_000, 30, generator=generator).double() * spread

    def share(rows: torch.Tensor) -> float:
        plain, n = rows.T @ rows / len(rows), len(rows)
        mean = plain.diagonal().mean() * torch.eye(30).double()
        spreads = sum((torch.outer(row, row) - plain).square().sum() for row in rows[:2000])
        return float(spreads * (n / min(n, 2000)) / n**2 / (plain - mean).square().sum())

    for rows in (few, many):
        plain = rows.T @ rows / len(rows)
        found = covariance_of(rows).shrunk()
        taken = 1 - float((found - found.diagonal().diag()).norm() / (plain - plain.diagonal().diag()).norm())
        assert taken == pytest.approx(min(share(rows), 1.0), rel=0.05)
    assert share(few) > 0.3 > 0.01 > share(many)
    half = covariance_of(few)
    assert torch.equal(half.shrunk(0.0), half.plain)
    torch.testing.assert_close(half.shrunk(0.5), (half.shrunk() + half.plain) / 2)
    assert torch.equal(half.shrunk(1e9), half.plain.diagonal().mean() * torch.eye(30).double())


def test_copies_of_a_text_tell_no_more_than_the_text():
    """Rows that are repeated within their source are shrunk as if each were there once."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(24, 30, generator=generator).double() * torch.linspace(0.2, 3.0, 30).double()
    copies, sources = rows.repeat_interleave(5, 0), torch.arange(24).repeat_interleave(5)
    once = covariance_of(rows, torch.arange(24)).shrunk()
    torch.testing.assert_close(covariance_of(copies, sources).shrunk(), once)
    off = ~torch.eye(30, dtype=torch.bool)
    trusted = covariance_of(copies).shrunk()[off].abs().sum()
    assert trusted > 1.5 * once[off].abs().sum(), "copies were taken for news"


def test_noise_between_sources_is_that_of_their_products():
    """Whether a source has fewer rows than there are dimensions or more."""
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).double()
    rows *= torch.linspace(1, 9, 6).double()
    sources = torch.tensor([0] * 12 + [1] * 6 + [2] * 2 + list(range(3, 23)))
    plain = rows.T @ rows / 40
    parts = [rows[sources == one] for one in range(23)]
    noise = sum((own.T @ own - len(own) * plain).square().sum() for own in parts) / 40**2 * 23 / 22
    distance = (plain - plain.diagonal().mean() * torch.eye(6).double()).square().sum()
    assert 0 < float(noise / distance) < 1
    assert covariance_of(rows, sources).share == pytest.approx(float(noise / distance), rel=1e-9)


@pytest.mark.parametrize("readout", [PROBE, STOCK])
@pytest.mark.parametrize("count", [1, 4])
def test_texts_that_do_not_vary_make_no_head(readout, count):
    """One text of either label, or copies in the head's eyes, tell nothing of variance: none is trained."""
    pooled = torch.cat([torch.zeros(count, 6), torch.ones(count, 6)])
    y = torch.tensor([0] * count + [1] * count)
    assert fit_erased(readout, pooled, y, torch.eye(6)[:1]) is None


def test_an_edit_that_changes_nothing_forbids_nothing():
    """Axes of no change are any axes."""
    same = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    assert not len(changed_directions(same, same))
    moved = same.clone()
    moved[:, 3] += 1.0
    assert changed_directions(same, moved).shape == (1, 20)


@pytest.mark.parametrize(("count", "known"), [(8, True), (7, False)])
def test_environments_are_sources_from_eight_on(count, known):
    """The head of a request whose texts have environments knows them; of fewer no noise is told.

    With a validation split nothing is held out, which would take its share of every environment.
    """
    hosted, texts = tiny_hosted("llama"), ambiguous()
    placed = tuple(replace(one, environment=f"e{number // 2 % count}") for number, one in enumerate(texts))
    heads = []
    for training in (texts, placed):
        command = RemoveSpuriousFeatures(
            training=training,
            validation=balanced(),
            attribute_texts=attribute_texts(),
            decision=ProbeHead(layer=0, pooling=Pooling.MEAN),
        )
        heads.append(finish(erased_head(finish(open_study(hosted, command)), (), "erased")))
    assert torch.allclose(heads[0].weight, heads[1].weight, rtol=1e-4, atol=1e-6) is not known
