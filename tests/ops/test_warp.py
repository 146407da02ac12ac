"""Warping equals PyTorch's and can be differentiated twice in the images."""

import pytest
import torch
import torch.nn.functional as F

from tests.tools import relative_error
from threedgp.ops.warp import PADDINGS, repeatable_grid_sample, warp


@pytest.mark.parametrize("padding", PADDINGS)
def test_warp_equals_pytorch_with_both_derivatives(padding):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 5, 6, generator=random, dtype=torch.float64, requires_grad=True)
    grid = torch.rand(2, 4, 7, 2, generator=random, dtype=torch.float64) * 3 - 1.5
    expected = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    assert relative_error(warp(images, grid, padding).detach(), expected.detach()) < 1e-14
    assert torch.autograd.gradcheck(lambda x: warp(x, grid, padding), images)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, grid, padding).pow(2), images)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_repeatable_form_equals_pytorchs_with_its_derivatives(padding, align_corners):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 7, dtype=torch.double, requires_grad=True)
    grid = (torch.rand(2, 4, 6, 2, dtype=torch.double) * 3 - 1.5).requires_grad_()
    weights = torch.randn(2, 3, 4, 6, dtype=torch.double)
    expected, actual = (
        F.grid_sample(images, grid, padding_mode=padding, align_corners=align_corners),
        repeatable_grid_sample(images, grid, padding, align_corners),
    )
    torch.testing.assert_close(actual, expected)
    for found, wanted in zip(
        *(torch.autograd.grad((value * weights).sum(), (images, grid)) for value in (actual, expected)), strict=True
    ):
        torch.testing.assert_close(found, wanted)
