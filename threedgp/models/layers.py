"""The elementary layers all networks are made of: equalised learning rate, gains in the forward pass.

Source: Progressive GAN (arXiv 1710.10196), Sec. 4.1 (equalised learning rate); StyleGAN2 (arXiv 1912.04958).
Weights are stored unscaled, N(0, 1)/λ, and multiplied by λ/√fan_in when used.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from threedgp.errors import ConfigError
from threedgp.ops import native
from threedgp.ops.activation import ACTIVATIONS, bias_act
from threedgp.ops.fir import DEFAULT_TAPS, conv2d_resample, setup_filter
from threedgp.ops.modulated_conv import scale_channels

CONV_CLAMP = 256.0
"""Largest absolute activation of networks whose weights were trained with clamps, at any precision."""


def channels_at(resolution: int, cbase: int, cmax: int, fmaps: float = 1.0) -> int:
    """Width of a network at a resolution: `min(⌊int(cbase · fmaps) / resolution⌋, cmax)`.

    Raises:
        ConfigError: no channel is left.
    """
    channels = min(int(cbase * fmaps) // resolution, cmax)
    if channels < 1:
        raise ConfigError(
            f"cbase={cbase} with fmaps={fmaps:g} leaves no channels at resolution {resolution}. "
            f"Choose cbase of at least {math.ceil(resolution / fmaps)}."
        )
    return channels


def compute_dtype(weight: torch.Tensor, low_precision: torch.dtype | None) -> torch.dtype:
    """The type a block computes in: its low precision where the device is made for it, or the weights' own.

    On CPUs there is no float16, and bfloat16 only where the processor has instructions for it.
    """
    if low_precision is None:
        return weight.dtype
    if weight.device.type == "cpu" and not (low_precision == torch.bfloat16 and native.CPU_COMPUTES_BFLOAT16):
        return weight.dtype
    return low_precision


def normalize_2nd_moment(x: torch.Tensor, dim: int = -1, eps: float = 1e-8) -> torch.Tensor:
    """Scale `x` so that the mean of its squares along `dim` is one: `x / sqrt(mean(x²) + eps)`."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def default_filter(needed: bool) -> torch.Tensor | None:
    """The [1, 3, 3, 1] filter of layers that change resolution; None for those that do not."""
    return setup_filter(DEFAULT_TAPS) if needed else None


class FullyConnected(nn.Module):
    """`act(x · (W·λ/√in)ᵀ + b·λ)` over the last axis, [..., in] -> [..., out].

    Args:
        in_features, out_features: sizes.
        bias: add a bias.
        activation: a key of `threedgp.ops.activation.ACTIVATIONS`, with its default gain.
        lr_multiplier: λ, the factor by which the layer learns more slowly.
        bias_init: effective initial bias (stored divided by λ).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ):
        super().__init__()
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.empty(out_features, in_features).normal_(std=1 / lr_multiplier))
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier)) if bias else None

    def scaled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as they are used, of a layer that has both."""
        assert self.bias is not None
        return self.weight * self.weight_gain, self.bias * self.bias_gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, weight = x.reshape(-1, x.shape[-1]), self.weight.to(x.dtype).t()
        if self.bias is None:
            rows = (rows * self.weight_gain) @ weight
        else:
            bias = self.bias.to(x.dtype)
            rows = torch.addmm(bias, rows, weight, beta=self.bias_gain, alpha=self.weight_gain)
        return bias_act(rows.view(*x.shape[:-1], -1), act=self.activation, dim=-1)


class Conv2dLayer(nn.Module):
    """Convolution with optional resampling, input modulation, bias, activation, gain and clamp.

    [B, in, H, W] -> [B, out, H·up/down, W·up/down]. With `modulation_dim` the input channels are first multiplied by
    `1 + tanh(A(c))` with a linear layer A.

    Args:
        in_channels, out_channels, kernel_size: sizes; padding keeps the resolution.
        bias: add a bias.
        activation: a key of `threedgp.ops.activation.ACTIVATIONS`.
        up, down: integer resampling factors with the [1, 3, 3, 1] filter.
        conv_clamp: largest absolute output, multiplied by the extra gain of the call; None does not clamp.
        modulation_dim: length of the vector c that modulates the input; 0 for none.
        trainable: False stores the weights as buffers, out of reach of optimisers and `requires_grad_`.
    """

    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        conv_clamp: float | None = None,
        modulation_dim: int = 0,
        trainable: bool = True,
    ):
        super().__init__()
        self.activation = activation
        self.up, self.down = up, down
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = ACTIVATIONS[activation].gain
        # Up-sampling layers convolve, all others correlate: the orientation in which published weights are stored.
        self.flip_weight = up == 1
        self.register_buffer("resample_filter", default_filter(up > 1 or down > 1), persistent=False)
        self.affine = FullyConnected(modulation_dim, in_channels) if modulation_dim else None

        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size).normal_()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        if not trainable:
            for module in (self, *self.children()):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())

    def forward(self, x: torch.Tensor, c: torch.Tensor | None = None, gain: float = 1.0) -> torch.Tensor:
        """`x` [B, in, H, W], `c` [B, modulation_dim], `gain` an extra factor on output and clamp."""
        if self.affine is not None:
            x = scale_channels(x, 1 + self.affine(c).tanh())
        x = conv2d_resample(
            x,
            (self.weight * self.weight_gain).to(x.dtype),
            self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.flip_weight,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, self.activation, gain=self.act_gain * gain, clamp=clamp)


class ScalarEncoder(nn.Module):
    """Encode numbers in [0, 1] (or [−1, 1] without a table): [B, n] -> [B, n·dim], one number after the other.

    Each number x becomes its Fourier features, sines, then cosines, of `x·m · π·2^k/2^K` with m = `x_multiplier`,
    K = ⌈log2 m⌉ and k = 0..K−1: from one half period over [0, 2^K] up to one over two units. When `embedding_dim` > 0,
    a learned embedding of the integer nearest to x·m follows.

    Source: EpiGRAF (arXiv 2206.10535), Sec. 3.2 and App. B.
    """

    fourier_coefs: torch.Tensor

    def __init__(self, num_scalars: int, x_multiplier: int, embedding_dim: int = 0):
        super().__init__()
        self.x_multiplier = x_multiplier
        octaves = math.ceil(math.log2(x_multiplier))
        coefs = math.pi * 2.0 ** torch.arange(octaves, dtype=torch.float64) / 2**octaves
        self.register_buffer("fourier_coefs", coefs.float(), persistent=False)
        self.const_embed = nn.Embedding(x_multiplier + 1, embedding_dim) if embedding_dim else None
        self.dim = num_scalars * (2 * octaves + embedding_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.x_multiplier
        phase = x[..., None] * self.fourier_coefs  # [B, n, K]
        encoded = [phase.sin(), phase.cos()]
        if self.const_embed is not None:
            index = x.round().long().clamp(0, self.x_multiplier)  # round half to even
            encoded.append(self.const_embed(index))
        return torch.cat(encoded, dim=-1).flatten(start_dim=1)


def normalize_camera_angles(angles: torch.Tensor) -> torch.Tensor:
    """Yaw and pitch of `angles` [B, ≥2] (radians) in turns, keeping the sign: `sign(a)·(|a| mod 2π)/2π`, [B, 2]."""
    angles = angles[:, :2]
    return angles.sign() * (angles.abs() % (2 * math.pi)) / (2 * math.pi)


CAMERA_ANGLE_SCALE = 64
"""`ScalarEncoder` multiplier for normalised camera angles: six octaves, 24 numbers for yaw and pitch."""
