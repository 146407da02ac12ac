"""The blur of what the discriminator sees early in training (EpiGRAF, arXiv 2206.10535, App. B; StyleGAN3's idea)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threedgp.ops.fir import filter2d

DEPTH_SIGMA = 30.0  # width of the second blur of the depth channel; its support follows the image blur


def blur_radius(sigma: float) -> int:
    """Taps on each side of the centre: floor(3 sigma). 0 means no blur."""
    return math.floor(3.0 * sigma)


def blur_taps(sigma: float, radius: int) -> Tensor:
    """[2·radius + 1] float32 weights proportional to 2^−(i/sigma)², summing to 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    taps = torch.exp2(-((offsets / sigma) ** 2))
    return taps / taps.sum()


def blur(images: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Blur every channel of [B, C, H, W], `sigma` and `radius` (of the support, default floor(3 sigma)) in pixels.

    The outside counts as zero and the size stays.
    """
    radius = blur_radius(sigma) if radius is None else radius
    return filter2d(images, blur_taps(sigma, radius).to(images.device)) if radius else images


def blur_discriminator_input(images: Tensor, sigma: float) -> Tensor:
    """Blur RGB [B, 3, H, W] or RGB and depth [B, 4, H, W] as the discriminator wants it.

    Depth is blurred a second time, nearly with a box of the same support: early in training its edges would give the
    fakes away at once.
    """
    radius = blur_radius(sigma)
    images = blur(images, sigma)
    if radius == 0 or images.shape[1] == 3:
        return images
    return torch.cat([images[:, :3], blur(images[:, 3:], DEPTH_SIGMA, radius)], dim=1)
