"""Where along a ray the field is evaluated: stratified first, then where the first pass found matter.

Positions are normalised: s = 0 is the near end of the ray's interval, s = 1 the far end.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Marcher = Literal["classical", "mip"]


def stratified_samples(jitter: Tensor, marcher: Marcher = "classical") -> Tensor:
    """One sample per stratum.

    With the grid g_i = i/(N−1): `classical` strata reach half-way to the neighbouring grid points (the outer two are
    half as wide); `mip` strata are [g_i, g_i + 1/(N−1)), so the last sample may lie up to one stratum beyond 1.

    Args:
        jitter: [..., N] in [0, 1), N ≥ 2; 0.5 everywhere is the deterministic choice.

    Returns:
        Ascending s [..., N].
    """
    steps = jitter.shape[-1]
    grid = torch.arange(steps, device=jitter.device, dtype=jitter.dtype) / (steps - 1)
    if marcher == "mip":
        return grid + jitter / (steps - 1)
    middle = (grid[1:] + grid[:-1]) / 2
    lower, upper = torch.cat([grid[:1], middle]), torch.cat([middle, grid[-1:]])
    return lower + (upper - lower) * jitter


def inverse_cdf_samples(bins: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Draw from a piecewise-constant density by inverting its cumulative distribution (NeRF, arXiv 2003.08934, 5.2).

    Args:
        bins: [..., K+1] ascending edges.
        weights: [..., K] unnormalised probabilities (≥ 0) of the K intervals.
        u: [..., M] in [0, 1].

    Returns:
        Positions [..., M], in the order of u.
    """
    weights = weights + 1e-5  # an all-empty ray becomes a uniform density instead of 0/0
    cdf = torch.cumsum(weights / weights.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)  # [..., K+1]
    above = torch.searchsorted(cdf, u.contiguous(), right=True)  # number of entries ≤ u
    low, high = (above - 1).clamp(min=0), above.clamp(max=weights.shape[-1])
    cdf_low, cdf_high = cdf.gather(-1, low), cdf.gather(-1, high)
    bin_low, bin_high = bins.gather(-1, low), bins.gather(-1, high)
    mass = cdf_high - cdf_low
    mass = torch.where(mass < 1e-5, 1.0, mass)
    return bin_low + (u - cdf_low) / mass * (bin_high - bin_low)


@torch.no_grad()
def importance_samples(s_coarse: Tensor, weights: Tensor, u: Tensor, marcher: Marcher = "classical") -> Tensor:
    """Second-pass positions, dense where the first pass put its weight. No gradient flows through them.

    The `mip` marcher's weights are first widened by a maximum and a mean over neighbours, as in mip-NeRF (arXiv
    2103.13415, Sec. 3.2), so that samples also fall beside a surface.

    Args:
        s_coarse: [..., N] ascending positions of the first pass, N ≥ 4.
        weights: [..., M] of the first march (M = N, or N−1 for `mip` without the infinite last interval).
        u: [..., N_fine] in [0, 1].

    Returns:
        [..., N_fine] positions, unsorted when u is.
    """
    if marcher == "mip":
        padded = torch.nn.functional.pad(weights, (1, 1))  # weights are ≥ 0, so a 0 never wins the maximum
        peak = torch.maximum(padded[..., :-1], padded[..., 1:])  # [..., M+1]
        weights = (peak[..., :-1] + peak[..., 1:]) / 2 + 0.01
    else:
        weights = weights + 1e-5
    weights = weights[..., 1:-1]
    edges = (s_coarse[..., 1:] + s_coarse[..., :-1]) / 2
    return inverse_cdf_samples(edges[..., : weights.shape[-1] + 1], weights, u)
