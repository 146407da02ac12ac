"""Improved precision and recall (arXiv 1904.06991): is a sample inside the other set's manifold of k-NN balls?"""

from __future__ import annotations

from typing import NamedTuple

import torch

from threedgp.errors import DataError

BLOCK = 10_000  # rows and columns of one block of the distance matrix: 400 MB in float32


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: generated samples inside the real manifold, and real samples inside the generated one."""

    precision: float
    recall: float


def precision_recall(
    real: torch.Tensor, gen: torch.Tensor, *, neighbours: int = 3, block: int = BLOCK
) -> PrecisionRecall:
    """Precision and recall of generated against real features (arXiv 1904.06991, Eq. 1 and 2).

    Distances are Euclidean, in float32 of features centred on the real mean; memory is one block, whatever the sizes.

    Args:
        real, gen: [N, d] on one device.
        neighbours: k.
        block: rows and columns compared at a time.

    Raises:
        DataError: a set has no more than `neighbours` samples.
    """
    for name, features in (("real", real), ("generated", gen)):
        if features.shape[0] <= neighbours:
            raise DataError(
                f"Precision and recall with {neighbours} neighbours need at least {neighbours + 1} {name} images, "
                f"not {features.shape[0]}."
            )
    centre = real.double().mean(dim=0)
    real, gen = ((features.double() - centre).float() for features in (real, gen))
    inside_real = inside_manifold(gen, real, manifold_radii(real, neighbours, block), block)
    inside_gen = inside_manifold(real, gen, manifold_radii(gen, neighbours, block), block)
    return PrecisionRecall(float(inside_real.double().mean()), float(inside_gen.double().mean()))


def manifold_radii(points: torch.Tensor, neighbours: int, block: int = BLOCK) -> torch.Tensor:
    """Squared distance of each point to its k-th nearest neighbour in its own set, itself excluded: [N]."""
    radii = []
    for row in range(0, points.shape[0], block):
        rows = points[row : row + block]
        nearest = torch.empty(rows.shape[0], 0, device=points.device)
        for column in range(0, points.shape[0], block):
            distances = _squared_distances(rows, points[column : column + block])
            if row == column:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distances], dim=1)
            nearest = nearest.topk(min(neighbours, nearest.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def inside_manifold(
    probes: torch.Tensor, points: torch.Tensor, radii: torch.Tensor, block: int = BLOCK
) -> torch.Tensor:
    """Whether each probe [M, d] lies in the ball of at least one point [N, d] with squared radii [N]: bool [M]."""
    inside = []
    for row in range(0, probes.shape[0], block):
        rows = probes[row : row + block]
        hit = torch.zeros(rows.shape[0], dtype=torch.bool, device=probes.device)
        for column in range(0, points.shape[0], block):
            distances = _squared_distances(rows, points[column : column + block])
            hit |= (distances <= radii[column : column + block]).any(dim=1)
        inside.append(hit)
    return torch.cat(inside)


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return squares.addmm(a, b.T, alpha=-2).clamp_(min=0)
