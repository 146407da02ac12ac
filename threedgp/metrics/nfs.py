"""Non-flatness score: how many depths a generator's scenes really use (3DGP, arXiv 2303.01416, Sec. 4.1, App. F)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from threedgp.errors import DataError, NotFiniteError

NUM_BINS = 64
CUT_QUANTILE = 0.5  # densities below this quantile are removed before rendering: thin fog is not geometry
QUANTILE_GROUP = 4  # images that share one quantile, whatever the batch size: part of the published definition


@dataclass(frozen=True)
class DepthEntropy:
    """Per-image results of a batch of depth maps.

    Attributes:
        histogram: float64 [N, bins], shares that sum to 1.
        entropy: float64 [N], nats, in [0, ln bins].
        clamped: float64 [N], share of pixels outside [near, far].
    """

    histogram: torch.Tensor
    entropy: torch.Tensor
    clamped: torch.Tensor


def depth_entropy(depth: torch.Tensor, near: float, far: float, bins: int = NUM_BINS) -> DepthEntropy:
    """Entropy of the depth histogram of each image (3DGP, arXiv 2303.01416, App. F).

    Args:
        depth: ray distances [N, ...]; values outside [near, far] count as the bound.
        near, far: bounds of the histogram, near < far.
        bins: equal bins on [near, far]; `far` itself falls into the last.

    Raises:
        DataError: bounds in the wrong order, or a depth that is not finite.
    """
    if not near < far:
        raise DataError(f"The depth histogram needs near < far, not near={near:g}, far={far:g}.")
    depth = depth.flatten(1)
    if not torch.isfinite(depth).all():
        raise NotFiniteError("A rendered depth map is not finite: the checkpoint has probably diverged.")
    clamped = ((depth < near) | (depth > far)).double().mean(dim=1)
    # The position inside the range is computed in the depth's own precision, like torch.histc on float32 maps.
    position = (depth.clamp(near, far) - near) / (far - near) * bins
    index = position.long().clamp(0, bins - 1)
    histogram = torch.zeros(depth.shape[0], bins, dtype=torch.float64, device=depth.device)
    histogram.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    histogram /= depth.shape[1]
    entropy = -(histogram * (histogram + 1e-12).log()).sum(dim=1).clamp(max=0)  # the 1e-12 must not make it negative
    return DepthEntropy(histogram, entropy, clamped)


def non_flatness(entropy: torch.Tensor) -> float:
    """Mean over images of exp(entropy): 1 for constant depth, the number of bins for uniformly used depth."""
    if entropy.numel() == 0:
        raise DataError("The non-flatness score needs at least one depth map.")
    return float(entropy.double().exp().mean())
