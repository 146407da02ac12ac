"""The native forms of what happens along rays; `threedgp.rendering` defines them and decides when they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from threedgp.ops import native


class MarchOptions(NamedTuple):
    """How rays are composited; names and meaning as in `threedgp.rendering.renderer.RenderOptions`."""

    mip: bool
    relu: bool
    use_inf_depth: bool
    last_back: bool
    density_bias: float


class RaySamples(NamedTuple):
    """Colours [..., N, C], raw densities [..., N] and distances [..., N] of one pass."""

    rgb: Tensor
    sigma: Tensor
    t: Tensor


Twin = Callable[[RaySamples, RaySamples], tuple[Tensor, Tensor, Tensor, Tensor]]


def march(
    coarse: RaySamples, fine: RaySamples, options: MarchOptions, twin: Twin, white_channels: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge both passes by distance and composite them.

    Args:
        coarse: ascending distances.
        fine: in any order; N may be 0.
        options: see MarchOptions.
        twin: the plain form, (coarse, fine) -> the same four, for second derivatives.
        white_channels: leading channels in which the missing weight shows white.

    Returns:
        color [..., C]; depth, weight_sum and what passes the whole ray, [...]. Differentiable in colours and densities,
        not in distances.
    """
    shape = coarse.sigma.shape[:-1]
    color, *rest = _March.apply(*coarse, *fine, options, twin, white_channels)
    return color.reshape(*shape, -1), *(value.reshape(shape) for value in rest)


@torch.no_grad()
def importance(sigma: Tensor, s: Tensor, u: Tensor, options: MarchOptions) -> Tensor:
    """Positions [..., M] of the second pass, for quantiles u [..., M], from raw densities [..., N] at positions s."""
    return torch.ops.threedgp.importance(
        sigma, s, u, options.mip, options.relu, options.use_inf_depth, options.last_back, options.density_bias
    )


class _March(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rgb_c, sigma_c, t_c, rgb_f, sigma_f, t_f, options, twin, white_channels):
        mip, relu, infinite, last_back, bias = options
        ctx.settings = mip, relu, infinite, last_back, white_channels, bias
        ctx.twin = twin
        inputs = rgb_c, sigma_c, t_c, rgb_f, sigma_f, t_f
        *results, order = torch.ops.threedgp.march(*inputs, *ctx.settings)
        ctx.save_for_backward(order, *inputs)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            _, *inputs = ctx.saved_tensors

            def twin(*samples: Tensor) -> tuple[Tensor, ...]:
                results = ctx.twin(RaySamples(*samples[:3]), RaySamples(*samples[3:]))
                return tuple(value.reshape(grad.shape) for value, grad in zip(results, grads, strict=True))

            return *native.gradients(twin, inputs, grads, ctx.needs_input_grad[:6]), None, None, None
        rgb_c, sigma_c, rgb_f, sigma_f = torch.ops.threedgp.march_backward(*grads, *ctx.saved_tensors, *ctx.settings)
        return rgb_c, sigma_c, None, rgb_f, sigma_f, None, None, None, None
