"""Differentiable changes of colours, places and parts, the same kind for reals and fakes.

Source: DiffAugment (arXiv 2006.10738), its policy "color, translation, cutout" with the ranges given there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 7  # uniform numbers that one image uses up


def augment_colors(images: Tensor, numbers: Tensor) -> Tensor:
    """Change brightness, saturation and contrast, move by up to an eighth of the side, blank a square of half the side.

    Args:
        images: [B, 3, H, W] in [−1, 1]; what comes out may leave the range.
        numbers: [B, 7] uniform in [0, 1).
    """
    height, width = images.shape[2:]
    numbers = numbers.to(images.device)
    brightness, saturation, contrast = numbers[:, :3, None, None, None].to(images.dtype).unbind(dim=1)
    x = images + (brightness - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (2 * saturation) + mean
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean

    # Moved content brings in a frame of zeros, reached by index 0 and side + 1 of the padded image.
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    down, right = ((2 * numbers[:, 3:5] - 1) * (torch.tensor([height, width], device=x.device) / 8)).round().unbind(1)
    from_rows = (rows + down[:, None]).clamp(-1, height).long() + 1  # [B, H]
    from_columns = (columns + right[:, None]).clamp(-1, width).long() + 1
    items = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    x = padded[items, from_rows[:, :, None], from_columns[:, None, :]].permute(0, 3, 1, 2)

    top = (numbers[:, 5] * (height + 1)).floor() - height // 4
    left = (numbers[:, 6] * (width + 1)).floor() - width // 4
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + height // 2)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + width // 2)
    return x * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
