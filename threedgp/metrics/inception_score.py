"""Inception score (arXiv 1606.03498)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from threedgp.errors import DataError

NUM_SPLITS = 10


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(probabilities: torch.Tensor, splits: int = NUM_SPLITS) -> InceptionScore:
    """exp of the mean Kullback-Leibler divergence between a sample's class distribution and its split's mean.

    Args:
        probabilities: [N, classes], rows sum to 1; a probability of 0 contributes 0.
        splits: consecutive parts of rows.

    Raises:
        DataError: fewer samples than splits.
    """
    count = probabilities.shape[0]
    if count < splits:
        raise DataError(f"The Inception score in {splits} splits needs at least {splits} images, not {count}.")
    scores = []
    for index in range(splits):
        p = probabilities[index * count // splits : (index + 1) * count // splits].double()
        mean = p.mean(dim=0, keepdim=True)
        divergence = torch.xlogy(p, p) - torch.xlogy(p, mean)
        scores.append(divergence.sum(dim=1).mean().exp())
    std, mean = torch.std_mean(torch.stack(scores), correction=0)
    return InceptionScore(float(mean), float(std))
