"""Pictures side by side: tiles, panels of colour and depth, and how many fit where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from threedgp.colormap import SIZE as COLORS
from threedgp.colormap import depth_table
from threedgp.errors import UsageError
from threedgp.files import atomic_path
from threedgp.inference.sampler import Views

BORDER = 2
PANELS = ("rgb", "depth", "adapted")
JPEG_QUALITY = 95
LARGEST_PICTURE = 65_000  # pixels a side: what JPEG can hold


def make_grid(images: Tensor, columns: int, border: int = BORDER) -> Tensor:
    """Tiles row by row with a black border around and between them.

    Args:
        images: [N, C, h, w]; one channel is repeated to three.
        columns: tiles a row; fewer images than that make a single shorter row.
        border: pixels.

    Returns:
        [C, rows·(h+border)+border, used·(w+border)+border] with used = min(columns, N).

    Example:
        >>> make_grid(torch.ones(5, 3, 4, 6), 3).shape
        torch.Size([3, 14, 26])
    """
    from torchvision.utils import make_grid as tile  # slow to import

    if len(images) == 1:  # which torchvision leaves without a border
        return torch.nn.functional.pad(images[0].expand(3, -1, -1), [border] * 4)
    return tile(images, nrow=columns, padding=border)


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] to 0..255, rounded down: ⌊255·x⌋."""
    return (images * 255).to(torch.uint8)


def video_columns(samples: int) -> int:
    """Tiles a row that make a grid of `samples` about square: ⌈√samples⌉."""
    return math.isqrt(samples - 1) + 1


def image_columns(samples: int, per_file: int) -> int:
    """Tiles a row of a picture of `samples` out of at most `per_file`: ⌊√per_file⌋, or fewer if there are fewer."""
    return min(samples, math.isqrt(per_file))


def parse_panels(text: str) -> list[str]:
    """What to show side by side: "rgb,depth" -> ["rgb", "depth"]; "both" is short for that.

    Raises:
        UsageError: another word than rgb, depth, adapted, both; or nothing.
    """
    words = [word.strip() for word in text.lower().replace("both", "rgb,depth").split(",") if word.strip()]
    unknown = [word for word in words if word not in PANELS]
    if unknown or not words:
        raise UsageError(f"--show {text}: choose from rgb, depth, adapted and both, separated by commas.")
    return list(dict.fromkeys(words))


def panels(views: Views, shown: Sequence[str]) -> list[Tensor]:
    """The chosen pictures of views, each uint8 [B, 3, h, w]; depth is coloured, near bright."""
    depths = {"depth": views.depth, "adapted": views.adapted}
    return [to_uint8(views.rgb) if name == "rgb" else color_depth(depths[name]) for name in shown]


def color_depth(depth: Tensor | None) -> Tensor:
    """Depth [B, 1, h, w] from near (0) to far (1) as colours uint8 [B, 3, h, w]."""
    assert depth is not None  # whoever asks for it has a model that makes it
    index = ((1.0 - depth[:, 0]) * (COLORS - 1)).round().long().clamp(0, COLORS - 1)
    return _colors(depth.device)[index].permute(0, 3, 1, 2)


@cache
def _colors(device: torch.device) -> Tensor:
    return torch.from_numpy(depth_table().copy()).to(device)


def save_picture(path: Path, picture: Tensor) -> None:
    """Write uint8 [3, H, W] as PNG or JPEG (quality 95, full colour resolution), whole or not at all.

    Raises:
        UsageError: another ending than .png, .jpg, .jpeg, or a picture larger than such files can be.
        OSError: the disk is full or not writable.
    """
    from PIL import Image

    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path.name}: pictures are written as .png, .jpg or .jpeg.")
    if max(picture.shape[1:]) > LARGEST_PICTURE:
        raise UsageError(
            f"The picture would be {picture.shape[2]}x{picture.shape[1]} pixels. Lower --size, --per-file or the "
            "number of views."
        )
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    with atomic_path(path) as temporary:
        image.save(temporary, kind, **options)
