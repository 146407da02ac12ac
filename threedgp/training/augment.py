"""Augmentation of what the discriminator sees, on reals and fakes alike (ADA, arXiv 2006.06676, Sec. 2 and App. B).

Geometry moves all channels together, so depth stays aligned with the colours; colour transforms leave depth alone. The
transforms are chosen on the host from a few numbers per sample, the pixels are changed on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgp.config.schema import AdaptiveAugmentConfig, AugmentMultipliers
from threedgp.ops.fir import setup_filter, upfirdn2d
from threedgp.ops.warp import warp
from threedgp.training.draws import Draws

# fmt: off
LOWPASS_TAPS = (  # symlet-6: band-limits the doubled image in which geometry happens
    0.0154041093, 0.0034907121, -0.1179901111, -0.0483117426, 0.4910559419, 0.7876411410,
    0.3379294217, -0.0726375228, -0.0210602925, 0.0447249018, 0.0017677119, -0.0078007083,
)
# fmt: on
MARGIN = len(LOWPASS_TAPS) // 4  # pixels that the filter reaches beyond the image
BANK_TAPS = (-0.12940952255092145, 0.22414386804185735, 0.8365163037378079, 0.48296291314469025)  # symlet-2
BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected power of natural images in the four bands
GEOMETRIC = ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")


@dataclass(frozen=True)
class AugmentState:
    """Strength, and sum and number of the signs since its last change: the same on all processes between iterations."""

    p: float
    signs: tuple[float, float]


class AugmentController:
    """Holds the strength p of the augmentation and, in mode `ada`, adapts it to how much the discriminator overfits.

    When the sign of the logits of reals is above the target on average, the discriminator knows them too well and p
    rises; else it falls. p stays within 0..1.
    """

    def __init__(self, config: AdaptiveAugmentConfig):
        self.config = config
        self.p = config.p if config.mode == "fixed" else 0.0
        self._local: Tensor | None = None  # [2] sum and count of this process since the last step
        self._total = torch.zeros(2, dtype=torch.float64)  # the same over all processes since the last adjustment

    def report(self, real_logits: Tensor) -> None:
        """Take note of the logits of real images, [B]."""
        if self.config.mode == "ada":
            signs = real_logits.detach().sign().double()
            sums = torch.stack([signs.sum(), torch.full_like(signs[0], len(signs))])
            self._local = sums if self._local is None else self._local + sums

    def step(self, iteration: int, batch_size: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """To be called after every iteration by all processes; adjusts p every `interval` iterations.

        Args:
            iteration: number of finished iterations.
            batch_size: images per iteration over all processes.
            reduce: sums a tensor over all processes.
        """
        if self.config.mode != "ada" or self._local is None:
            return
        total = reduce(self._local)
        self._total, self._local = self._total.to(total.device) + total, None
        if iteration % self.config.interval == 0:
            sign_sum, count = self._total.tolist()
            self.adjust(sign_sum / count, batch_size)
            self._total = torch.zeros_like(self._total)

    def adjust(self, mean_sign: float, batch_size: int) -> None:
        """Move p one step towards the target: by 4·batch / (1000·kimg) for an interval of 4, within 0..1."""
        size = batch_size * self.config.interval / (self.config.kimg * 1000.0)
        direction = (mean_sign > self.config.target) - (mean_sign < self.config.target)
        self.p = min(max(self.p + direction * size, 0.0), 1.0)

    def state(self) -> AugmentState:
        sign_sum, count = self._total.tolist()
        return AugmentState(self.p, (sign_sum, count))

    def restore(self, state: AugmentState) -> None:
        """Continue where the state was taken; a fixed strength follows the profile."""
        if self.config.mode == "ada":
            self.p = state.p
            self._total, self._local = torch.tensor(state.signs, dtype=torch.float64), None


def augment(images: Tensor, p: float, multipliers: AugmentMultipliers, draws: Draws) -> Tensor:
    """Transform every sample at random.

    Args:
        images: [B, C, H, W] in [−1, 1]; C = 3, or 4 with depth.
        p: strength; a transform happens with probability multiplier·p.
        multipliers: 0 leaves a transform out.
        draws: the random numbers, asked for as "<transform>/value" and "<transform>/gate".

    Returns:
        Images of the same shape, not clamped, differentiable to any order. Even when no transform happens to be
        chosen, configured geometric ones low-pass the image slightly.
    """
    choice = _Choice(len(images), p, multipliers, draws)
    if any(choice.active(name) for name in GEOMETRIC):
        images = transform_geometry(images, geometric_matrices(choice, images.shape[3], images.shape[2]))
    if any(choice.active(name) for name in COLOR):
        images = transform_color(images, color_matrices(choice))
    for name, change in (("imgfilter", _filter_bands), ("noise", _add_noise), ("cutout", _cut_out)):
        if choice.active(name):
            images = change(images, choice)
    return images


class _Choice:
    """Draws a transform's parameter for each sample, or the neutral one, which changes nothing, where it is not chosen.

    Nothing is drawn for a transform that is switched off.
    """

    def __init__(self, batch: int, p: float, multipliers: AugmentMultipliers, draws: Draws):
        self.batch, self.p, self.multipliers, self.draws = batch, p, multipliers, draws

    def active(self, transform: str) -> bool:
        return getattr(self.multipliers, transform) > 0

    def uniform(self, name: str, neutral: float, parameter: Callable[[Tensor], Tensor], *shape: int) -> Tensor:
        """[B, *shape] parameters of uniform numbers."""
        return self._drawn(self.draws.uniform, name, neutral, parameter, shape)

    def normal(self, name: str, neutral: float, parameter: Callable[[Tensor], Tensor], *shape: int) -> Tensor:
        """[B, *shape] parameters of standard normal numbers."""
        return self._drawn(self.draws.normal, name, neutral, parameter, shape)

    def _drawn(self, draw: Callable, name: str, neutral: float, parameter: Callable, shape: tuple[int, ...]) -> Tensor:
        transform = name.split("_")[0]  # rotate_pre and rotate_post are one
        if not self.active(transform):
            return torch.full((self.batch, *shape), neutral)
        return self.gate(name, parameter(draw(f"{name}/value", self.batch, *shape)), neutral)

    def gate(self, name: str, value: Tensor, neutral: float) -> Tensor:
        """`value` [B, ...] of the samples for which the transform is chosen, `neutral` for the others."""
        transform = name.split("_")[0]
        probability = getattr(self.multipliers, transform) * self.p
        if transform == "rotate":  # twice, around the stretching: together they happen with the wanted probability
            probability = 1 - math.sqrt(1 - min(probability, 1.0))
        chosen = self.draws.uniform(f"{name}/gate", self.batch) < probability
        return torch.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, neutral)


# ------------------------------------------------------------------------------------------------------------- geometry


def geometric_matrices(choice: _Choice, width: int, height: int) -> Tensor:
    """[B, 3, 3] maps from output to input pixel coordinates, origin at the image centre, x right, y down."""
    size = torch.tensor([width, height])
    flip = choice.uniform("xflip", 0.0, lambda u: (u * 2).floor())
    turns = choice.uniform("rotate90", 0.0, lambda u: (u * 4).floor())
    pixels = choice.uniform("xint", 0.0, lambda u: (u * 2 - 1) * 0.125, 2)
    scale = choice.normal("scale", 1.0, lambda n: torch.exp2(0.2 * n))
    before = choice.uniform("rotate_pre", 0.0, lambda u: (u * 2 - 1) * math.pi)
    stretch = choice.normal("aniso", 1.0, lambda n: torch.exp2(0.2 * n))
    after = choice.uniform("rotate_post", 0.0, lambda u: (u * 2 - 1) * math.pi)
    shift = choice.normal("xfrac", 0.0, lambda n: 0.125 * n, 2)
    m = _scaling(1 - 2 * flip, torch.ones_like(flip)) @ _rotation(turns * (math.pi / 2))
    m = m @ _translation(-(pixels * size).round()) @ _scaling(1 / scale, 1 / scale) @ _rotation(before)
    return m @ _scaling(1 / stretch, stretch) @ _rotation(after) @ _translation(-shift * size)


def transform_geometry(images: Tensor, m: Tensor) -> Tensor:
    """Warp [B, C, H, W] by `m` [B, 3, 3] (see `geometric_matrices`) in a doubled, band-limited, mirrored image."""
    batch, channels, height, width = images.shape
    left, top, right, bottom = _margins(m, width, height)
    images = F.pad(images, [left, right, top, bottom], mode="reflect")
    m = _translation(torch.tensor([(left - right) / 2, (top - bottom) / 2]).expand(batch, 2)) @ m

    f = setup_filter(LOWPASS_TAPS).to(images.device)
    images = upfirdn2d(images, f, up=2, padding=(6, 5, 6, 5), gain=4.0)
    half_pixel = torch.full((1, 2), 0.5)
    m = torch.diag(torch.tensor([2.0, 2.0, 1.0])) @ m @ torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    m = _translation(-half_pixel) @ m @ _translation(half_pixel)

    out_height, out_width = 2 * (height + 2 * MARGIN), 2 * (width + 2 * MARGIN)
    to_unit = torch.diag(torch.tensor([2 / images.shape[3], 2 / images.shape[2], 1.0]))
    from_unit = torch.diag(torch.tensor([out_width / 2, out_height / 2, 1.0]))
    m = (to_unit @ m @ from_unit).to(images.device, non_blocking=True)
    grid = F.affine_grid(m[:, :2], [batch, channels, out_height, out_width], align_corners=False)
    images = warp(images, grid)
    return upfirdn2d(images, f, down=2, padding=-1, flip_filter=True)


def _margins(m: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """How many pixels to the left, top, right, bottom of the image any sample of the batch needs."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]]).T
    places = (m @ corners)[:, :2]  # [B, 2, 4]
    reach = torch.cat([-places, places], dim=1).amax(dim=(0, 2))  # left, top, right, bottom
    reach = reach + 2 * MARGIN - torch.tensor([x, y, x, y])
    limit = torch.tensor([width - 1, height - 1] * 2, dtype=reach.dtype)
    left, top, right, bottom = reach.clamp(min=0.0).minimum(limit).ceil().int().tolist()
    return left, top, right, bottom


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """Two times [B] -> [B, 3, 3]."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=-1))


def _translation(t: Tensor) -> Tensor:
    """[B, 2] -> [B, 3, 3]."""
    m = torch.eye(3).repeat(len(t), 1, 1)
    m[:, :2, 2] = t
    return m


def _rotation(angle: Tensor) -> Tensor:
    """[B] radians -> [B, 3, 3]."""
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], dim=-1).reshape(-1, 3, 3)


# --------------------------------------------------------------------------------------------------------------- colour


def color_matrices(choice: _Choice) -> Tensor:
    """[B, 4, 4] homogeneous maps of RGB."""
    gray = torch.tensor([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
    identity, luma = torch.eye(4), torch.outer(gray, gray)
    k = identity.repeat(choice.batch, 1, 1)
    k[:, :3, 3] = choice.normal("brightness", 0.0, lambda n: 0.2 * n)[:, None]
    contrast = choice.normal("contrast", 1.0, lambda n: torch.exp2(0.5 * n))
    k = torch.diag_embed(torch.stack([contrast, contrast, contrast, torch.ones_like(contrast)], dim=-1)) @ k
    flip = choice.uniform("lumaflip", 0.0, lambda u: (u * 2).floor())
    k = (identity - 2 * flip[:, None, None] * luma) @ k
    k = _hue_rotation(choice.uniform("hue", 0.0, lambda u: (u * 2 - 1) * math.pi)) @ k
    saturation = choice.normal("saturation", 1.0, torch.exp2)
    return (luma + (identity - luma) * saturation[:, None, None]) @ k


def transform_color(images: Tensor, k: Tensor) -> Tensor:
    """Apply [B, 4, 4] colour maps to the first three channels of [B, C, H, W]."""
    k = k.to(images.device, non_blocking=True)
    rgb = k[:, :3, :3] @ images[:, :3].flatten(2) + k[:, :3, 3:]
    return torch.cat([rgb.reshape_as(images[:, :3]), images[:, 3:]], dim=1)


def _hue_rotation(angle: Tensor) -> Tensor:
    """Rotation about the grey axis, [B] radians -> [B, 4, 4] (Rodrigues' formula)."""
    u = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -u, u], [u, 0.0, -u], [-u, u, 0.0]])
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    m = torch.eye(4).repeat(len(angle), 1, 1)
    m[:, :3, :3] = c * torch.eye(3) + s * cross + (1 - c) * (1 / 3)
    return m


# ----------------------------------------------------------------------------------------------------------- corruption


def filter_bank() -> Tensor:
    """[4, 43] band-pass filters, from the lowest band to the highest, that sum to a unit impulse."""
    low = torch.tensor(BANK_TAPS, dtype=torch.float64)
    high = low * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    low, high = (_convolve(h, h.flip(0)) / 2 for h in (low, high))
    bands = torch.eye(4, 1, dtype=torch.float64)
    for i in range(1, 4):
        bands = torch.stack([bands, torch.zeros_like(bands)], dim=2).reshape(4, -1)[:, :-1]
        bands = torch.stack([_convolve(band, low) for band in bands])
        begin = (bands.shape[1] - len(high)) // 2
        bands[i, begin : begin + len(high)] += high
    return bands.float()


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


def _filter_bands(images: Tensor, choice: _Choice) -> Tensor:
    """Amplify or weaken four frequency bands."""
    batch, channels, height, width = images.shape
    power = torch.tensor(BAND_POWER)
    gain = torch.ones(batch, 4)
    for i in range(4):
        t = torch.ones(batch, 4)
        t[:, i] = choice.normal(f"imgfilter_band{i}", 1.0, torch.exp2)
        gain = gain * t / (power * t.square()).sum(dim=1, keepdim=True).sqrt()
    taps = gain @ filter_bank()  # [B, 43]
    taps = taps.to(images.device, non_blocking=True).repeat_interleave(channels, dim=0)[:, None, None]
    reach = taps.shape[-1] // 2
    rows, columns = _mirrored(height, reach, images.device), _mirrored(width, reach, images.device)
    x = images[:, :, rows][..., columns].reshape(1, batch * channels, height + 2 * reach, width + 2 * reach)
    x = F.conv2d(x, taps, groups=batch * channels)
    x = F.conv2d(x, taps.transpose(2, 3), groups=batch * channels)
    return x.reshape_as(images)


def _mirrored(length: int, reach: int, device: torch.device) -> Tensor:
    """Indices of a line of pixels mirrored at its ends as often as needed (F.pad mirrors only once)."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-reach, length + reach, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _add_noise(images: Tensor, choice: _Choice) -> Tensor:
    sigma = 0.1 * choice.gate("noise", choice.draws.normal("noise/sigma", choice.batch).abs(), 0.0)
    field = choice.draws.field("noise/field", *images.shape)
    return images + field * sigma.to(images.device, non_blocking=True)[:, None, None, None]


def _cut_out(images: Tensor, choice: _Choice) -> Tensor:
    """Blank a box of half the side."""
    height, width = images.shape[2:]
    size = choice.gate("cutout", torch.full((choice.batch,), 0.5), 0.0)
    center = choice.draws.uniform("cutout/center", choice.batch, 2)
    x = ((torch.arange(width) + 0.5) / width - center[:, :1]).abs() < size[:, None] / 2  # [B, W]
    y = ((torch.arange(height) + 0.5) / height - center[:, 1:]).abs() < size[:, None] / 2  # [B, H]
    keep = ~(y[:, None, :, None] & x[:, None, None, :])
    return images * keep.to(images.device, images.dtype, non_blocking=True)
