"""From a profile to its networks: the only place where settings become constructor arguments."""

from __future__ import annotations

import torch

from threedgp.camera.priors import CameraPrior
from threedgp.config.rules import discriminator_resolution, image_channels
from threedgp.config.schema import Profile
from threedgp.models.camera_adaptor import CameraAdaptor
from threedgp.models.depth_adaptor import DepthAdaptor
from threedgp.models.discriminator import Discriminator
from threedgp.models.feature_discriminator import FeatureDiscriminator
from threedgp.models.generator import FieldMLP, Generator
from threedgp.models.mapping import CameraEncoding, MappingNetwork
from threedgp.models.stylegan2 import StyleGAN2Generator, SynthesisNetwork
from threedgp.pretrained.embedder import build_backbone
from threedgp.rendering.renderer import RenderOptions


def build_generator(profile: Profile) -> Generator | StyleGAN2Generator:
    """The generator of a profile, freshly initialised from torch's global random state.

    Raises:
        ConfigError: learning the cameras of a prior without bounds.
    """
    model, data, camera = profile.model, profile.data, profile.camera
    config, planes, flat = model.generator, model.generator.tri_plane, model.kind == "stylegan2"
    depth_adaptor = camera_adaptor = None
    if profile.training.use_depth:
        depth_adaptor = DepthAdaptor(camera.near, camera.far, model.depth_adaptor)
    if profile.training.learn_camera:
        bounds = CameraPrior(camera).bounds()
        camera_adaptor = CameraAdaptor(config.z_dim, data.num_classes, bounds, model.camera_adaptor)
    backbone = SynthesisNetwork(
        config,
        data.resolution if flat else planes.resolution,
        3 if flat else 3 * planes.features,
        low_precision=_low_precision(profile),
    )
    if flat:
        mapping = _mapping(profile, backbone.num_ws)
        return StyleGAN2Generator(backbone, mapping, patch_resolution=discriminator_resolution(profile))
    mlp = FieldMLP(planes.features, planes.mlp.hidden_dim, 4, planes.mlp.layers)  # to RGB and density
    return Generator(
        backbone,
        mlp,
        _mapping(profile, backbone.num_ws),
        render_options(profile),
        img_resolution=data.resolution,
        patch_resolution=discriminator_resolution(profile),
        cube_scale=camera.cube_scale,
        density_noise_std=config.density_noise.init_std,
        depth_adaptor=depth_adaptor,
        camera_adaptor=camera_adaptor,
    )


def _mapping(profile: Profile, num_ws: int) -> MappingNetwork:
    """The generator's mapping network, which sees the camera if the profile asks for it."""
    config, conditioning = profile.model.generator, profile.model.generator.camera_conditioning
    encoding: CameraEncoding | None = None
    mean = None
    if conditioning.enabled:
        encoding = "fourier" if profile.model.kind == "stylegan2" else "raw"
        prior = CameraPrior(profile.camera)
        # Without a mean such a generator must always be told its camera.
        mean = prior.mean().to_vector()[0, :5].tolist() if prior.has_mean else None
    return MappingNetwork(
        config.z_dim,
        profile.data.num_classes,
        config.w_dim,
        num_ws,
        num_layers=config.map_depth,
        camera_encoding=encoding,
        camera_dropout=conditioning.drop_probability,
        mean_camera=mean,
    )


def _low_precision(profile: Profile) -> torch.dtype | None:
    return torch.bfloat16 if profile.precision == "bf16" else None


def build_discriminator(profile: Profile) -> Discriminator:
    """The discriminator of a profile, freshly initialised from torch's global random state."""
    config, training = profile.model.discriminator, profile.training
    discriminator = Discriminator(
        config,
        discriminator_resolution(profile),
        image_channels(profile),
        profile.data.num_classes,
        start_blocks=profile.start_blocks,
        patch_conditioning=training.patch.conditioning,
        feature_dim=profile.data.embedding_dim if profile.loss.distillation.weight > 0 else 0,
        low_precision=_low_precision(profile),
        freeze_layers=training.freeze_discriminator_layers,
    )
    discriminator.feature_discriminator = _feature_discriminator(profile)
    return discriminator


def _feature_discriminator(profile: Profile) -> FeatureDiscriminator | None:
    config = profile.model.feature_discriminator
    if config.weight == 0:
        return None
    network, mean, std = build_backbone(config.network)
    return FeatureDiscriminator(
        config, network, mean=mean, std=std, c_dim=profile.data.num_classes, low_precision=_low_precision(profile)
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
