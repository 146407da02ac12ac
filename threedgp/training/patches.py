"""Patches: where on the image the discriminator looks, and how a real image is cut there (EpiGRAF, arXiv 2206.10535).

A patch with scale s and offset o covers [o, o + s] of the image side, x from the left and y **from the bottom**. Real
images are sampled at the points through which the renderer shoots its rays, so both sides see the same frequencies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threedgp.config.schema import PatchConfig
from threedgp.ops.patches import sample_patches as cut
from threedgp.training.schedules import ScheduleValues


class PatchParams(NamedTuple):
    """Scales and offsets [B, 2] in units of the image side, order (x, y)."""

    scales: Tensor
    offsets: Tensor


def scale_variates(unit: Tensor, config: PatchConfig, low: float) -> Tensor:
    """Patch scales from variates in [0, 1], one per group.

    Args:
        unit: [n] float64; uniform draws for `uniform` and `discrete_uniform`, Beta variates for `beta`.
        config: patch section.
        low: the smallest scale now.

    Returns:
        [n] float64 scales in [low, max_scale].
    """
    if config.distribution == "discrete_uniform":
        support = sorted(s for s in config.discrete_support if low <= s <= config.max_scale)
        values = torch.tensor(support, dtype=unit.dtype, device=unit.device)
        return values[(unit * len(support)).long().clamp(max=len(support) - 1)]
    return low + unit * (config.max_scale - low)


def sample_patches(
    batch: int, config: PatchConfig, values: ScheduleValues, generator: torch.Generator, group_size: int
) -> PatchParams:
    """Random patches for a micro-batch, float32 on the generator's device; the samples of a group share one.

    Args:
        batch: B samples, divisible by the group size (`threedgp.config.rules.batch_split` sees to it).
        config: `Profile.patch_law`; its `group_layout` says which samples form a group: `strided` puts sample i
            into group i mod n, exactly like the discriminator's minibatch statistics, so that these compare equal
            scales; `reference` groups runs of neighbours.
        values: scheduled smallest scale and shape of the distribution.
        generator: source of randomness.
        group_size: g; min(g, B) is used.
    """
    group_size = min(group_size, batch)
    groups = batch // group_size
    unit = torch.rand(groups, generator=generator, device=generator.device, dtype=torch.float64)
    unit_offsets = torch.rand(groups, 2, generator=generator, device=generator.device)
    if config.distribution == "beta":  # the inverse of Beta(1, b)'s distribution function
        unit = 1.0 - (1.0 - unit) ** (1.0 / values.patch_beta)
    scales = scale_variates(unit, config, values.patch_min_scale)
    return place_patches(scales, unit_offsets, group_size, config.group_layout)


def place_patches(scales: Tensor, unit_offsets: Tensor, group_size: int, layout: str) -> PatchParams:
    """Square patches anywhere inside the image: offset = u·(1 − s), repeated for the samples of each group.

    Args:
        scales: [n] one per group.
        unit_offsets: [n, 2] uniform in [0, 1).
        group_size: samples per group.
        layout: `strided` or `reference`.
    """
    scales = scales.to(unit_offsets.dtype)[:, None].expand(-1, 2)  # [n, 2]
    offsets = unit_offsets * (1.0 - scales)
    if layout == "strided":
        return PatchParams(scales.repeat(group_size, 1), offsets.repeat(group_size, 1))
    return PatchParams(scales.repeat_interleave(group_size, dim=0), offsets.repeat_interleave(group_size, dim=0))


def extract_patches(images: Tensor, params: PatchParams | None, resolution: int) -> Tensor:
    """Cut patches [B, C, p, p] out of whole images [B, C, R, R]; without parameters the images stay whole.

    The sampling is bilinear, without a low-pass filter: rays have none either. Depth, if any, is one of the channels.
    """
    return images if params is None else cut(images, params.scales, params.offsets, resolution)
