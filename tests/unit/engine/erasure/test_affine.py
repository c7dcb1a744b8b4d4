"""LEACE and INLP by what they promise: nothing linear left, and no more changed than needed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError
from trephine.engine.erasure.affine import fit_inlp, fit_leace
from trephine.engine.erasure.logistic import fit_logistic

ROWS, WIDTH = 400, 12


def correlated(seed: int = 0, classes: int = 2) -> tuple[Tensor, Tensor]:
    """Anisotropic rows whose class moves a few directions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(classes, (ROWS,), generator=generator)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    x = torch.randn(ROWS, WIDTH, generator=generator) @ mixing
    return x + 2.0 * torch.randn(classes, WIDTH, generator=generator)[z], z


def probe_gain(x: Tensor, z: Tensor) -> float:
    """Nats per row by which a barely penalised probe beats the constant."""
    weight, bias = fit_logistic(x, z, penalty=1e-6)
    logits = x.double() @ weight + bias
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, z.double())
    share = float(z.double().mean())
    return -(share * math.log(share) + (1 - share) * math.log(1 - share)) - float(loss)


def test_after_leace_no_linear_probe_beats_the_majority():
    """Theorem: equal class means; the best probe's loss is the constant's."""
    x, z = correlated()
    erased = fit_leace(x, z)(x.double())
    assert probe_gain(x, z) > 0.3
    assert abs(probe_gain(erased, z)) < 1e-9
    weight, bias = fit_logistic(erased, z, penalty=1e-6)
    right = ((erased @ weight + bias > 0) == (z == 1)).double().mean()
    majority = max(float(z.double().mean()), 1 - float(z.double().mean()))
    assert float(right) == pytest.approx(majority)


@pytest.mark.parametrize("classes", [2, 3])
def test_leace_is_a_projection_of_rank_k_minus_one(classes: int):
    """Erasing twice changes nothing more, and k classes span k - 1 directions."""
    x, z = correlated(1, classes)
    eraser = fit_leace(x, z)
    once = eraser(x.double())
    assert eraser.rank == classes - 1
    assert torch.allclose(eraser(once), once, atol=1e-9)
    means = torch.stack([once[z == each].mean(0) for each in range(classes)])
    assert torch.allclose(means, means[:1].expand_as(means), atol=1e-9)


def test_leace_changes_less_than_projecting_the_mean_difference_out():
    """Of all affine erasers it moves rows least; the orthogonal one erases too, and moves them more."""
    x, z = correlated(2)
    wide = x.double()
    direction = wide[z == 1].mean(0) - wide[z == 0].mean(0)
    direction = direction / direction.norm()
    orthogonal = wide - ((wide - wide.mean(0)) @ direction)[:, None] * direction
    assert abs(probe_gain(orthogonal, z)) < 1e-9
    moved = (fit_leace(x, z)(wide) - wide).square().sum(1).mean()
    assert float(moved) < 0.9 * float((orthogonal - wide).square().sum(1).mean())


def test_leace_matches_the_formula_with_dense_matrix_functions():
    """Rows less W^-1 P W of them, centred; P projects onto W times the mean difference, W whitens."""
    x, z = correlated(3)
    wide = x.double()
    centred = wide - wide.mean(0)
    covariance = centred.T @ centred / ROWS
    values, axes = torch.linalg.eigh(covariance)
    whiten = axes @ torch.diag(values.rsqrt()) @ axes.T
    u = whiten @ (centred[z == 1].mean(0) - centred[z == 0].mean(0))
    projection = torch.outer(u, u) / (u @ u)
    expected = wide - centred @ (torch.linalg.inv(whiten) @ projection @ whiten).T
    assert torch.allclose(fit_leace(x, z)(wide), expected, atol=1e-9)


def test_leace_survives_constant_columns_and_fewer_rows_than_columns():
    """A singular covariance is whitened on its support alone."""
    x, z = correlated(4)
    x = torch.cat([x, torch.ones(ROWS, 2), x[:, :3]], dim=1)
    assert abs(probe_gain(fit_leace(x, z)(x.double()), z)) < 1e-6
    few, labels = x[:10], torch.tensor([0, 1] * 5)
    assert torch.isfinite(fit_leace(few, labels)(few)).all()


def test_inlp_lowers_the_probe_round_by_round_and_stops_by_itself():
    """More rounds leave less; directions are orthonormal; nothing is removed where nothing is told."""
    x, z = correlated(5)
    gains = [probe_gain(fit_inlp(x, z, rounds=rounds)(x.double()), z) for rounds in (0, 1, 4)]
    assert gains[0] > gains[1] > gains[2] >= -1e-9
    eraser = fit_inlp(x, z, rounds=WIDTH)
    identity = torch.eye(eraser.rank, dtype=torch.float64)
    assert torch.allclose(eraser.proj_left.T @ eraser.proj_left, identity, atol=1e-9)
    assert fit_inlp(fit_leace(x, z)(x.double()), z, rounds=5).rank == 0


@pytest.mark.parametrize("fit", [fit_leace, lambda x, z: fit_inlp(x, z, rounds=2)])
def test_one_class_is_refused(fit):
    """A concept with one value cannot be erased."""
    with pytest.raises(InvalidRequestError):
        fit(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
