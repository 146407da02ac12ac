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
    grid = grid.detach().to(images.dtype)
    if images.is_cuda and torch.are_deterministic_algorithms_enabled():
        return repeatable_grid_sample(images, grid, padding)
    return _Warp.apply(images, grid, PADDINGS.index(padding))


def repeatable_grid_sample(images: Tensor, grid: Tensor, padding: str = "zeros", align_corners: bool = False) -> Tensor:
    """`F.grid_sample(images, grid, padding_mode=padding)` by gathering corners.

    Its derivatives, to any order, are sums that PyTorch's deterministic mode forms in a fixed order on GPUs too.
    """
    channels, height, width = images.shape[1:]
    flat, shape = images.flatten(2), grid.shape[1:3]
    (x0, fx), (y0, fy) = (
        _place(grid[..., axis], size, padding, align_corners) for axis, size in ((0, width), (1, height))
    )
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for x, weight_x in ((x0, 1 - fx), (x0 + 1, fx)):
        for y, weight_y in ((y0, 1 - fy), (y0 + 1, fy)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)  # [B, h·w]
            values = flat.gather(2, index[:, None].expand(-1, channels, -1)).unflatten(2, shape)
            total = total + values * (weight_x * weight_y * inside)[:, None]
    return total


def _place(coordinate: Tensor, size: int, padding: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Number of the pixel before a coordinate in [−1, 1], and how far behind it the coordinate lies, in pixels."""
    low = 0.0 if align_corners else -0.5  # the first pixel's centre or its edge is at −1
    span = size - 1 - 2 * low
    position = (coordinate + 1) / 2 * span + low
    if padding == "reflection" and span > 0:
        away = (position - low).remainder(2 * span)
        position = torch.minimum(away, 2 * span - away) + low
    if padding != "zeros":
        position = position.clamp(0, size - 1)
    first = position.detach().floor()
    return first.long(), position - first


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
