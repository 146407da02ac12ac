"""LeReS monocular depth: the network, its published checkpoints, and the steps before and after it.

Yin et al., "Learning to Recover 3D Scene Shape from a Single Image" (arXiv 2012.09365), depth prediction module:
a ResNet-50 or ResNeXt-101 32x8d encoder with a multi-scale fusion decoder. The depth is known up to scale and shift;
larger values are farther.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from threedgp.errors import DataError, WeightsError
from threedgp.pretrained.disparity import quantize
from threedgp.pretrained.weights import load_state, load_strict

INPUT_SIZE = 448  # the network sees every photo at 448x448, whatever its shape
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NETWORKS = {"resnet50": "resnet50", "resnext101": "resnext101_32x8d"}  # torchvision's names
NUM_TENSORS = {"resnet50": 406, "resnext101": 712}


class LeReS(nn.Module):
    """Image [batch, 3, h, w] (normalised, h and w multiples of 32) to depth [batch, 1, h, w].

    Args:
        backbone: "resnet50" or "resnext101".
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = backbone
        encoder = nn.ModuleDict({"encoder": Encoder(backbone)})  # the names of the published checkpoints
        self.depth_model = nn.ModuleDict({"encoder_modules": encoder, "decoder_modules": Decoder()})
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.depth_model["decoder_modules"](self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """The four encoder maps: 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32."""
        return self.depth_model.get_submodule("encoder_modules.encoder")(images)


class Encoder(nn.Module):
    """torchvision's ResNet-50 or ResNeXt-101 32x8d without pooling and classifier."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        network = torchvision.models.get_model(NETWORKS[backbone], weights=None)
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(network, f"layer{i}") for i in (1, 2, 3, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outputs.append(x)
        return outputs


class Transfer(nn.Module):
    """3x3 convolution plus a residual branch.

    The skip carries the rectified convolution output: the published weights were trained that way.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv_branch = nn.Sequential(
            nn.Identity(),  # keeps the published numbering: convolutions at 1 and 4, normalisation at 2
            nn.Conv2d(c_out, c_out, 3, padding=1),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        return F.relu(y + self.conv_branch(y))


class Fusion(nn.Module):
    """Add an encoder map to the decoder's map and double the resolution."""

    def __init__(self, c_encoder: int) -> None:
        super().__init__()
        self.ftb1 = Transfer(c_encoder, 256)
        self.ftb2 = Transfer(256, 256)

    def forward(self, encoder_map: Tensor, x: Tensor) -> Tensor:
        return double(self.ftb2(self.ftb1(encoder_map) + x))


class Output(nn.Module):
    """256 channels to one depth channel at twice the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.adapt_conv = nn.Sequential(
            nn.Conv2d(256, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return double(self.adapt_conv(x))


class Decoder(nn.Module):
    """From the four encoder maps up to the full-size depth."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Transfer(2048, 512)
        self.conv1 = nn.Conv2d(512, 256, 3, padding=1)
        self.ffm2 = Fusion(1024)
        self.ffm1 = Fusion(512)
        self.ffm0 = Fusion(256)
        self.outconv = Output()

    def forward(self, maps: list[Tensor]) -> Tensor:
        stride4, stride8, stride16, stride32 = maps
        x = double(self.conv1(self.conv(stride32)))  # [batch, 256, h/16, w/16]
        x = self.ffm2(stride16, x)
        x = self.ffm1(stride8, x)
        x = self.ffm0(stride4, x)  # [batch, 256, h/2, w/2]
        return self.outconv(x)


def double(x: Tensor) -> Tensor:
    """Twice the resolution, bilinear with aligned corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def load_leres(path: Path | str, backbone: str | None = None) -> LeReS:
    """Build the network from a published checkpoint (`res50.pth`, `res101.pth`) or a bare state dict.

    Args:
        path: a file whose `depth_model` entry (or which itself) maps names to tensors, each name with or all without
            the prefix `module.`. Other entries are not used.
        backbone: "resnet50" or "resnext101"; None to recognise it by the number of tensors.

    Raises:
        WeightsError: damaged file, unknown layout, or missing, unexpected or misshapen tensors (all listed).
    """
    state = load_state(path)
    if isinstance(state.get("depth_model"), dict):
        state = state["depth_model"]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} is not a LeReS checkpoint: expected a dictionary 'depth_model' of tensors, found the entries "
            f"{', '.join(map(str, list(state)[:6])) or 'none'}."
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if backbone is None:
        backbone = next((name for name, count in NUM_TENSORS.items() if count == len(state)), None)
        if backbone is None:
            known = " or ".join(f"{count} ({name})" for name, count in NUM_TENSORS.items())
            raise WeightsError(
                f"{path} has {len(state)} tensors, but a LeReS checkpoint has {known}. Name the backbone to see which "
                "tensors are missing."
            )
    with torch.device("meta"):
        network = LeReS(backbone)
    load_strict(network, state, path)
    return network


def preprocess(image: np.ndarray) -> Tensor:
    """Photo [H, W, 3] uint8 RGB to the network's input [3, 448, 448] float32.

    Bilinear to 448x448 without antialiasing, rounded to whole grey levels, scaled to [0, 1] and normalised.
    """
    return normalize(resize_input(image))


def resize_input(image: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 to [3, 448, 448] float32 with whole values 0..255 (half-pixel centres, half to even)."""
    x = torch.tensor(image).permute(2, 0, 1)[None].float()
    return F.interpolate(x, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False).round()[0]


def normalize(image: Tensor) -> Tensor:
    """[3, h, w] with values 0..255 to the network's range."""
    return (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def postprocess(prediction: Tensor, height: int, width: int) -> np.ndarray:
    """One prediction [h, w] to the stored map: uint16 [height, width], 0 near, 60000 the farthest pixel.

    Shift so that the minimum is 0.01, resize bilinearly, divide by the maximum; the fraction is cut off.

    Raises:
        DataError: the prediction has NaN or infinite values.
    """
    return quantize(resize_depth(prediction, height, width))


def resize_depth(prediction: Tensor, height: int, width: int) -> np.ndarray:
    """[h, w] to float32 [height, width] with minimum near 0.01, before scaling."""
    depth = prediction.detach().float()
    if not bool(depth.isfinite().all()):
        raise DataError("the depth network returned values that are not finite")
    depth = depth - depth.min() + 0.01
    return F.interpolate(depth[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
