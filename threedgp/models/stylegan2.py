"""Style-based synthesis: the tri-plane backbone of the 3D generators, and the 2D baseline generator.

Source: StyleGAN2 (arXiv 1912.04958), Secs. 2-4; as a tri-plane backbone EG3D (arXiv 2112.07945), Sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from threedgp.models.layers import (
    Conv2dLayer,
    FullyConnected,
    channels_at,
    compute_dtype,
    default_filter,
    low_precision_from,
)
from threedgp.models.mapping import CameraEncoding, MappingNetwork
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import upsample2d
from threedgp.ops.modulated_conv import modulated_conv2d, modulated_conv2d_act
from threedgp.ops.patches import sample_patches

NoiseMode = Literal["random", "const", "none"]
Architecture = Literal["skip", "orig", "resnet"]


@dataclass(frozen=True)
class Noise:
    """What the synthesis layers add: unit-normal maps times each layer's learned strength.

    Attributes:
        mode: `random` draws afresh, `const` takes the layer's stored map, `none` adds nothing.
        draws: maps by layer name ("b8.conv0"), [B, 1, r, r] or [r, r], that replace random draws.
    """

    mode: NoiseMode = "random"
    draws: Mapping[str, torch.Tensor] | None = None

    def draw(self, name: str, batch: int, resolution: int, like: torch.Tensor) -> torch.Tensor:
        """Unit-normal map for the layer `name`, [B, 1, r, r]."""
        if self.draws is not None and name in self.draws:
            return self.draws[name].to(like)
        return torch.randn((batch, 1, resolution, resolution), device=like.device).to(like)


class SynthesisLayer(nn.Module):
    """Modulated 3×3 convolution, noise, bias, lrelu: [B, in, r/up, r/up], [B, w_dim] -> [B, out, r, r]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.resolution, self.up, self.use_noise, self.conv_clamp = resolution, up, use_noise, conv_clamp
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", default_filter(up > 1), persistent=False)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size).normal_())
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, noise: Noise | None = None, *, name: str = "", gain: float = 1.0
    ) -> torch.Tensor:
        """`noise` None adds none; `name` finds the layer's map among injected draws; `gain` scales output and clamp."""
        noise_map = None
        if self.use_noise and noise is not None and noise.mode == "random":
            noise_map = noise.draw(name, len(x), self.resolution, self.noise_const) * self.noise_strength
        elif self.use_noise and noise is not None and noise.mode == "const":
            noise_map = self.noise_const * self.noise_strength
        return modulated_conv2d_act(
            x,
            self.weight,
            self.affine(w),
            self.bias,
            noise_map,
            gain=math.sqrt(2) * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
        )


class ToRGB(nn.Module):
    """Modulated 1×1 convolution without demodulation: [B, in, r, r], [B, w_dim] -> [B, out, r, r]."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, *, conv_clamp: float | None = None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.style_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1).normal_())
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = modulated_conv2d(x, self.weight, self.affine(w) * self.style_gain, demodulate=False)
        return bias_act(x, self.bias, clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution: one (at 4×4) or two synthesis layers, and the image branch of its architecture.

    Args:
        in_channels: 0 for the first block, which starts from a learned constant.
        out_channels, w_dim, resolution: sizes.
        img_channels: channels of the image.
        is_last: the block that ends the network; `orig` and `resnet` make the image only there.
        architecture: StyleGAN2, Fig. 7: `skip`, `orig` or `resnet`.
        use_noise: layers have noise inputs.
        conv_clamp: largest absolute activation; None does not clamp.
        low_precision: compute in this type; the image is always summed in the weights' own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        *,
        is_last: bool,
        architecture: Architecture = "skip",
        use_noise: bool = True,
        conv_clamp: float | None = None,
        low_precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_channels, self.resolution, self.architecture = in_channels, resolution, architecture
        self.low_precision = low_precision
        self.register_buffer("resample_filter", default_filter(in_channels > 0), persistent=False)
        options = {"use_noise": use_noise, "conv_clamp": conv_clamp}
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, **options)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **options)
        self.num_conv = 1 if in_channels == 0 else 2
        self.torgb = None
        if is_last or architecture == "skip":
            self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)
        self.skip = None
        if in_channels > 0 and architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, up=2)
        self.num_styles = self.num_conv + (self.torgb is not None)

    def forward(
        self, x: torch.Tensor | None, img: torch.Tensor | None, ws: torch.Tensor, noise: Noise | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x` [B, in, r/2, r/2], `img` [B, C, r/2, r/2] or None, `ws` [B, num_styles, w_dim] -> x, img at r."""
        dtype = compute_dtype(self.conv1.weight, self.low_precision)
        styles = iter(ws.unbind(dim=1))
        name = f"b{self.resolution}"
        if self.in_channels == 0:
            x = self.const.to(dtype).expand(len(ws), -1, -1, -1)
            x = self.conv1(x, next(styles), noise, name=f"{name}.conv1")
        elif self.skip is not None:
            x = x.to(dtype)
            y = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, next(styles), noise, name=f"{name}.conv0")
            x = y + self.conv1(x, next(styles), noise, name=f"{name}.conv1", gain=math.sqrt(0.5))
        else:
            x = self.conv0(x.to(dtype), next(styles), noise, name=f"{name}.conv0")
            x = self.conv1(x, next(styles), noise, name=f"{name}.conv1")

        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.torgb is not None:
            rgb = self.torgb(x, next(styles)).to(self.torgb.weight.dtype)
            img = rgb if img is None else img.add_(rgb)  # the upsampling above made `img` for this block alone
        return x, img


class SynthesisNetwork(nn.Module):
    """Styles to an image, or to feature planes: [B, num_ws, w_dim] -> [B, img_channels, R, R].

    Args:
        w_dim: style size.
        img_resolution: R, a power of two from 4 on.
        img_channels: output channels; 3·F for a tri-plane backbone.
        cbase, cmax, fmaps: widths, see `channels_at`.
        architecture: `skip` (default), `orig` or `resnet`.
        use_noise: layers have noise inputs.
        conv_clamp: largest absolute activation; None does not clamp.
        low_precision: type of the highest resolutions, float16 (GPUs only) or bfloat16; None computes all in the
            weights' type.
        num_low_precision: how many resolutions that are; blocks below 8×8 never are.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        *,
        cbase: int = 32768,
        cmax: int = 512,
        fmaps: float = 1.0,
        architecture: Architecture = "skip",
        use_noise: bool = True,
        conv_clamp: float | None = None,
        low_precision: torch.dtype | None = None,
        num_low_precision: int = 4,
    ):
        super().__init__()
        if img_resolution < 4 or img_resolution & (img_resolution - 1):
            raise ValueError(f"the resolution must be a power of two from 4 on, got {img_resolution}")
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]
        low_from = low_precision_from(img_resolution, num_low_precision)
        in_channels = 0
        for r in self.block_resolutions:
            out_channels = channels_at(r, cbase, cmax, fmaps)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim,
                r,
                img_channels,
                is_last=r == img_resolution,
                architecture=architecture,
                use_noise=use_noise,
                conv_clamp=conv_clamp,
                low_precision=low_precision if r >= low_from else None,
            )
            self.add_module(f"b{r}", block)
            in_channels = out_channels
        # The image layer of one resolution shares its style with the first layer of the next.
        self.num_ws = sum(self.block(r).num_conv for r in self.block_resolutions) + 1

    def block(self, resolution: int) -> SynthesisBlock:
        return getattr(self, f"b{resolution}")

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """Unit-normal maps [B, 1, r, r] for all layers by name, in the layers' order.

        Args:
            batch: samples.
            generator: source; None is torch's global one.
        """
        maps = {}
        for r in self.block_resolutions:
            for name in ("conv0", "conv1"):
                layer = getattr(self.block(r), name, None)
                if layer is not None and layer.use_noise:
                    device = layer.noise_const.device if generator is None else generator.device
                    drawn = torch.randn(batch, 1, r, r, device=device, generator=generator)
                    maps[f"b{r}.{name}"] = drawn.to(layer.noise_const)
        return maps

    def forward(
        self,
        ws: torch.Tensor,
        *,
        noise_mode: NoiseMode = "random",
        noise: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Synthesise.

        Args:
            ws: [B, num_ws, w_dim].
            noise_mode: `random` (training, metrics), `const` (videos, geometry) or `none`.
            noise: unit-normal maps by layer name ("b8.conv0"), [B, 1, r, r] or [r, r], instead of random draws; see
                `draw_noise`.

        Returns:
            [B, img_channels, R, R], not clamped.
        """
        source = Noise(noise_mode, noise)
        ws = ws.to(self.block(4).const.dtype)
        x = img = None
        first = 0
        for r in self.block_resolutions:
            block = self.block(r)
            x, img = block(x, img, ws[:, first : first + block.num_styles], source)
            first += block.num_conv
        return img


class StyleGAN2Generator(nn.Module):
    """The 2D baseline: mapping and synthesis network. Cameras are accepted as a condition only.

    Args:
        z_dim, c_dim, w_dim: sizes of latent, class vector and style.
        img_resolution, img_channels: output.
        patch_resolution: side of the patches cut out when patch parameters are given; None for no patches.
        map_depth: mapping layers.
        camera_encoding, camera_dropout, mean_camera: see `MappingNetwork`.
        synthesis_options: see `SynthesisNetwork`.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int = 3,
        *,
        patch_resolution: int | None = None,
        map_depth: int = 2,
        camera_encoding: CameraEncoding | None = None,
        camera_dropout: float = 0.0,
        mean_camera: tuple[float, ...] | None = None,
        **synthesis_options,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.patch_resolution = patch_resolution
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_options)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(
            z_dim,
            c_dim,
            w_dim,
            self.num_ws,
            num_layers=map_depth,
            camera_encoding=camera_encoding,
            camera_dropout=camera_dropout,
            mean_camera=mean_camera,
        )

    def set_progress(self, density_noise_std: float, depth_progress: float) -> None:
        """Nothing in a 2D generator follows a schedule; here so that all generators are trained alike."""

    def synthesize(
        self,
        ws: torch.Tensor,
        *,
        patch_scales: torch.Tensor | None = None,
        patch_offsets: torch.Tensor | None = None,
        noise_mode: NoiseMode = "random",
        generator: torch.Generator | None = None,
        noise: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Image [B, 3, R, R], or its patches [B, 3, p, p] when scales and offsets [B, 2] are given."""
        if generator is not None and noise_mode == "random":
            noise = {**self.synthesis.draw_noise(len(ws), generator), **(noise or {})}
        img = self.synthesis(ws, noise_mode=noise_mode, noise=noise)
        if patch_scales is None:
            return img
        return sample_patches(img, patch_scales, patch_offsets, self.patch_resolution)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        camera_angles: torch.Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
        **synthesis_options,
    ) -> torch.Tensor:
        """`synthesize(mapping(z, c, camera_angles))`; see both for the arguments."""
        ws = self.mapping(
            z,
            c,
            camera_angles,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            update_w_avg=update_w_avg,
        )
        return self.synthesize(ws, **synthesis_options)
