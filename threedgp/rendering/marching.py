"""Volume rendering along sorted samples: the classical quadrature and the midpoint variant of mip-NeRF and EG3D."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

INFINITE_STEP = 1e10
LAST_STEP = 1e-3


class Composite(NamedTuple):
    """What a march returns.

    Attributes:
        color: [..., C].
        depth: [...] Σ w·t, in the units of the distances. Not divided by the summed weight.
        weights: [..., M].
        weight_sum: [...] before any background is added.
        transmittance: [..., M+1], starting with 1; the last value is what passes the whole ray.
    """

    color: Tensor
    depth: Tensor
    weights: Tensor
    weight_sum: Tensor
    transmittance: Tensor


class RayWeights(NamedTuple):
    """weights [..., M], weight_sum [...] and transmittance [..., M+1] of a march, without colours."""

    weights: Tensor
    weight_sum: Tensor
    transmittance: Tensor


def quantile(values: Tensor, level: float) -> Tensor:
    """Linearly interpolated quantile of all values; unlike torch.quantile not limited to 2^24 of them."""
    flat = values.flatten()
    position = level * (flat.numel() - 1)
    below = int(position)
    low = flat.kthvalue(below + 1).values
    if position == below:
        return low
    return torch.lerp(low, flat.kthvalue(below + 2).values, position - below)


def _composite_weights(sigma: Tensor, steps: Tensor, cut_quantile: float) -> RayWeights:
    """w_i = α_i·T_i with α_i = 1 − exp(−δ_iσ_i) and T_{i+1} = T_i·(1 − α_i + 1e-10)."""
    if cut_quantile > 0:
        sigma = sigma * (sigma >= quantile(sigma.detach(), cut_quantile))
    optical_depth = sigma * steps  # [..., M]
    alpha = -torch.expm1(-optical_depth)
    # The running product as a sum of logarithms: its derivative needs no search for zero factors.
    log_pass = torch.log(torch.exp(-optical_depth) + 1e-10)
    transmittance = torch.exp(functional.pad(torch.cumsum(log_pass, dim=-1), (1, 0)))  # [..., M+1]
    weights = alpha * transmittance[..., :-1]
    return RayWeights(weights, weights.sum(dim=-1), transmittance)


def _steps(distances: Tensor, last: float) -> Tensor:
    return torch.cat([distances.diff(dim=-1), torch.full_like(distances[..., :1], last)], dim=-1)


def classical_weights(
    sigma: Tensor,
    distances: Tensor,
    *,
    use_inf_depth: bool = True,
    clamp_mode: Literal["softplus", "relu"] = "softplus",
    softplus_beta: float = 1.0,
    cut_quantile: float = 0.0,
) -> RayWeights:
    """Weights of the classical quadrature; arguments as in `classical_march`. M = N."""
    steps = _steps(distances, INFINITE_STEP if use_inf_depth else LAST_STEP)
    if clamp_mode == "softplus":
        density = functional.softplus(sigma, beta=softplus_beta, threshold=30.0)
    else:
        density = functional.relu(sigma)
    return _composite_weights(density, steps, cut_quantile)


def classical_march(
    colors: Tensor,
    sigma: Tensor,
    distances: Tensor,
    *,
    use_inf_depth: bool = True,
    clamp_mode: Literal["softplus", "relu"] = "softplus",
    softplus_beta: float = 1.0,
    cut_quantile: float = 0.0,
    last_back: bool = False,
    white_back: int = 0,
) -> Composite:
    """Quadrature of NeRF (arXiv 2003.08934, Eq. 3), each sample owning the interval to the next one.

    Args:
        colors: [..., N, C], nominally in [−1, 1].
        sigma: [..., N] raw densities, before the non-negativity of `clamp_mode`.
        distances: [..., N] ascending.
        use_inf_depth: the last interval is 1e10 long instead of 1e-3.
        cut_quantile: densities below this quantile of the whole call become 0 (0: keep all).
        last_back: the last sample takes whatever weight is missing to 1.
        white_back: number of leading channels in which the missing weight shows white (+1).

    Returns:
        Composite with M = N.
    """
    weights, weight_sum, transmittance = classical_weights(
        sigma,
        distances,
        use_inf_depth=use_inf_depth,
        clamp_mode=clamp_mode,
        softplus_beta=softplus_beta,
        cut_quantile=cut_quantile,
    )
    if last_back:
        weights = fill_last(weights, weight_sum)
    color = (weights[..., None] * colors).sum(dim=-2)
    depth = (weights * distances).sum(dim=-1)
    if white_back:
        color = _add_white(color, weight_sum, white_back)
    return Composite(color, depth, weights, weight_sum, transmittance)


def fill_last(weights: Tensor, weight_sum: Tensor) -> Tensor:
    """Give the last sample whatever weight is missing to 1: [..., N], [...] -> [..., N]."""
    return torch.cat([weights[..., :-1], weights[..., -1:] + (1.0 - weight_sum)[..., None]], dim=-1)


def mip_weights(
    sigma: Tensor,
    distances: Tensor,
    *,
    use_inf_depth: bool = True,
    density_bias: float = 0.0,
    cut_quantile: float = 0.0,
) -> RayWeights:
    """Weights of the midpoint quadrature; arguments as in `mip_march`. M = N with use_inf_depth, else N−1."""
    steps = _steps(distances, INFINITE_STEP) if use_inf_depth else distances.diff(dim=-1)
    density = functional.softplus(_midpoints(sigma, -1, use_inf_depth) + density_bias, threshold=30.0)
    return _composite_weights(density, steps, cut_quantile)


def mip_march(
    colors: Tensor,
    sigma: Tensor,
    distances: Tensor,
    *,
    use_inf_depth: bool = True,
    density_bias: float = 0.0,
    cut_quantile: float = 0.0,
    white_back: int = 0,
) -> Composite:
    """Midpoint quadrature of mip-NeRF and EG3D (arXiv 2112.07945): an interval takes the mean of its two ends.

    Args:
        colors: [..., N, C] in [0, 1].
        sigma: [..., N] raw densities; σ = softplus(mean + density_bias).
        distances: [..., N] ascending.
        use_inf_depth: append an interval of length 1e10 that repeats the last sample.
        cut_quantile, white_back: as in `classical_march`.

    Returns:
        Composite with M = N with use_inf_depth, else N−1; the colour is scaled to [−1, 1].
    """
    weights, weight_sum, transmittance = mip_weights(
        sigma, distances, use_inf_depth=use_inf_depth, density_bias=density_bias, cut_quantile=cut_quantile
    )
    color = (weights[..., None] * _midpoints(colors, -2, use_inf_depth)).sum(dim=-2)
    depth = (weights * _midpoints(distances, -1, use_inf_depth)).sum(dim=-1)
    if white_back:
        color = _add_white(color, weight_sum, white_back)
    return Composite(2.0 * color - 1.0, depth, weights, weight_sum, transmittance)


def _midpoints(values: Tensor, dim: int, repeat_last: bool) -> Tensor:
    count = values.shape[dim]
    middle = (values.narrow(dim, 0, count - 1) + values.narrow(dim, 1, count - 1)) / 2
    return torch.cat([middle, values.narrow(dim, count - 1, 1)], dim=dim) if repeat_last else middle


def _add_white(color: Tensor, weight_sum: Tensor, channels: int) -> Tensor:
    missing = (1.0 - weight_sum)[..., None]  # [..., 1]
    return torch.cat([color[..., :channels] + missing, color[..., channels:]], dim=-1)
