"""The Inception-v3 graph of 2015-12-05: the network behind every published FID, KID and Inception score.

Szegedy et al., "Rethinking the Inception Architecture" (arXiv 1512.00567), in the variant that Heusel et al.
(arXiv 1706.08500) fixed for FID: 1008 outputs, TensorFlow-1 resizing, average pools that leave out the padding, and a
max-pool in the last block. A published score holds for exactly this graph, so nothing here is a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

from threedgp.pretrained.weights import load_state, load_strict

INPUT_SIZE = 299


class InceptionOutput(NamedTuple):
    """What one pass yields; all float32."""

    features: Tensor  # [batch, 2048] pooled features, >= 0
    logits_unbiased: Tensor  # [batch, 1008] features times the classifier's weight, without its bias
    pool64: Tensor  # [batch, 64] spatial mean after the first max-pool
    pool192: Tensor  # [batch, 192] after the second max-pool
    pool768: Tensor  # [batch, 768] after Mixed_6e


class InceptionV3(nn.Module):
    """The FID network on uint8 RGB images of any size. Load weights with `load_inception`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = BlockE(1280, average_without_padding)
        self.Mixed_7c = BlockE(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> InceptionOutput:
        """Features and class scores of `images`, [batch, 3, H, W] uint8 RGB (or the same values as float)."""
        x = resize_bilinear_tf1(images.to(self.fc.weight.dtype), INPUT_SIZE)
        x = (x - 128) / 128  # [batch, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)  # [batch, 64, 73, 73]
        pool64 = x.mean((2, 3))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)  # [batch, 192, 35, 35]
        pool192 = x.mean((2, 3))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [batch, 288, 35, 35]
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))  # [batch, 768, 17, 17]
        pool768 = x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [batch, 2048, 8, 8]
        features = x.mean((2, 3))
        return InceptionOutput(features, features @ self.fc.weight.T, pool64, pool192, pool768)


def load_inception(path: Path | str) -> InceptionV3:
    """The network with the weights of a verified file (see `weights.find_weights("inception")`).

    Raises:
        WeightsError: the file is damaged or does not hold exactly this network's 566 tensors.
    """
    with torch.device("meta"):
        network = InceptionV3()
    load_strict(network, load_state(path), path)
    return network


def resize_bilinear_tf1(images: Tensor, size: int) -> Tensor:
    """Bilinear resize the TensorFlow-1 way: output i reads source coordinate i·n/size, with no half-pixel shift.

    Args:
        images: [batch, channels, H, W] float.
        size: output height and width.

    Returns:
        [batch, channels, size, size], not rounded.
    """
    for axis in (2, 3):
        length = images.shape[axis]
        if length == size:
            continue
        position = torch.arange(size, device=images.device) * length  # in units of 1/size, so that it stays exact
        low = position // size
        high = (low + 1).clamp(max=length - 1)
        weight = (position % size).to(images.dtype) / size
        weight = weight[:, None] if axis == 2 else weight
        low_values, high_values = images.index_select(axis, low), images.index_select(axis, high)
        images = low_values + (high_values - low_values) * weight
    return images


def average_without_padding(x: Tensor) -> Tensor:
    """3x3 average pool, stride 1: at the border, the mean over the pixels that exist."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


# torchvision has the same blocks, but counts the padding in three of the average pools.


class BlockA(InceptionA):
    """Mixed_5b to 5d, 35x35."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_without_padding(x)),
        ]


class BlockC(InceptionC):
    """Mixed_6b to 6e, 17x17."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average_without_padding(x)),
        ]


class BlockE(InceptionE):
    """Mixed_7b and 7c, 8x8; the two differ in the pool before the last branch."""

    def __init__(self, c_in: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__(c_in)
        self.pool = pool

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
