"""Simple augmentation of whole images: rotation, shift, flip and brightness, each with a fixed probability.

Geometry is one warp of colours and depth together, so they stay aligned; brightness leaves depth alone. On reals only,
it leaks into what the generator learns; on both sides of the discriminator's input it does not.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threedgp.config.schema import ImageAugmentConfig
from threedgp.ops.warp import warp

NUMBERS = 8  # uniform numbers that one image uses up


class ImageChanges(NamedTuple):
    """What happens to each image of a batch; the neutral value where a transform was not chosen."""

    angle: Tensor  # [B] radians by which the content turns clockwise
    shift: Tensor  # [B, 2] by which it then moves right and down, in image sides
    flip: Tensor  # [B] bool, mirrored left-right before anything else
    brightness: Tensor  # [B] added to colours in the range 0..1


def item_numbers(seed: int, epoch: int, items: list[int]) -> Tensor:
    """[B, 8] uniform numbers that depend on seed, epoch and item only: not on batches, processes or loader workers."""
    rows = []
    for item in items:
        key = hashlib.blake2b(f"{seed}/{epoch}/{item}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        rows.append(generator.random(NUMBERS, dtype=np.float32))
    return torch.from_numpy(np.stack(rows))


def choose_changes(numbers: Tensor, config: ImageAugmentConfig, *, mirrored: bool) -> ImageChanges:
    """Turn uniform numbers [B, 8] into changes: four gates, then angle, horizontal and vertical shift, brightness.

    Args:
        mirrored: the data set already holds every image flipped, so none is flipped here.
    """
    rotate, move, flip, brighten = (numbers[:, :4] < config.probability).unbind(dim=1)
    angle, x, y, brightness = (2 * numbers[:, 4:] - 1).unbind(dim=1)
    if mirrored or not config.flip:
        flip = torch.zeros_like(flip)
    return ImageChanges(
        angle=torch.where(rotate, angle * math.radians(config.rotation), 0.0),
        shift=torch.where(move[:, None], torch.stack([x, y], dim=1) * config.shift, 0.0),
        flip=flip,
        brightness=torch.where(brighten, brightness * config.brightness, 0.0),
    )


def change_images(images: Tensor, changes: ImageChanges) -> Tensor:
    """Apply changes to [B, 3 or 4, H, W] in [−1, 1], depth being the last channel; differentiable in the images.

    What comes in from outside is the mirrored image. Images that neither turn nor move keep their exact values.
    """
    device, (height, width) = images.device, images.shape[2:]
    flip = changes.flip.to(device)[:, None, None, None]
    images = torch.where(flip, images.flip(3), images)

    # Output pixel p takes input pixel Rot(−angle)·(p − shift), in pixels about the centre (x right, y down).
    cos, sin = changes.angle.cos(), changes.angle.sin()
    x, y = changes.shift[:, 0] * width, changes.shift[:, 1] * height
    theta = torch.stack(
        [
            torch.stack([cos, sin * height / width, -(cos * x + sin * y) * 2 / width], dim=1),
            torch.stack([-sin * width / height, cos, (sin * x - cos * y) * 2 / height], dim=1),
        ],
        dim=1,
    )  # [B, 2, 3]
    grid = F.affine_grid(theta.to(device), list(images.shape), align_corners=False)
    moved = ((changes.angle != 0) | (changes.shift != 0).any(dim=1)).to(device)[:, None, None, None]
    images = torch.where(moved, warp(images, grid, "reflection"), images)

    brightness = 2 * changes.brightness.to(device)[:, None, None, None]  # the range is twice 0..1
    rgb = images[:, :3]
    rgb = torch.where(brightness != 0, (rgb + brightness).clamp(-1.0, 1.0), rgb)
    return rgb if images.shape[1] == 3 else torch.cat([rgb, images[:, 3:]], dim=1)


def mirror_yaw(angles: Tensor, changes: ImageChanges) -> Tensor:
    """Camera angles [B, 3] of the changed images: the yaw changes its sign where the image was flipped."""
    sign = 1.0 - 2.0 * changes.flip.to(angles)
    return torch.cat([angles[:, :1] * sign[:, None], angles[:, 1:]], dim=1)
