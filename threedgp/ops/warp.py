"""Warping images along a fixed sampling grid, differentiable in the images as often as one likes.

PyTorch's own grid_sample cannot be differentiated twice in all supported versions, and the gradient penalty must go
through every augmentation of the discriminator's input.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zeros", "border", "reflection")  # in the order of PyTorch's internal numbers


def warp(images: Tensor, grid: Tensor, padding: Literal["zeros", "border", "reflection"] = "zeros") -> Tensor:
    """Bilinear samples of images, pixel edges at ±1 (align_corners False).

    Args:
        images: [B, C, H, W].
        grid: [B, h, w, 2], (x, y) in [−1, 1]; a constant: no gradient flows into it.
        padding: what lies outside.

    Returns:
        [B, C, h, w].
    """
    return _Warp.apply(images, grid.detach().to(images.dtype), PADDINGS.index(padding))


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape, ctx.padding = images.shape, padding
        return F.grid_sample(images, grid, mode="bilinear", padding_mode=PADDINGS[padding], align_corners=False)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (grid,) = ctx.saved_tensors
        return _WarpTransposed.apply(gradient, grid, ctx.shape, ctx.padding), None, None


class _WarpTransposed(torch.autograd.Function):
    """The warp is linear in the images: this is its transpose, whose derivative is the warp itself."""

    @staticmethod
    def forward(ctx, gradient: Tensor, grid: Tensor, shape: torch.Size, padding: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.padding = padding
        images = gradient.new_zeros(()).expand(shape)  # only its shape counts
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(gradient.contiguous(), images, grid, 0, padding, False, (True, False))[0]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (grid,) = ctx.saved_tensors
        return _Warp.apply(gradient, grid, ctx.padding), None, None, None
