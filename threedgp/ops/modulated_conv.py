"""Style-modulated convolution.

Source: StyleGAN2 (arXiv 1912.04958), Sec. 2.2, Eqs. 1-3.
"""

from __future__ import annotations

import torch

from threedgp.ops import native
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import conv2d_resample


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    *,
    up: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> torch.Tensor:
    """Convolve each sample with `weight` whose input channels are scaled by its styles.

    `y = d · conv(x · s, w) + noise` with `d_bo = (Σ_ikl (w_oikl · s_bi)² + 1e-8)^(-1/2)`: the same function as
    convolving sample b with `w · s_b · d_b`, without ever building a weight per sample.

    Args:
        x: [B, I, H, W].
        weight: [O, I, k, k], not divided by √fan_in.
        styles: [B, I].
        noise: broadcastable to the output, e.g. [B, 1, H', W'] or [H', W'], already scaled.
        up: upsampling factor with `resample_filter`.
        padding: of the convolution (k//2 keeps sizes).
        resample_filter: from `setup_filter`, needed when up > 1.
        demodulate: scale each output channel to unit expected variance.
        flip_weight: True correlates, False convolves.

    Returns:
        [B, O, H·up, W·up] in x's dtype. float16 inputs are pre-normalised so that sums cannot overflow.
    """
    if x.dtype == torch.float16 and demodulate:
        fan_in = weight[0].numel()
        weight = weight / (fan_in**0.5 * weight.abs().amax(dim=[1, 2, 3], keepdim=True))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)

    y, scale = _modulated(x, weight, styles, up, padding, resample_filter, demodulate, flip_weight)
    if scale is not None:
        y = y * scale.to(x.dtype)[:, :, None, None]
    if noise is not None:
        y = y + noise.to(x.dtype)
    return y


def modulated_conv2d_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    bias: torch.Tensor,
    noise: torch.Tensor | None = None,
    *,
    gain: float = 2.0**0.5,
    clamp: float | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    flip_weight: bool = True,
) -> torch.Tensor:
    """`bias_act(modulated_conv2d(x, weight, styles, noise), bias, "lrelu")`: a whole synthesis layer.

    The native form does everything behind the convolution in one pass. Arguments as in the two functions.
    """
    if native.library(x, weight, styles, bias, noise) is None:
        x = modulated_conv2d(
            x, weight, styles, noise, up=up, padding=padding, resample_filter=resample_filter, flip_weight=flip_weight
        )
        return bias_act(x, bias, "lrelu", gain=gain, clamp=clamp)
    y, scale = _modulated(x, weight, styles, up, padding, resample_filter, True, flip_weight)
    return torch.ops.threedgp.scaled_act(y, scale, bias, noise, 0.2, gain, -1.0 if clamp is None else clamp)


def scale_channels(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [B, C, H, W] times scale [B, C], in x's dtype. Differentiable to any order."""
    if native.library(x, scale) is None:
        return x * scale.to(x.dtype)[:, :, None, None]
    return torch.ops.threedgp.scaled_act(x, scale, None, None, 1.0, 1.0, -1.0)


def _modulated(x, weight, styles, up, padding, resample_filter, demodulate, flip_weight):
    """The convolution, and what its output must be multiplied by, [B, O] (None without demodulation)."""
    if weight.shape[-1] == 1 and up == 1 and native.library(x, weight, styles) is not None:
        return _modulated_pixels(x, weight, styles), _demodulation(weight, styles) if demodulate else None
    y = scale_channels(x, styles)
    y = conv2d_resample(y, weight.to(x.dtype), resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    return y, _demodulation(weight, styles) if demodulate else None


def _demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    library = native.library(weight, styles)
    if library is not None:
        return library.demodulation(weight, styles)
    energy = styles.square() @ weight.square().sum(dim=[2, 3]).t()  # [B, O]
    return (energy + 1e-8).rsqrt()


def _modulated_pixels(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution with a matrix per sample: the image is not scaled, and only read once."""
    batch, _, height, width = x.shape
    matrices = (weight[:, :, 0, 0] * styles[:, None]).to(x.dtype)  # [B, O, I]
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1)  # a view of a channels-last image
    y = torch.bmm(pixels, matrices.transpose(1, 2))  # [B, H·W, O]
    return y.unflatten(1, (height, width)).permute(0, 3, 1, 2)
