"""Style-modulated convolution.

Source: StyleGAN2 (arXiv 1912.04958), Sec. 2.2, Eqs. 1-3.
"""

from __future__ import annotations

import torch

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

    y = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(y, weight.to(x.dtype), resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    if demodulate:
        energy = styles.square() @ weight.square().sum(dim=[2, 3]).t()  # [B, O]
        y = y * (energy + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    if noise is not None:
        y = y + noise.to(x.dtype)
    return y
