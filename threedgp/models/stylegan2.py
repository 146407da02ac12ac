"""Style-based synthesis: the tri-plane backbone of the 3D generators, and the 2D baseline generator.

Source: StyleGAN2 (arXiv 1912.04958), Secs. 2-4; as a tri-plane backbone EG3D (arXiv 2112.07945), Sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from threedgp.config.schema import GeneratorConfig
from threedgp.models.layers import CONV_CLAMP, Conv2dLayer, FullyConnected, channels_at, compute_dtype, default_filter
from threedgp.models.mapping import MappingNetwork
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import upsample2d
from threedgp.ops.modulated_conv import modulated_conv2d, modulated_conv2d_act
from threedgp.ops.patches import sample_patches

NoiseMode = Literal["random", "const", "none"]


class SynthesisLayer(nn.Module):
    """Modulated 3×3 convolution, noise, bias, lrelu: [B, in, r/up, r/up], [B, w_dim] -> [B, out, r, r]."""

    resample_filter: Tensor | None
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        up: int = 1,
        use_noise: bool = True,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.resolution, self.up, self.use_noise, self.conv_clamp = resolution, up, use_noise, conv_clamp
        self.register_buffer("resample_filter", default_filter(up > 1), persistent=False)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3).normal_())
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None, gain: float = 1.0) -> Tensor:
        """`noise`: unit-normal map, [B, 1, r, r] or [r, r]; None adds none. `gain` scales output and clamp."""
        return modulated_conv2d_act(
            x,
            self.weight,
            self.affine(w),
            self.bias,
            None if noise is None else noise.to(self.noise_const) * self.noise_strength,
            gain=math.sqrt(2) * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
            up=self.up,
            padding=1,
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

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = modulated_conv2d(x, self.weight, self.affine(w) * self.style_gain, demodulate=False)
        return bias_act(x, self.bias, clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution: one (at 4×4) or two synthesis layers, and the image branch of the configured architecture.

    The architectures are those of StyleGAN2, Fig. 7; the image is always summed in the weights' own type.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        config: GeneratorConfig,
        in_channels: int,  # 0 for the first block, which starts from a learned constant
        out_channels: int,
        resolution: int,
        img_channels: int,
        *,
        is_last: bool,  # `orig` and `resnet` make the image only there
        low_precision: torch.dtype | None = None,  # type to compute in
    ):
        super().__init__()
        self.resolution, self.low_precision = resolution, low_precision
        self.register_buffer("resample_filter", default_filter(in_channels > 0), persistent=False)
        w_dim, clamp = config.w_dim, CONV_CLAMP if config.clamp_activations else None
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, use_noise=config.use_noise, conv_clamp=clamp
            )
        self.conv1 = SynthesisLayer(
            out_channels, out_channels, w_dim, resolution, use_noise=config.use_noise, conv_clamp=clamp
        )
        self.num_conv = 1 if in_channels == 0 else 2
        self.torgb = None
        if is_last or config.architecture == "skip":
            self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp=clamp)
        self.skip = None
        if in_channels > 0 and config.architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, up=2)
        self.num_styles = self.num_conv + (self.torgb is not None)

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """`x` [B, in, r/2, r/2], `img` [B, C, r/2, r/2] or None, `ws` [B, num_styles, w_dim] -> x, img at r."""
        dtype = compute_dtype(self.conv1.weight, self.low_precision)
        styles = iter(ws.unbind(dim=1))
        noise0, noise1 = (noise.get(f"b{self.resolution}.{name}") for name in ("conv0", "conv1"))
        if x is None:
            x = self.conv1(self.const.to(dtype).expand(len(ws), -1, -1, -1), next(styles), noise1)
        else:
            x = x.to(dtype)
            y = None if self.skip is None else self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, next(styles), noise0)
            x = self.conv1(x, next(styles), noise1, gain=1.0 if y is None else math.sqrt(0.5))
            x = x if y is None else y + x
        if img is not None and self.resample_filter is not None:
            img = upsample2d(img, self.resample_filter)
        if self.torgb is not None:
            rgb = self.torgb(x, next(styles)).to(self.torgb.weight.dtype)
            img = rgb if img is None else img.add_(rgb)  # the upsampling above made `img` for this block alone
        return x, img


class SynthesisNetwork(nn.Module):
    """Styles to an image, or to feature planes: [B, num_ws, w_dim] -> [B, img_channels, R, R].

    Args:
        config: `model.generator` of the profile.
        img_resolution: R, a power of two from 4 on.
        img_channels: output channels; 3·F for a tri-plane backbone.
        low_precision: type of the resolutions from 8 on, float16 (GPUs only) or bfloat16; None computes all in the
            weights' type.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        img_resolution: int,
        img_channels: int,
        *,
        low_precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]
        in_channels = 0
        for r in self.block_resolutions:
            out_channels = channels_at(r, config.cbase, config.cmax, config.fmaps)
            block = SynthesisBlock(
                config,
                in_channels,
                out_channels,
                r,
                img_channels,
                is_last=r == img_resolution,
                low_precision=low_precision if r >= 8 else None,
            )
            self.add_module(f"b{r}", block)
            in_channels = out_channels
        # The image layer of one resolution shares its style with the first layer of the next.
        self.num_ws = sum(self.block(r).num_conv for r in self.block_resolutions) + 1

    def block(self, resolution: int) -> SynthesisBlock:
        return getattr(self, f"b{resolution}")

    def noise_maps(self, batch: int, mode: NoiseMode, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Unit-normal maps for all layers by name ("b8.conv0"), in the layers' order.

        Args:
            batch: samples.
            mode: `random` draws [batch, 1, r, r] (training, metrics), `const` takes the stored maps [r, r] (videos,
                geometry), `none` takes none.
            generator: source of the draws; None is torch's global one.
        """
        maps = {}
        for name, layer in self.named_modules():
            if mode == "none" or not isinstance(layer, SynthesisLayer) or not layer.use_noise:
                continue
            maps[name] = layer.noise_const
            if mode == "random":
                device = layer.noise_const.device if generator is None else generator.device
                shape = (batch, 1, layer.resolution, layer.resolution)
                maps[name] = torch.randn(shape, device=device, generator=generator).to(layer.noise_const)
        return maps

    def forward(self, ws: Tensor, noise: Mapping[str, Tensor] | None = None) -> Tensor:
        """[B, num_ws, w_dim] -> [B, img_channels, R, R], not clamped, with the noise of `noise_maps`; None: without."""
        ws = ws.to(self.block(4).const.dtype)
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for r in self.block_resolutions:
            block = self.block(r)
            x, img = block(x, img, ws[:, first : first + block.num_styles], noise or {})
            first += block.num_conv
        assert img is not None  # the last block makes one
        return img


class StyleGAN2Generator(nn.Module):
    """The 2D baseline: mapping and synthesis network. Cameras are accepted as a condition only.

    Args:
        synthesis: makes the pictures.
        mapping: makes its styles.
        patch_resolution: side of the patches cut out when patch parameters are given.
    """

    def __init__(self, synthesis: SynthesisNetwork, mapping: MappingNetwork, *, patch_resolution: int):
        super().__init__()
        self.synthesis, self.mapping = synthesis, mapping
        self.z_dim, self.c_dim, self.w_dim = mapping.z_dim, mapping.c_dim, mapping.w_dim
        self.num_ws, self.img_resolution = synthesis.num_ws, synthesis.img_resolution
        self.patch_resolution = patch_resolution

    @property
    def backbone(self) -> SynthesisNetwork:
        return self.synthesis

    def set_progress(self, density_noise_std: float, depth_progress: float) -> None:
        """Nothing in a 2D generator follows a schedule; here so that all generators are trained alike."""

    def synthesize(
        self,
        ws: Tensor,
        *,
        patch_scales: Tensor | None = None,
        patch_offsets: Tensor | None = None,
        noise_mode: NoiseMode = "random",
        generator: torch.Generator | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Image [B, 3, R, R], or its patches [B, 3, p, p] when scales and offsets [B, 2] are given.

        `noise` is instead of what mode and generator make, see `SynthesisNetwork.noise_maps`.
        """
        if noise is None:
            noise = self.synthesis.noise_maps(len(ws), noise_mode, generator)
        img = self.synthesis(ws, noise)
        if patch_scales is None or patch_offsets is None:
            return img
        return sample_patches(img, patch_scales, patch_offsets, self.patch_resolution)
