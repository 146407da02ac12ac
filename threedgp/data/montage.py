"""Contact sheets: rows of small pictures with a line of text above each."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont, ImageOps

from threedgp.data.images import image_size, open_image
from threedgp.data.source import ImageSource
from threedgp.errors import DataError

COLUMNS = 10
CELL = 96
GAP = 4
LINE = 18
PAPER, INK, SOFT = (250, 250, 248), (30, 30, 30), (120, 120, 120)


def draw_montage(source: ImageSource, title: str, rows: list[tuple[str, list[str]]]) -> Image.Image:
    """Draw a contact sheet.

    Args:
        source: where the pictures are read from; unreadable ones become an empty frame.
        title: first line.
        rows: (caption, names of at most 10 pictures).
    """
    width = GAP + COLUMNS * (CELL + GAP)
    height = LINE + 2 * GAP + len(rows) * (LINE + CELL + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    pen.text((GAP, GAP), title, INK, font)
    top = LINE + 2 * GAP
    for caption, names in rows:
        pen.text((GAP, top), caption, SOFT, font)
        for column, name in enumerate(names):
            corner = (GAP + column * (CELL + GAP), top + LINE)
            picture = _thumbnail(source, name)
            if picture is None:
                pen.rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), outline=SOFT)
            else:
                sheet.paste(picture, corner)
        top += LINE + CELL + GAP
    return sheet


def _thumbnail(source: ImageSource, name: str) -> Image.Image | None:
    """The centre square at CELL x CELL."""
    try:
        data = source.read(name)
        short = min(image_size(data))
        picture = open_image(data, reduce=next((n for n in (8, 4, 2) if short >= n * CELL), 1))
    except DataError:
        return None
    return ImageOps.fit(picture, (CELL, CELL))
