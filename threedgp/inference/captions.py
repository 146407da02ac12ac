"""Lines of text under tiles, drawn with the font that comes with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LARGEST_FONT, SMALLEST_FONT = 14, 7
MARGIN = 2
INK = (235, 235, 235)


def caption_strips(texts: Sequence[str], width: int, device: torch.device | str = "cpu") -> Tensor:
    """White text on black, one strip a text, all in the largest size in which the longest text fits.

    Args:
        texts: one line each; what does not fit even in the smallest size ends in "…".
        width: of a tile, pixels.
        device: where the strips go.

    Returns:
        uint8 [N, 3, h, width]; h depends on the font size only.
    """
    room = max(width - 2 * MARGIN, 1)
    size = LARGEST_FONT
    while size > SMALLEST_FONT and max(_font(size).getlength(text) for text in texts) > room:
        size -= 1
    font = _font(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    ascent, descent = font.getmetrics()
    strips = []
    for text in texts:
        strip = Image.new("RGB", (width, ascent + descent + MARGIN))
        ImageDraw.Draw(strip).text((MARGIN, MARGIN // 2), _fit(text, font, room), INK, font)
        strips.append(np.asarray(strip))
    return torch.from_numpy(np.stack(strips)).permute(0, 3, 1, 2).to(device)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return text + "…"
