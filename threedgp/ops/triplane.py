"""Looking up points in three axis-aligned feature planes.

Source: EG3D (arXiv 2112.07945), Sec. 3, with the plane order and averaging of EpiGRAF (arXiv 2206.10535), Sec. 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

PLANE_AXES = ((0, 1), (0, 2), (1, 2))
"""For each plane the point coordinates that index its columns and its rows: (x, y), (x, z), (y, z)."""


def sample_triplanes(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Mean of the three planes' bilinearly interpolated features at each point.

    Coordinate −1 is the centre of the first column (row) and +1 that of the last; there is no flip. Points outside
    fade to zero over one pixel and are zero beyond.

    Args:
        planes: [B, 3, F, H, W].
        points: [B, M, 3], normalised so that the cube is [−1, 1]³.

    Returns:
        [B, M, F]. Differentiable once in planes and points.

    Example:
        >>> planes = torch.ones(1, 3, 8, 16, 16)
        >>> sample_triplanes(planes, torch.zeros(1, 5, 3)).shape
        torch.Size([1, 5, 8])
    """
    batch, num_planes, features, height, width = planes.shape
    if num_planes != 3 or points.shape[0] != batch or points.shape[-1] != 3:
        raise ValueError(
            f"expected planes [B, 3, F, H, W] and points [B, M, 3], got {tuple(planes.shape)} and {tuple(points.shape)}"
        )
    grid = torch.stack([points[..., axes] for axes in PLANE_AXES], dim=1)  # [B, 3, M, 2]
    grid = grid.reshape(batch * 3, 1, -1, 2).to(planes.dtype)
    sampled = F.grid_sample(
        planes.reshape(batch * 3, features, height, width),
        grid,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )  # [B·3, F, 1, M]
    return sampled.reshape(batch, 3, features, -1).mean(dim=1).transpose(1, 2)
