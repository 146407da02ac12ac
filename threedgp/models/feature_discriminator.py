"""A second discriminator that sees colours through the eyes of a frozen, pretrained network.

Source: Projected GANs (arXiv 2111.01007), Sec. 3: feature maps of several stages, mixed across channels and scales by
fixed random convolutions so that no stage can be ignored, each judged by a small network of its own. Its loss is the
hinge, whatever the first discriminator's is. It sees no depth: what keeps the geometry honest is the first
discriminator, beside which this one must stay weak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgp.config.schema import FeatureDiscriminatorConfig
from threedgp.models.layers import compute_dtype

MIXING_SEED = 2111_01007
SQUARINGS = 6  # 2^6 power iterations


class SpectralConv(nn.Module):
    """Convolution whose kernel, as a matrix [out, in·k·k], has the largest singular value 1 (arXiv 1802.05957).

    The singular vector is found afresh from the weights at each call, by squaring their small Gram matrix: so there is
    no state that checkpoints would have to keep, or that would depend on the number of calls. Weights are stored as
    N(0, 1) and learn as fast as equalised layers at the same rate.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            gram = matrix @ matrix.t()
            for _ in range(SQUARINGS):
                gram = gram / gram.norm()
                gram = gram @ gram
            left = F.normalize(gram.sum(dim=1), dim=0)
            right = F.normalize(left @ matrix, dim=0)
        return F.conv2d(x, self.weight / (left @ matrix @ right), self.bias, self.stride, self.padding)


class Head(nn.Module):
    """Judges the feature maps [B, C, h, w] of one scale, given classes [B, c_dim]: logits [B].

    `halvings` convolutions of stride 2 follow the first one. Classes enter by projection (arXiv 1802.05637).
    """

    def __init__(self, channels: int, width: int, c_dim: int, halvings: int):
        super().__init__()
        layers: list[nn.Module] = [SpectralConv(channels, width, 3), nn.LeakyReLU(0.2)]
        for _ in range(halvings):
            layers += [SpectralConv(width, width, 3, stride=2), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.out = SpectralConv(width, 1, 1)
        self.project = nn.Parameter(torch.randn(width, c_dim)) if c_dim else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.body(x)
        logits = self.out(x).mean(dim=(1, 2, 3))
        if self.project is not None:
            direction = c @ F.normalize(self.project, dim=0).t()  # [B, width]
            logits = logits + (x.mean(dim=(2, 3)) * direction).sum(dim=1)
        return logits


class FeatureDiscriminator(nn.Module):
    """Judges colours by the feature maps of a frozen network.

    Only the heads learn and enter checkpoints: the network comes from its own file, the mixing from a fixed seed.

    Args:
        config: its stages, sizes and widths.
        network: with timm's `forward_intermediates`; it is frozen here.
        mean, std: normalisation of colours in [0, 1] that the network was trained with.
        c_dim: classes; 0: none.
        low_precision: arithmetic of the frozen part where the device is fast at it; None: float32.
    """

    network: Any  # timm's networks have methods that modules in general have not
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        config: FeatureDiscriminatorConfig,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        c_dim: int = 0,
        low_precision: torch.dtype | None = None,
    ):
        super().__init__()
        network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.__dict__["network"] = network  # unregistered: no part of parameters and checkpoints
        self.config, self.low_precision, channels = config, low_precision, config.channels
        scale = 1 / (2 * torch.tensor(std))  # from colours in [−1, 1]
        shift = (0.5 - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        with torch.no_grad():
            shapes = [list(x.shape) for x in self._maps(torch.zeros(1, 3, config.input_size, config.input_size))]
        generator = torch.Generator().manual_seed(MIXING_SEED)

        def fixed(name: str, *shape: int) -> None:
            value = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
            self.register_buffer(name, value, persistent=False)

        for i, shape in enumerate(shapes):
            fixed(f"across_channels{i}", channels, shape[1], 1, 1)
            if i < len(shapes) - 1:
                fixed(f"across_scales{i}", channels, channels, 3, 3)
        self.heads = nn.ModuleList(
            Head(channels, config.width, c_dim, halvings=max(int(math.log2(shape[2])) - 2, 0)) for shape in shapes
        )

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureDiscriminator:
        self.network._apply(fn, recurse)  # moves with the rest to another device
        return super()._apply(fn, recurse)

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(x, indices=self.config.stages, intermediates_only=True)

    def features(self, images: Tensor) -> list[Tensor]:
        """Mixed maps of images [B, 3, H, W] in [−1, 1], one a stage, fine ones first: float32 [B, channels, h, w]."""
        x = F.interpolate(images, [self.config.input_size] * 2, mode="bilinear", align_corners=False)
        dtype = compute_dtype(self.scale, self.low_precision)
        if next(self.network.parameters()).dtype != dtype:
            self.network.to(dtype)
        maps = self._maps((x * self.scale + self.shift).to(dtype, memory_format=torch.channels_last))
        mixed: list[Tensor] = []
        for i in reversed(range(len(maps))):
            y = F.conv2d(maps[i], getattr(self, f"across_channels{i}").to(dtype))
            if mixed:
                up = F.interpolate(mixed[0], y.shape[2:], mode="bilinear", align_corners=False)
                y = F.conv2d((y + up) * math.sqrt(0.5), getattr(self, f"across_scales{i}").to(dtype), padding=1)
            mixed.insert(0, y)
        return [x.float() for x in mixed]

    def judge(self, features: list[Tensor], c: Tensor) -> Tensor:
        """Logits [B, stages] of `features`, positive for real, given classes [B, c_dim]."""
        return torch.stack([head(x, c) for head, x in zip(self.heads, features, strict=True)], dim=1)

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        """Logits [B, stages] of images [B, 3, H, W] in [−1, 1], positive for real, given classes [B, c_dim]."""
        return self.judge(self.features(images), c)
