"""Resampling with a finite impulse response (FIR) filter, and convolutions that resample.

Source: StyleGAN2 (arXiv 1912.04958), Sec. 2 and App. B: images are band-limited with the filter [1, 3, 3, 1] whenever
their resolution changes. All functions take [batch, channels, height, width] and are differentiable to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from threedgp.ops import native
from threedgp.ops.conv import conv2d

DEFAULT_TAPS = (1.0, 3.0, 3.0, 1.0)


def setup_filter(
    taps: Sequence[float] | Sequence[Sequence[float]] | torch.Tensor,
    *,
    normalize: bool = True,
    flip: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> torch.Tensor:
    """Turn filter taps into the tensor that the resampling functions expect.

    Args:
        taps: [n] or [height, width].
        normalize: divide by the sum, so that a constant image keeps its value.
        flip: reverse the taps along every axis.
        gain: brightness factor of the whole filter.
        separable: keep 1-D taps 1-D (applied along both axes). None keeps them from 8 taps on, where two 1-D passes
            are cheaper; shorter ones become their outer product.

    Returns:
        float32 [n] (separable) or [height, width].

    Example:
        >>> setup_filter([1, 3, 3, 1]).shape
        torch.Size([4, 4])
    """
    f = torch.as_tensor(taps, dtype=torch.float32)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"filter taps must be a non-empty vector or matrix, got shape {tuple(f.shape)}")
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    x, y = (value, value) if isinstance(value, int) else value
    return x, y


def _four(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """One number, (x, y) or (x0, x1, y0, y1) -> (x0, x1, y0, y1)."""
    values = (padding,) if isinstance(padding, int) else tuple(padding)
    x0, x1, y0, y1 = {1: values * 4, 2: (*values[:1] * 2, *values[1:] * 2)}.get(len(values), values)
    return x0, x1, y0, y1


def _depthwise(x: torch.Tensor, kernel: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """Correlate every channel with `kernel` [kh, kw], keeping each stride-th (y, x) output."""
    channels = x.shape[1]
    weight = kernel.to(x.dtype)[None, None].expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, stride=stride, groups=channels)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """Upsample with zeros, pad, filter, and keep every `down`-th pixel.

    Args:
        x: [B, C, H, W].
        f: filter from `setup_filter`, [n] or [fh, fw].
        up: zeros to insert plus one, one number or (x, y). Zeros follow every pixel, the last one too.
        down: decimation, one number or (x, y).
        padding: one number, (x, y) or (x0, x1, y0, y1), counted in upsampled pixels; negative values crop.
        flip_filter: False convolves, True correlates.
        gain: brightness factor.

    Returns:
        [B, C, (H·up + y0 + y1 − fh)//down + 1, (W·up + x0 + x1 − fw)//down + 1].
    """
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    batch, channels, height, width = x.shape
    x0, x1, y0, y1 = _four(padding)
    if native.library(x, f) is not None and not f.requires_grad:
        taps = _separate(tuple(f.flatten().tolist()), f.shape[-1], f.ndim, flip_filter, gain)
        size = (
            (width * up_x + x0 + x1 - f.shape[-1]) // down_x + 1,
            (height * up_y + y0 + y1 - f.shape[0]) // down_y + 1,
        )
        if taps is not None and min(size) > 0:
            return torch.ops.threedgp.resample(x, *taps, (up_x, up_y), (down_x, down_y), (x0, y0), size)
    if up_x > 1 or up_y > 1:
        x = x.reshape(batch, channels, height, 1, width, 1)
        x = F.pad(x, [0, up_x - 1, 0, 0, 0, up_y - 1])
        x = x.reshape(batch, channels, height * up_y, width * up_x)
    if x0 or x1 or y0 or y1:
        x = F.pad(x, [x0, x1, y0, y1])
    kernel = f * gain ** (f.ndim / 2)
    if not flip_filter:
        kernel = kernel.flip(list(range(f.ndim)))
    if kernel.ndim == 2:
        return _depthwise(x, kernel, (down_y, down_x))
    return _depthwise(_depthwise(x, kernel[None, :], (1, down_x)), kernel[:, None], (down_y, 1))


MOST_NATIVE_TAPS = 64


@functools.lru_cache(maxsize=256)
def _separate(
    values: tuple[float, ...], width: int, ndim: int, flip: bool, gain: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The taps along x and y, to be correlated, of a filter that is a product of two; None for one that is not."""
    kernel = torch.tensor(values, dtype=torch.float64).reshape(-1, width)
    if ndim == 1:
        kernel = torch.outer(kernel[0], kernel[0])
    if not flip:
        kernel = kernel.flip([0, 1])
    total = kernel.sum()
    if max(kernel.shape) > MOST_NATIVE_TAPS or total == 0:
        return None
    taps_x, taps_y = kernel.sum(dim=0) / total, kernel.sum(dim=1)
    if not torch.allclose(torch.outer(taps_y, taps_x), kernel, rtol=1e-6, atol=1e-7 * kernel.abs().max().item()):
        return None
    return taps_x.float(), (taps_y * gain).float()


def _centred(f: torch.Tensor, up: int, down: int, padding: int | Sequence[int] = 0) -> list[int]:
    """(x0, x1, y0, y1) in upsampled pixels that keep an image centred while filter and factors change it.

    Args:
        padding: extra.
    """
    if up == down == 1:
        before = [n // 2 for n in f.shape]
        after = [(n - 1) // 2 for n in f.shape]
    else:
        before = [(n + up - 1) // 2 * (up > 1) + (n - down + 1) // 2 * (down > 1) for n in f.shape]
        after = [(n - up) // 2 * (up > 1) + (n - down) // 2 * (down > 1) for n in f.shape]
    sides = before[-1], after[-1], before[0], after[0]
    return [side + extra for side, extra in zip(sides, _four(padding), strict=True)]


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    up: int = 2,
    *,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """Enlarge `up` times, [B, C, H, W] -> [B, C, H·up, W·up]; `padding` is extra, as in `upfirdn2d`."""
    padding = _centred(f, up, 1, padding)
    return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain * up**2)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    down: int = 2,
    *,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """Shrink `down` times, [B, C, H, W] -> [B, C, H//down, W//down]; `padding` is extra, as in `upfirdn2d`."""
    return upfirdn2d(x, f, down=down, padding=_centred(f, 1, down, padding), flip_filter=flip_filter, gain=gain)


def filter2d(x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Filter without changing the size of [B, C, H, W]."""
    return upfirdn2d(x, f, padding=_centred(f, 1, 1))


def _convolve_pixels(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution of a channels-last image as a matrix product, whose bfloat16 derivatives are the faster."""
    y = F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0])  # [B, H, W, O]
    return y.permute(0, 3, 1, 2)


def _conv_transposed(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int) -> torch.Tensor:
    """Zero-insert `x` and fully convolve (true convolution) with weight [O, I/groups, k, k] in one call."""
    out_channels, in_per_group, kh, kw = weight.shape
    weight = weight.reshape(groups, out_channels // groups, in_per_group, kh, kw).transpose(1, 2)
    weight = weight.reshape(groups * in_per_group, out_channels // groups, kh, kw)
    return F.conv_transpose2d(x, weight, stride=stride, groups=groups)


def conv2d_resample(
    x: torch.Tensor,
    weight: torch.Tensor,
    f: torch.Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    groups: int = 1,
    flip_weight: bool = True,
) -> torch.Tensor:
    """Convolution with optional FIR upsampling before it and FIR downsampling after it.

    All padding happens once, before everything else, so borders see zeros only there. The filter and the convolution
    commute, which lets the convolution run at the lower of the two resolutions.

    Args:
        x: [B, I, H, W].
        weight: [O, I/groups, k, k].
        f: filter from `setup_filter`; needed when `up` or `down` exceeds 1.
        up, down: integer factors.
        padding: of the convolution, in pixels of the upsampled image; k//2 keeps sizes.
        groups: channel groups.
        flip_weight: True correlates (the usual deep-learning meaning), False convolves.

    Returns:
        [B, O, H·up/down, W·up/down] for padding k//2 and odd k.
    """
    if native.library(x, weight) is not None:
        x = x.contiguous(memory_format=torch.channels_last)  # the faster layout on CPUs, which all that follows keeps
        if x.dtype == torch.bfloat16 and weight.shape[-1] == 1 and groups == up == down == 1 and padding == 0:
            return _convolve_pixels(x, weight)
    if up == 1 and down == 1:
        weight = weight if flip_weight else weight.flip([2, 3])
        return conv2d(x, weight, padding, groups)
    if f is None:
        raise ValueError("resampling needs a filter")

    kernel = weight.shape[-1]
    pad = _centred(f, up, down, padding)
    if kernel == 1 and down == 1:
        return upfirdn2d(conv2d_resample(x, weight, groups=groups), f, up=up, padding=pad, gain=up**2)
    if kernel == 1 and up == 1:
        return conv2d_resample(upfirdn2d(x, f, down=down, padding=pad), weight, groups=groups)
    if up > 1 and down == 1:
        # A transposed convolution pads k−1 before and after the zero-inserted image and omits its up−1 last zeros;
        # what is missing to (or beyond) `pad` is left to the filter.
        x = _conv_transposed(x, weight.flip([2, 3]) if flip_weight else weight, up, groups)
        pad = [p - (kernel - 1) + (up - 1) * (i % 2) for i, p in enumerate(pad)]
        return upfirdn2d(x, f, padding=pad, gain=up**2)

    weight = weight if flip_weight else weight.flip([2, 3])
    if up == 1:
        return F.conv2d(upfirdn2d(x, f, padding=pad), weight, stride=down, groups=groups)
    x = upfirdn2d(x, f, up=up, padding=pad, gain=up**2)
    return upfirdn2d(F.conv2d(x, weight, groups=groups), f, down=down)
