"""Kernel Inception distance (arXiv 1801.01401): unbiased squared MMD with a cubic polynomial kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from threedgp.errors import DataError

NUM_SUBSETS = 100
SUBSET_SIZE = 1000


class KernelDistance(NamedTuple):
    """Mean and standard deviation of the distance over subsets; the mean may be slightly negative."""

    mean: float
    std: float


def draw_subsets(
    num_real: int, num_gen: int, *, seed: int, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each subset, drawn without replacement: generated first, then real, [num_subsets, m] each.

    m is the smallest of both sets' sizes and `subset_size`.

    Raises:
        DataError: a set has fewer than 2 images, for which the unbiased estimate is undefined.
    """
    size = min(num_real, num_gen, subset_size)
    if size < 2:
        raise DataError(
            f"The kernel distance needs at least 2 images on each side, not {num_real} real, {num_gen} generated."
        )
    generator = np.random.default_rng(seed)
    gen, real = zip(
        *((generator.permutation(num_gen)[:size], generator.permutation(num_real)[:size]) for _ in range(num_subsets)),
        strict=True,
    )
    return np.stack(gen), np.stack(real)


def kernel_distance(
    real: torch.Tensor, gen: torch.Tensor, index_gen: np.ndarray, index_real: np.ndarray
) -> KernelDistance:
    """KID over given subsets, in float64.

    Args:
        real, gen: features [N, d].
        index_gen, index_real: rows of each subset, [subsets, m].
    """
    values = [
        _squared_mmd(real[torch.from_numpy(r)].double(), gen[torch.from_numpy(g)].double())
        for g, r in zip(index_gen, index_real, strict=True)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _squared_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased estimate between two sets of m rows: diagonals left out within a set, kept between sets."""
    m = x.shape[0]
    within = sum(_kernel(a, a).sum() - _kernel_diagonal(a).sum() for a in (x, y)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).sum() / m**2)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_diagonal(a: torch.Tensor) -> torch.Tensor:
    return (a.square().sum(dim=1) / a.shape[1] + 1) ** 3
