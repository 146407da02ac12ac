"""A picture of the depths that a generator uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from threedgp.data.images import write_image
from threedgp.metrics.nfs import DepthScores

WIDTH, HEIGHT, MARGIN = 900, 330, 56
INK, FAINT, BAR = (32, 33, 36), (218, 220, 224), (66, 114, 196)
SCORE_BINS = 32


def plot_depth_scores(scores: DepthScores, title: str, path: Path) -> None:
    """Write a PNG: the mean depth histogram, and how the images' scores are spread.

    Args:
        scores: at least one image.
        title: first line of the picture.
        path: of the PNG.
    """
    bins = len(scores.histogram)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 10), title, INK, _font(17))
    half = (WIDTH - 3 * MARGIN) // 2
    spread, _ = np.histogram(scores.entropy.exp().numpy(), bins=SCORE_BINS, range=(1, bins))
    left, right = MARGIN, 2 * MARGIN + half
    _bars(draw, left, half, scores.histogram.numpy() * 100, "share of pixels (%) by depth", (scores.near, scores.far))
    _bars(draw, right, half, spread, "images by non-flatness", (1, bins), mark=scores.values[0])
    write_image(path, image)


def _bars(
    draw: ImageDraw.ImageDraw,
    left: int,
    width: int,
    heights: np.ndarray,
    title: str,
    ends: tuple[float, float],
    mark: float | None = None,
) -> None:
    """One bar chart with its scale; `mark` draws a vertical line with its value."""
    top, bottom, font = 74, HEIGHT - 40, _font(13)
    draw.text((left, 42), title, INK, font)
    peak = float(heights.max()) or 1.0
    for fraction in (0.0, 0.5, 1.0):
        y = bottom - fraction * (bottom - top)
        draw.line([(left, y), (left + width, y)], FAINT)
        draw.text((left - 6, y), f"{fraction * peak:.3g}", INK, font, anchor="rm")
    for index, value in enumerate(heights):
        x0, x1 = (left + round(width * place / len(heights)) for place in (index, index + 1))
        if value > 0:
            draw.rectangle([x0, bottom - float(value) / peak * (bottom - top), max(x1 - 2, x0), bottom], BAR)
    for place, anchor in ((0, "la"), (1, "ra")):
        draw.text((left + place * width, bottom + 8), f"{ends[place]:g}", INK, font, anchor=anchor)
    if mark is not None:
        x = left + width * (mark - ends[0]) / (ends[1] - ends[0])
        draw.line([(x, top - 6), (x, bottom)], INK, 2)
        draw.text((x, top - 8), f"mean {mark:.2f}", INK, font, anchor="mb")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
