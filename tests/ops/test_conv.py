"""3x3 convolutions with fewer multiplications: the same function as the direct sum, to any order of derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tools import relative_error
from threedgp.ops import native
from threedgp.ops.conv import conv2d

SIZES = [(2, 16, 16, 16, 16), (1, 48, 80, 18, 26), (3, 64, 32, 10, 20), (8, 112, 128, 8, 8), (5, 32, 48, 8, 14)]


def inputs(batch: int, channels: int, outputs: int, height: int, width: int, dtype=torch.float64) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=random, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, generator=random, dtype=torch.float64) / (9 * channels) ** 0.5
    grad = torch.randn(batch, outputs, height, width, generator=random, dtype=torch.float64)
    return tuple(value.to(dtype) for value in (x, weight, grad))


def require_winograd(x: Tensor, weight: Tensor) -> None:
    library = native.library(x, weight)
    if library is None or not library.conv3x3_fits(x, weight):
        pytest.skip("no compiler, or no vector instructions worth it: convolutions take the direct way")


def derivatives(x: Tensor, weight: Tensor, grad: Tensor, function) -> list[Tensor]:
    """Value, first derivatives, and those of a gradient penalty."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight, 1)
    first = torch.autograd.grad(y, [x, weight], grad, retain_graph=True)
    (slope,) = torch.autograd.grad((y.tanh() * grad).sum(), x, create_graph=True)
    second = torch.autograd.grad(slope.square().sum(), [x, weight])
    return [y.detach(), *first, *second]


@pytest.mark.parametrize("size", SIZES)
def test_values_and_derivatives_are_those_of_the_direct_sum(size):
    x, weight, grad = inputs(*size)
    require_winograd(x.float(), weight.float())
    wanted = derivatives(x, weight, grad, lambda x, weight, padding: F.conv2d(x, weight, padding=padding))
    found = derivatives(x.float(), weight.float(), grad.float(), conv2d)
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) < 2e-6


def test_one_derivative_can_be_asked_for_alone():
    x, weight, grad = inputs(2, 16, 32, 16, 16, torch.float32)
    require_winograd(x, weight)
    both = torch.autograd.grad(conv2d(x.requires_grad_(), weight.requires_grad_(), 1), [x, weight], grad)
    only_x = torch.autograd.grad(conv2d(x, weight.detach(), 1), x, grad)
    only_weight = torch.autograd.grad(conv2d(x.detach(), weight, 1), weight, grad)
    assert torch.equal(both[0], only_x[0])
    assert torch.equal(both[1], only_weight[0])


def test_the_number_of_threads_changes_no_bit():
    x, weight, grad = inputs(3, 32, 48, 22, 14, torch.float32)
    require_winograd(x, weight)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(derivatives(x, weight, grad, conv2d)[:3])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "size", [(2, 16, 16, 15, 16), (2, 12, 16, 16, 16), (2, 16, 20, 16, 16), (1, 16, 16, 4, 4), (1, 256, 256, 16, 16)]
)
def test_other_shapes_take_the_direct_way(size):
    x, weight, _grad = inputs(*size, torch.float32)
    library = native.library(x, weight)
    assert library is None or not library.conv3x3_fits(x, weight)
    assert torch.equal(conv2d(x, weight, 1), F.conv2d(x, weight, padding=1))


def test_values_that_are_no_numbers_stay_visible():
    x, weight, _ = inputs(1, 16, 16, 16, 16, torch.float32)
    x[0, 3, 8, 8] = torch.nan
    seen = conv2d(x, weight, 1).isnan()
    assert seen[0, :, 7:10, 7:10].all()
