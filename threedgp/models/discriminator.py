"""The patch-wise, hyper-modulated discriminator with a head that predicts image features.

Source: EpiGRAF (arXiv 2206.10535), Sec. 3.2 and App. B (patch conditioning, hyper-modulation); 3DGP (arXiv 2303.01416),
Sec. 3.4 (feature head); StyleGAN2 (arXiv 1912.04958), Fig. 7c (residual blocks).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from threedgp.config.schema import DiscriminatorConfig
from threedgp.models.feature_discriminator import FeatureDiscriminator
from threedgp.models.layers import CONV_CLAMP, Conv2dLayer, FullyConnected, ScalarEncoder, channels_at, compute_dtype
from threedgp.models.mapping import MappingNetwork

PATCH_SCALE_STEPS = 1000
"""Patch scale and offsets in [0, 1] are told in thousandths, each with its own embedding."""
PATCH_EMBEDDING_DIM = 256
HYPER_MOD_DIM = 512
LAYERS_PER_BLOCK = 4
"""fromrgb, conv0, conv1, skip: how layers are counted when the first ones are frozen."""


class DiscriminatorOutput(NamedTuple):
    """`logits` [B], positive for real; `features` [B, feature_dim] when they were asked for."""

    logits: Tensor
    features: Tensor | None


def minibatch_std(x: Tensor, group_size: int | None, num_channels: int = 1) -> Tensor:
    """Append `num_channels` maps with the mean deviation within groups of samples: [B, C, H, W] -> [B, C + n, H, W].

    With n = B / group_size groups, sample i belongs to group i mod n. None, or a size above B, makes one group.

    Source: Progressive GAN (arXiv 1710.10196), Sec. 3.

    Raises:
        ValueError: B is not a multiple of the group size.
    """
    batch, channels, height, width = x.shape
    size = batch if group_size is None else min(group_size, batch)
    if batch % size:
        raise ValueError(f"a batch of {batch} cannot be split into groups of {size} for the minibatch deviation")
    groups = batch // size
    y = x.reshape(size, groups, num_channels, channels // num_channels, height, width)
    y = y - y.mean(dim=0)
    y = (y.square().mean(dim=0) + 1e-8).sqrt()  # [groups, n, C/n, H, W]
    y = y.mean(dim=[2, 3, 4])[:, :, None, None]  # [groups, n, 1, 1]
    return torch.cat([x, y.repeat(size, 1, height, width)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block: [B, in, h, h] -> [B, out, h/down, h/down]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        img_channels: int = 0,  # of the image that the first block turns into its input itself; 0: another block
        down: int = 2,  # 2 halves the resolution, 1 keeps it
        modulation_dim: int = 0,  # size of the patch code that modulates the second convolution; 0 for none
        conv_clamp: float | None = None,  # largest absolute activation
        low_precision: torch.dtype | None = None,  # type to compute in
        frozen: int = 0,  # how many of fromrgb, conv0, conv1, skip, in this order, are not trained
    ):
        super().__init__()
        self.low_precision = low_precision
        layer = functools.partial(Conv2dLayer, activation="lrelu", conv_clamp=conv_clamp)
        self.fromrgb = layer(img_channels, in_channels, 1, trainable=frozen < 1) if img_channels else None
        self.conv0 = layer(in_channels, in_channels, 3, trainable=frozen < 2)
        self.conv1 = layer(in_channels, out_channels, 3, down=down, modulation_dim=modulation_dim, trainable=frozen < 3)
        self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, down=down, trainable=frozen < 4)

    def forward(self, x: Tensor, patch_code: Tensor | None = None) -> Tensor:
        """`x` is the image in the first block, [B, img_channels, h, h]; `patch_code` [B, modulation_dim]."""
        x = x.to(compute_dtype(self.conv0.weight, self.low_precision))
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        y = self.skip(x, gain=math.sqrt(0.5))
        x = self.conv1(self.conv0(x), patch_code, gain=math.sqrt(0.5))
        return y + x


class DiscriminatorEpilogue(nn.Module):
    """The 4×4 end: minibatch deviation, a convolution, then logits and predicted features.

    The logits are projected on a condition code of `cmap_dim` numbers (0: unconditional); with `feature_dim` 0 there is
    no head for features.
    """

    def __init__(
        self, channels: int, *, cmap_dim: int, feature_dim: int, mbstd_group_size: int | None, conv_clamp: float | None
    ):
        super().__init__()
        self.cmap_dim = cmap_dim
        self.mbstd_group_size = mbstd_group_size
        self.conv = Conv2dLayer(channels + 1, channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.fc = FullyConnected(channels * 16, channels, activation="lrelu")
        self.out = FullyConnected(channels, cmap_dim or 1)
        self.feat_out = None
        if feature_dim:
            self.feat_out = nn.Sequential(
                FullyConnected(channels * 16, channels, activation="lrelu"), FullyConnected(channels, feature_dim)
            )

    def forward(self, x: Tensor, cmap: Tensor | None, predict_features: bool) -> DiscriminatorOutput:
        """`x` [B, channels, 4, 4], `cmap` [B, cmap_dim]."""
        x = self.conv(minibatch_std(x.to(self.conv.weight.dtype), self.mbstd_group_size))
        x = x.flatten(start_dim=1)
        logits = self.out(self.fc(x))  # [B, cmap_dim or 1]
        logits = logits.squeeze(1) if cmap is None else (logits * cmap).sum(dim=1) / math.sqrt(self.cmap_dim)
        return DiscriminatorOutput(logits, self.feat_out(x) if predict_features and self.feat_out else None)


class Discriminator(nn.Module):
    """Judges patches, knowing where in the image they come from.

    Args:
        config: `model.discriminator` of the profile.
        img_resolution: p, side of the images or patches it receives; a power of two from 8 on.
        img_channels: 3, or 4 with depth.
        c_dim: classes; 0: none.
        start_blocks: blocks before the first down-sampling, as if the input were larger.
        patch_conditioning: it is told scales and offsets of the patches, which hyper-modulation needs.
        feature_dim: size of the image features to predict; 0: no head.
        low_precision: type of all blocks but the last, float16 (GPUs only) or bfloat16; None computes all in the
            weights' type.
        freeze_layers: first layers, four per block, that are not trained.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        img_resolution: int,
        img_channels: int,
        c_dim: int = 0,
        *,
        start_blocks: int = 0,
        patch_conditioning: bool = False,
        feature_dim: int = 0,
        low_precision: torch.dtype | None = None,
        freeze_layers: int = 0,
    ):
        super().__init__()
        self.img_resolution, self.img_channels, self.c_dim = img_resolution, img_channels, c_dim
        self.feature_dim = feature_dim
        self.feature_discriminator: FeatureDiscriminator | None = None
        self.block_resolutions = [2**i for i in range(int(math.log2(img_resolution)) + start_blocks, 2, -1)]
        width = {r: channels_at(r, config.cbase, config.cmax, config.fmaps) for r in [*self.block_resolutions, 4]}
        clamp = CONV_CLAMP if config.clamp_activations else None

        self.scalar_enc = ScalarEncoder(3, PATCH_SCALE_STEPS, PATCH_EMBEDDING_DIM) if patch_conditioning else None
        patch_dim = 0 if self.scalar_enc is None else self.scalar_enc.dim
        self.hyper_mod_mapping = MappingNetwork(0, patch_dim, HYPER_MOD_DIM) if config.hyper_mod else None
        for i, r in enumerate(self.block_resolutions):
            block = DiscriminatorBlock(
                width[r],
                width[r // 2],
                img_channels=img_channels if i == 0 else 0,
                down=1 if i < start_blocks else 2,
                modulation_dim=HYPER_MOD_DIM if config.hyper_mod else 0,
                conv_clamp=clamp,
                low_precision=low_precision,
                frozen=freeze_layers - i * LAYERS_PER_BLOCK,
            )
            self.add_module(f"b{r}", block)

        told_camera = config.camera_conditioning
        self.head_mapping = None
        if c_dim + patch_dim > 0 or told_camera.enabled:
            self.head_mapping = MappingNetwork(
                0,
                c_dim + patch_dim,
                width[4],
                camera_encoding="fourier" if told_camera.enabled else None,
                camera_dropout=told_camera.drop_probability,
            )
        self.b4 = DiscriminatorEpilogue(
            width[4],
            cmap_dim=0 if self.head_mapping is None else width[4],
            feature_dim=feature_dim,
            mbstd_group_size=config.mbstd_group_size,
            conv_clamp=clamp,
        )

    def forward(
        self,
        img: Tensor,
        c: Tensor | None = None,
        patch_scales: Tensor | None = None,
        patch_offsets: Tensor | None = None,
        camera_angles: Tensor | None = None,
        predict_features: bool = False,
    ) -> DiscriminatorOutput:
        """Judge patches.

        Args:
            img: [B, img_channels, p, p] in about [−1, 1]; B a multiple of the minibatch-deviation group.
            c: [B, c_dim] one-hot classes, if it was built with classes.
            patch_scales, patch_offsets: [B, 2] in image sides, if it was built with patch conditioning.
            camera_angles: [B, ≥2] yaw and pitch in radians, if it was built with camera conditioning.
            predict_features: also return predicted image features.
        """
        if predict_features and not self.feature_dim:
            raise ValueError("this discriminator was built without a feature head")
        patch_encoding = patch_code = None
        if self.scalar_enc is not None:
            if patch_scales is None or patch_offsets is None:
                raise ValueError("a discriminator with patch conditioning needs patch scales and offsets")
            patch_encoding = self.scalar_enc(torch.cat([patch_scales[:, :1], patch_offsets], dim=1))  # [B, 828]
        if self.hyper_mod_mapping is not None:
            patch_code = self.hyper_mod_mapping(None, patch_encoding)  # [B, 512]

        x = img
        for r in self.block_resolutions:
            x = getattr(self, f"b{r}")(x, patch_code)

        cmap = None
        if self.head_mapping is not None:
            conditions = [c] if self.c_dim and c is not None else []
            if patch_encoding is not None:
                conditions.append(patch_encoding)
            condition = torch.cat(conditions, dim=1) if conditions else None
            cmap = self.head_mapping(None, condition, camera_angles)
        return self.b4(x, cmap, predict_features)
