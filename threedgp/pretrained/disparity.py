"""Which way round depth is: most networks give disparity (larger is nearer), everything here is depth (farther)."""

from __future__ import annotations

import numpy as np

FAR_OVER_NEAR = 10.0  # assumed for disparity without its zero point
DEPTH_MAXIMUM = 60000


def depth_of_disparity(disparity: np.ndarray) -> np.ndarray:
    """Disparity (larger is nearer, unknown scale and shift) to depth, with the farthest point 10 times the nearest.

    Depth is 1 / (a disparity + b). The network does not know b; a fixed ratio of the ends keeps flat things nearly
    flat, which turning the values round would not.

    Args:
        disparity: [H, W], any number type.

    Returns:
        float32 [H, W], 1 (near) .. 10 (far).
    """
    disparity = disparity.astype(np.float32)
    span = disparity.max() - disparity.min()
    if not span > 0:
        return np.ones_like(disparity)
    nearness = (disparity - disparity.min()) / span  # 0 far, 1 near
    return 1 / (nearness + (1 - nearness) / FAR_OVER_NEAR)


def quantize(depth: np.ndarray) -> np.ndarray:
    """float32 depth, all > 0, to uint16 with the maximum at 60000."""
    return (depth / depth.max() * np.float32(DEPTH_MAXIMUM)).astype(np.uint16)
