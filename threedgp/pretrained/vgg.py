"""VGG-16 as the feature space of improved precision and recall (arXiv 1904.06991)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from threedgp.pretrained.inception import resize_bilinear_tf1
from threedgp.pretrained.weights import WeightFile, load_state, load_strict

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
PREPROCESS = f"TF1 bilinear to {INPUT_SIZE}x{INPUT_SIZE}, /255, mean {list(MEAN)}, std {list(STD)}"


def prepare(images: Tensor) -> Tensor:
    """uint8 [batch, 3, H, W] to the network's input: TF1 bilinear to 224x224, ImageNet mean and deviation."""
    x = resize_bilinear_tf1(images.float(), INPUT_SIZE) / 255
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def load_vgg16(path: Path | str) -> nn.Sequential:
    """Torchvision's network up to the ReLU after its second fully connected layer, [batch, 4096].

    Raises:
        WeightsError: the file does not fit.
    """
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16(weights=None)
    load_strict(network, load_state(path), path)
    return nn.Sequential(*network.features, nn.Flatten(), *list(network.classifier)[:5])
