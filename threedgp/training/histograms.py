"""Histograms of the camera prior and of what the model has made of it, as one picture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw

BINS = 32
PANEL, GAP, TITLE = (200, 120), 12, 16  # pixels
BACKGROUND, PRIOR, POSTERIOR, INK = (255, 255, 255), (200, 205, 215), (214, 90, 49), (40, 44, 52)


def histogram_sheet(parameters: Mapping[str, tuple[torch.Tensor, torch.Tensor]], columns: int = 4) -> Image.Image:
    """A panel for each parameter: prior as grey bars, posterior as an orange line, range and means beneath.

    Args:
        parameters: name -> (prior values [N], posterior values [N]).
    """
    rows = -(-len(parameters) // columns)
    width, height = PANEL[0] + GAP, PANEL[1] + 2 * TITLE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (name, (prior, posterior)) in enumerate(parameters.items()):
        row, column = divmod(number, columns)
        left, top = GAP + column * width, GAP + row * height
        base, step = top + TITLE + PANEL[1], PANEL[0] / BINS
        both = torch.cat([prior, posterior])
        low, high = both.min().item(), both.max().item()
        if high - low < 1e-6:
            low, high = low - 0.5, high + 0.5
        bars, line = (torch.histc(values, BINS, low, high).tolist() for values in (prior, posterior))
        tallest = max(*bars, *line)
        for k, count in enumerate(bars):
            y = base - PANEL[1] * count / tallest
            draw.rectangle((left + k * step, y, left + (k + 1) * step - 1, base), fill=PRIOR)
        points = [(left + (k + 0.5) * step, base - PANEL[1] * count / tallest) for k, count in enumerate(line)]
        draw.line(points, fill=POSTERIOR, width=2)
        draw.line((left, base, left + PANEL[0], base), fill=INK)
        draw.text((left, top), f"{name}: mean {prior.mean():.3g} -> {posterior.mean():.3g}", fill=INK)
        draw.text((left, base + 2), f"{low:.3g}", fill=INK)
        draw.text((left + PANEL[0], base + 2), f"{high:.3g}", fill=INK, anchor="ra")
    return sheet
