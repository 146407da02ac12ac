"""VGG-16 as the feature space of improved precision and recall (arXiv 1904.06991)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.pretrained.inception import resize_bilinear_tf1
from threedgp.pretrained.weights import WeightFile, find_weights, load_state, load_strict
from threedgp.progress import NULL_PROGRESS, Progress

VGG16_NAME = "vgg16-torchvision"
VGG16_WEIGHTS = WeightFile(
    name="vgg16",
    file_name="vgg16-397923af.pth",
    purpose="the VGG-16 network of precision and recall",
    size=553_433_881,
    sha256="397923af",
    address="https://download.pytorch.org/models/vgg16-397923af.pth",
    licence="BSD-3-Clause",
    advice=("choose the offline extractor tf_efficientnet_lite0 (not comparable with published values)",),
)
INPUT_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SecondFullyConnected(nn.Module):
    """VGG-16 up to the ReLU after its second fully connected layer: [batch, 3, 224, 224] -> [batch, 4096]."""

    def __init__(self, vgg: nn.Module):
        super().__init__()
        self.features, self.classifier = vgg.features, vgg.classifier[:5]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def prepare(images: Tensor) -> Tensor:
    """uint8 [batch, 3, H, W] to the network's input: TF1 bilinear to 224x224, ImageNet mean and deviation."""
    x = resize_bilinear_tf1(images.float(), INPUT_SIZE) / 255
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def build_vgg16(
    weights: Path | str | None = None,
    *,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_unverified: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> FeatureExtractor:
    """The extractor with torchvision's checked weights; arguments and errors as `build_extractor`."""
    from torchvision.models import vgg16

    found = find_weights(
        VGG16_WEIGHTS, weights, download=download, allow_unverified=allow_unverified, progress=progress
    )
    with torch.device("meta"):
        network = vgg16(weights=None)
    network = network.to_empty(device="cpu").eval()
    load_strict(network, load_state(found.path), found.path)
    text = f"TF1 bilinear to {INPUT_SIZE}x{INPUT_SIZE}, /255, mean {list(MEAN)}, std {list(STD)}"
    return FeatureExtractor(VGG16_NAME, SecondFullyConnected(network), 4096, found, text, prepare, device)
