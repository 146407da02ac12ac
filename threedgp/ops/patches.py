"""Cutting patches out of images at arbitrary scales and offsets.

Source: EpiGRAF (arXiv 2206.10535), Sec. 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def patch_grid(scales: torch.Tensor, offsets: torch.Tensor, resolution: int) -> torch.Tensor:
    """Sampling positions of patches, for `grid_sample` with align_corners=True.

    A patch spans [o_x, o_x + s_x] of the image from the left and [o_y, o_y + s_y] from the bottom.

    Args:
        scales, offsets: [B, 2] in image sides.
        resolution: p, pixels along a side of the patch.

    Returns:
        [B, p, p, 2], (x, y) in [−1, 1], y downwards.
    """
    ticks = torch.linspace(-1, 1, resolution, device=scales.device, dtype=scales.dtype)
    x = (ticks + 1) * scales[:, 0:1] - 1 + 2 * offsets[:, 0:1]  # [B, p]
    y = -((1 - ticks) * scales[:, 1:2] - 1 + 2 * offsets[:, 1:2])  # [B, p], first row on top
    batch = len(scales)
    grid = (x[:, None, :].expand(batch, resolution, -1), y[:, :, None].expand(batch, -1, resolution))
    return torch.stack(grid, dim=-1)


def sample_patches(img: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, resolution: int) -> torch.Tensor:
    """Patches [B, C, p, p] of images [B, C, H, W], bilinear, without low-pass filter; see `patch_grid`."""
    grid = patch_grid(scales, offsets, resolution).to(img.dtype)
    return F.grid_sample(img, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
