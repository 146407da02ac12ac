"""Small image folders, extractors and process groups for the tests of the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.pretrained.inception import InceptionV3
from threedgp.pretrained.weights import FoundWeights


def write_images(folder: Path, count: int, seed: int, size: int = 64) -> Path:
    """Smooth random colour pictures, PNG."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


class PoolNetwork(torch.nn.Module):
    """Mean colours of a 4x4 grid: a quick stand-in wherever the network itself is not under test."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1) / 64


def pool_extractor(name: str = "tf_efficientnet_lite0") -> FeatureExtractor:
    found = FoundWeights(Path("pool.pth"), "0" * 64, True)
    return FeatureExtractor(name, PoolNetwork(), 48, found, "none", lambda images: images)


class Pool768(torch.nn.Module):
    """The FID network's middle features."""

    def __init__(self, network: InceptionV3):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).pool768


def middle_extractor(network: InceptionV3) -> FeatureExtractor:
    found = FoundWeights(Path("filled.pth"), "1" * 64, False)
    return FeatureExtractor("inception", Pool768(network), 768, found, "tf1", lambda images: images)
