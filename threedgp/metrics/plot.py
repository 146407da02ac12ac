"""A picture of the depths that a generator uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from threedgp.data.images import write_image
from threedgp.metrics.nfs import DepthScores

WIDTH, HEIGHT, MARGIN, TOP, BOTTOM = 900, 330, 56, 74, 290
INK, FAINT, BAR = (32, 33, 36), (218, 220, 224), (66, 114, 196)
SCORE_BINS = 32


def plot_depth_scores(scores: DepthScores, title: str, path: Path) -> None:
    """Write a PNG: the mean depth histogram, and how the images' scores are spread; `scores` has at least one image."""
    bins = len(scores.histogram)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 10), title, INK, ImageFont.load_default(17))
    half = (WIDTH - 3 * MARGIN) // 2
    spread = np.histogram(scores.entropy.exp().numpy(), bins=SCORE_BINS, range=(1, bins))[0]
    depth = scores.histogram.numpy() * 100
    _bars(draw, MARGIN, half, depth, "share of pixels (%) by depth", (scores.near, scores.far))
    mean = f"images by non-flatness, mean {scores.values[0]:.2f}"
    _bars(draw, 2 * MARGIN + half, half, spread, mean, (1, bins))
    write_image(path, image)


def _bars(
    draw: ImageDraw.ImageDraw, left: int, width: int, heights: np.ndarray, title: str, ends: tuple[float, float]
) -> None:
    """One bar chart with its scale."""
    font = ImageFont.load_default(13)
    draw.text((left, 42), title, INK, font)
    peak = float(heights.max()) or 1.0
    for fraction in (0.0, 0.5, 1.0):
        y = BOTTOM - fraction * (BOTTOM - TOP)
        draw.line([(left, y), (left + width, y)], FAINT)
        draw.text((left - 6, y), f"{fraction * peak:.3g}", INK, font, anchor="rm")
    for index, value in enumerate(heights):
        x0, x1 = (left + round(width * place / len(heights)) for place in (index, index + 1))
        if value > 0:
            draw.rectangle([x0, BOTTOM - float(value) / peak * (BOTTOM - TOP), max(x1 - 2, x0), BOTTOM], BAR)
    for place, anchor in ((0, "la"), (1, "ra")):
        draw.text((left + place * width, BOTTOM + 8), f"{ends[place]:g}", INK, font, anchor=anchor)
