"""Depth as colours: one table for every picture of depth, near bright and warm, far dark and cool."""

from __future__ import annotations

from functools import cache

import numpy as np

SIZE = 256
_LIGHTNESS = (0.16, 0.97)
# Hue in degrees and chroma along the table, at evenly spaced stops from far to near.
_HUE = (285.0, 305.0, 345.0, 395.0, 430.0, 452.0)
_CHROMA = (0.07, 0.15, 0.18, 0.17, 0.13, 0.06)


@cache
def depth_table() -> np.ndarray:
    """The colours [256, 3] uint8, from far (0) to near (255); their perceived lightness grows in equal steps.

    Lightness, chroma and hue are those of the Oklab space (B. Ottosson, "A perceptual color space for image
    processing", 2020), so that equal differences of depth look equally large.
    """
    position = np.linspace(0, 1, SIZE)
    stops = np.linspace(0, 1, len(_HUE))
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * position
    hue = np.deg2rad(np.interp(position, stops, _HUE))
    chroma = np.interp(position, stops, _CHROMA)
    table = oklab_to_srgb(np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1))
    table = np.round(255 * table).astype(np.uint8)
    table.setflags(write=False)
    return table


def depth_colormap(nearness: np.ndarray) -> np.ndarray:
    """Colours of a depth map.

    Args:
        nearness: [...] from 0 (far) to 1 (near); values beyond are clipped, NaN counts as far.

    Returns:
        uint8 [..., 3].

    Example:
        >>> depth_colormap(np.array([0.0, 1.0])).sum(axis=-1).argmax()
        1
    """
    index = np.nan_to_num(np.clip(nearness, 0, 1)) * (SIZE - 1)
    return depth_table()[np.round(index).astype(np.intp)]


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Oklab [..., 3] to sRGB [..., 3] in 0..1, clipped to what a screen can show."""
    to_cone = np.array(
        [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(((lab @ to_cone.T) ** 3) @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
