"""Products by oneDNN are float32 products, whatever the layout; all that does not suit it is left alone."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.models import products
from trephine.engine.models.products import WideLinears, add_product, linears_in, product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def wide_units(request, monkeypatch):
    """With oneDNN, on whatever processor this is, and without."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(products, "has_wide_units", lambda: request.param)
    return request.param


def normal(*shape: int, seed=0):
    """Random float32 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layouts():
    """One matrix `(24, 40)` as it lies, transposed, as columns and as every other row of a larger one."""
    columns, rows = normal(24, 120, seed=1).split(40, dim=1)[1], normal(48, 40, seed=2)[::2]
    return {
        "dense": normal(24, 40, seed=3),
        "transposed": normal(40, 24, seed=4).T,
        "columns": columns,
        "rows": rows,
    }


@pytest.mark.parametrize("layout", list(layouts()))
@pytest.mark.parametrize("shape", [(16, 24), (3, 5, 24), (1, 24), (0, 24)], ids=str)
def test_a_product_is_the_float32_product(shape, layout, wide_units):
    """For rows of any batch, matrices of any layout."""
    rows, matrix = normal(*shape), layouts()[layout]
    found = product(rows, matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (rows.double() @ matrix.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", list(layouts()))
def test_a_product_is_added_in_place(layout, wide_units):
    """To what is there already, and to a slice of something larger."""
    rows, matrix, onto = normal(16, 24), layouts()[layout], normal(20, 40, seed=5)
    before, expected = onto.clone(), (onto[2:18].double() + rows.double() @ matrix.double()).float()
    add_product(onto[2:18], rows, matrix)
    torch.testing.assert_close(onto[2:18], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(onto[:2], before[:2])
    assert torch.equal(onto[18:], before[18:])


def test_rows_that_are_strided_are_read_as_such(wide_units):
    """Adjoints of one position of many."""
    adjoint, matrix = normal(16, 7, 24), normal(24, 40, seed=1)
    torch.testing.assert_close(
        product(adjoint[:, 3], matrix), adjoint[:, 3].contiguous() @ matrix, rtol=1e-5, atol=1e-5
    )


@needs_onednn
def test_many_rows_are_multiplied_in_calls_of_few_shapes(monkeypatch):
    """Every shape costs memory for good; however many rows there are, calls have at most so many."""
    monkeypatch.setattr(products, "has_wide_units", lambda: True)
    monkeypatch.setattr(products, "_AT_ONCE", 16)
    asked: list[int] = []
    call = products._call

    def told(rows, weight, bias):
        asked.append(rows.numel() // rows.shape[-1])
        return call(rows, weight, bias)

    monkeypatch.setattr(products, "_call", told)
    rows, matrix, onto = normal(5, 10, 24), normal(24, 40, seed=1), normal(50, 40, seed=2)
    expected = rows @ matrix
    torch.testing.assert_close(product(rows, matrix), expected, rtol=1e-5, atol=1e-5)
    assert asked == [16, 16, 16, 2]
    asked.clear()
    added = onto + expected.view(50, 40)
    add_product(onto, rows.view(50, 24), matrix)
    torch.testing.assert_close(onto, added, rtol=1e-5, atol=1e-5)
    assert asked == [16, 16, 16]  # two rows are left for `@`


@pytest.mark.parametrize("layout", list(layouts()))
def test_onednn_is_given_dense_weights_alone(layout):
    """It computes with others a thousand times slower; copies are made of those alone."""
    weight = layouts()[layout].T
    dense = products._dense(weight)
    assert torch.equal(dense, weight)
    assert dense.is_contiguous() or dense.T.is_contiguous()
    assert (dense.data_ptr() == weight.data_ptr()) == (layout in ("dense", "transposed"))


@needs_onednn
def test_what_does_not_suit_onednn_is_left_alone(monkeypatch):
    """Other types, few rows, and what autograd follows: the same bits as without."""
    monkeypatch.setattr(products, "has_wide_units", lambda: True)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(products, "_linear", lambda rows, *_: asked.append(rows))
    rows, matrix = normal(16, 24), normal(24, 40, seed=1)
    for given in (rows.double(), rows.bfloat16(), rows[:7]):
        own = matrix.to(given.dtype)
        assert torch.equal(product(given, own), given @ own)
    followed = matrix.clone().requires_grad_()
    product(rows, followed).sum().backward()
    torch.testing.assert_close(followed.grad, rows.sum(0)[:, None].expand(24, 40))
    assert not asked
    layer = torch.nn.Linear(24, 40)
    with WideLinears():
        layer(rows).sum().backward()
        layer.weight.requires_grad_(requires_grad=False)
        layer(rows).sum().backward()
    assert not asked
    torch.testing.assert_close(layer.bias.grad, torch.full((40,), 32.0))
    with torch.no_grad():
        product(rows, followed)
    assert len(asked) == 1


@pytest.mark.parametrize("layout", list(layouts()))
def test_rows_are_differentiated_through_a_frozen_matrix(layout, wide_units):
    """As attacks train perturbations and adapters in frozen models."""
    matrix, onto = layouts()[layout], normal(2, 16, 40, seed=6)
    expected, found, mapped = (normal(2, 16, 24).requires_grad_() for _ in range(3))
    ((expected @ matrix) * onto).sum().backward()
    (product(found, matrix) * onto).sum().backward()
    with WideLinears():
        (torch.nn.functional.linear(mapped, matrix.T) * onto).sum().backward()
    for other in (found, mapped):
        torch.testing.assert_close(other.grad, expected.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_of_a_model_are_the_same_inside(bias, wide_units):
    """Modules and functions; few rows are the same to the bit."""
    layer = torch.nn.Linear(24, 40, bias=bias)
    rows = normal(2, 16, 24)
    with torch.inference_mode():
        expected, one = layer(rows), layer(rows[:, :1])
        with WideLinears():
            found, few = layer(rows), layer(rows[:, :1])
            keyed = torch.nn.functional.linear(rows, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(few, one)
    assert torch.equal(keyed, expected)


def test_models_that_gain_nothing_are_left_alone(wide_units):
    """A mode costs every call of a pass, on a GPU a share of its time."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert isinstance(linears_in(torch.float32, cpu), WideLinears) is wide_units
    for dtype, device in ((torch.bfloat16, cpu), (torch.float64, cpu), (torch.float32, gpu)):
        assert not isinstance(linears_in(dtype, device), WideLinears)
