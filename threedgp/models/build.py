"""From a profile to its networks: the only place where settings become constructor arguments."""

from __future__ import annotations

from typing import Any

import torch

from threedgp.camera.priors import CameraPrior
from threedgp.config.rules import discriminator_resolution, image_channels
from threedgp.config.schema import Profile
from threedgp.models.camera_adaptor import CameraAdaptor
from threedgp.models.depth_adaptor import DepthAdaptor
from threedgp.models.discriminator import Discriminator
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.rendering.renderer import RenderOptions

CONV_CLAMP = 256.0
"""Largest absolute activation of networks that may run in half precision."""
ALL_RESOLUTIONS = 32
"""With bfloat16, which has float32's range, every resolution from 8 on runs in it, not just the highest four."""


def build_generator(profile: Profile) -> Generator | StyleGAN2Generator:
    """The generator of a resolved profile, freshly initialised from torch's global random state.

    Raises:
        ConfigError: learning the cameras of a prior without bounds.
    """
    config, data = profile.model.generator, profile.data
    options: dict[str, Any] = {
        "patch_resolution": discriminator_resolution(profile),
        "map_depth": config.map_depth,
        "camera_dropout": config.camera_conditioning.drop_probability,
        "cbase": config.cbase,
        "cmax": config.cmax,
        "fmaps": config.fmaps,
        "architecture": config.architecture,
        "use_noise": config.use_noise,
        **_precision(profile, config.clamp_activations),
    }
    sizes = (config.z_dim, data.num_classes, config.w_dim, data.resolution)
    if profile.model.kind == "stylegan2":
        return StyleGAN2Generator(*sizes, **options, **_camera_condition(profile, "fourier"))

    return Generator(
        *sizes,
        render_options(profile),
        cube_scale=profile.camera.cube_scale,
        plane_resolution=config.tri_plane.resolution,
        plane_features=config.tri_plane.features,
        mlp_layers=config.tri_plane.mlp.layers,
        mlp_hidden_dim=config.tri_plane.mlp.hidden_dim,
        density_noise_std=config.density_noise.init_std,
        depth_adaptor=_depth_adaptor(profile),
        camera_adaptor=_camera_adaptor(profile),
        **options,
        **_camera_condition(profile, "raw"),
    )


def build_discriminator(profile: Profile) -> Discriminator:
    """The discriminator of a resolved profile, freshly initialised from torch's global random state."""
    config, training = profile.model.discriminator, profile.training
    return Discriminator(
        discriminator_resolution(profile),
        image_channels(profile),
        profile.data.num_classes,
        num_additional_start_blocks=profile.start_blocks,
        patch_conditioning=training.patch.enabled and training.patch.conditioning,
        hyper_mod=config.hyper_mod,
        feature_dim=profile.data.embedding_dim if profile.loss.distillation.weight > 0 else 0,
        camera_conditioning=config.camera_conditioning.enabled,
        camera_dropout=config.camera_conditioning.drop_probability,
        mbstd_group_size=config.mbstd_group_size,
        cbase=config.cbase,
        cmax=config.cmax,
        fmaps=config.fmaps,
        freeze_layers=training.freeze_discriminator_layers,
        **_precision(profile, config.clamp_activations),
    )


def render_options(profile: Profile) -> RenderOptions:
    """How the profile's generator renders rays."""
    camera, config = profile.camera, profile.model.generator
    return RenderOptions(
        near=camera.near,
        far=camera.far,
        num_steps=config.ray_steps,
        jitter=config.ray_jitter,
        marcher=config.marcher,
        clamp_mode=config.clamp_mode,
        density_bias=config.density_bias,
        use_inf_depth=config.use_inf_depth,
        full_box=camera.cube_scale if config.use_full_box else None,
        last_back=config.last_back,
        white_back=config.white_back,
        chunk_rays=config.chunk_rays,
    )


def _precision(profile: Profile, clamp: bool) -> dict[str, Any]:
    """Arithmetic follows `precision` alone; `clamp` bounds activations as for float16, which
    weights trained with clamps need at any precision.
    """
    return {
        "conv_clamp": CONV_CLAMP if clamp else None,
        "low_precision": torch.bfloat16 if profile.precision == "bf16" else None,
        "num_low_precision": ALL_RESOLUTIONS,
    }


def _camera_condition(profile: Profile, encoding: str) -> dict[str, Any]:
    """Arguments that let the mapping network see the camera, if the profile asks for it."""
    if not profile.model.generator.camera_conditioning.enabled:
        return {}
    prior = CameraPrior(profile.camera)
    # Without a mean such a generator must always be told its camera.
    mean = prior.mean().to_vector()[0, :5].tolist() if prior.has_mean else None
    return {"camera_encoding": encoding, "mean_camera": mean}


def _depth_adaptor(profile: Profile) -> DepthAdaptor | None:
    if not profile.training.use_depth:
        return None
    config = profile.model.depth_adaptor
    return DepthAdaptor(
        profile.camera.near,
        profile.camera.far,
        kernel_size=config.kernel_size,
        hidden_dim=config.hidden_dim,
        layers=config.layers,
        out_strategy=config.out_strategy,
        start_p=config.selection_start_p,
        offset_max_fraction=config.near_plane_offset_max_fraction,
        offset_bias=config.near_plane_offset_bias,
    )


def _camera_adaptor(profile: Profile) -> CameraAdaptor | None:
    if not profile.training.learn_camera:
        return None
    config = profile.model.camera_adaptor
    return CameraAdaptor(
        profile.model.generator.z_dim,
        profile.data.num_classes,
        CameraPrior(profile.camera).bounds(),
        hidden_dim=config.hidden_dim,
        embed_dim=config.embed_dim,
        lr_multiplier=config.lr_multiplier,
        residual=config.residual,
        adjust_angles=config.adjust.angles,
        adjust_radius=config.adjust.radius,
        adjust_fov=config.adjust.fov,
        adjust_look_at=config.adjust.look_at,
    )
