"""The convolution that most of a training's arithmetic is: 3x3 taps, stride 1, one pixel of padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from threedgp.ops import native


def conv2d(x: Tensor, weight: Tensor, padding: int = 0, groups: int = 1) -> Tensor:
    """`F.conv2d` of [B, I, H, W] with [O, I/groups, k, k]; on CPUs 3x3 float32 ones with fewer multiplications.

    These use Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308), about as exact as the direct sum.
    Differentiable to any order.
    """
    fast = native.library(x, weight) if padding == groups == 1 else None
    if fast is not None and fast.conv3x3_fits(x, weight):
        return fast.conv3x3(x, weight)
    return F.conv2d(x, weight, padding=padding, groups=groups)
