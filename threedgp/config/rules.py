"""Values that follow from others, and combinations that cannot work."""

from __future__ import annotations

import math
from typing import Any

from threedgp.config.schema import CameraConfig, Profile, RangeConfig, ScalarPriorConfig
from threedgp.errors import ConfigError


def resolve(profile: Profile) -> Profile:
    """Fill in every derived value and refuse what cannot work; resolving twice changes nothing.

    Derived: loss.gamma ("auto"), loss.gamma_fake, training.ema.kimg, training.patch.min_scale,
    model.discriminator.additional_start_blocks.

    Raises:
        ConfigError: one sentence per impossible combination, each naming its keys.
    """
    problems = _problems(profile)
    if problems:
        raise ConfigError(" ".join(problems))
    data, training, loss = profile.data, profile.training, profile.loss
    patch = training.patch
    patched = patch.enabled
    gamma = 0.0002 * data.resolution**2 / training.batch_size if loss.gamma == "auto" else loss.gamma
    updates: dict[str, Any] = {
        "loss.gamma": gamma,
        "loss.gamma_fake": gamma if loss.gamma_fake is None else loss.gamma_fake,
        "training.ema.kimg": training.ema.kimg or 0.3125 * training.batch_size,
        "training.patch.min_scale": patch.min_scale or (patch.resolution / data.resolution if patched else 1.0),
    }
    if profile.model.discriminator.additional_start_blocks is None:
        blocks = round(math.log2(data.resolution / patch.resolution)) if patched else 0
        updates["model.discriminator.additional_start_blocks"] = blocks
    tree = profile.model_dump()
    for path, value in updates.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[key] = value
    return Profile.model_validate(tree)


def image_channels(profile: Profile) -> int:
    """Channels of what the discriminator sees: RGB, and depth when it is used."""
    return 4 if profile.training.use_depth else 3


def discriminator_resolution(profile: Profile) -> int:
    """Side in pixels of what the discriminator sees: a patch, or the whole image."""
    return profile.training.patch.resolution if profile.training.patch.enabled else profile.data.resolution


def batch_split(profile: Profile, processes: int) -> tuple[int, int, int]:
    """Split the batch over processes.

    Returns:
        Samples per process, per micro-batch, and micro-batches per iteration.

    Raises:
        ConfigError: it does not divide, or a minibatch-std group does not fit a micro-batch.
    """
    training = profile.training
    if training.batch_size % processes:
        raise ConfigError(
            f"training.batch_size={training.batch_size} cannot be split over {processes} processes. "
            f"Choose a multiple of {processes}."
        )
    per_process = training.batch_size // processes
    micro = training.batch_gpu or per_process
    if per_process % micro:
        raise ConfigError(
            f"training.batch_gpu={micro} does not divide the {per_process} samples of each of {processes} processes "
            f"(training.batch_size={training.batch_size})."
        )
    group = profile.model.discriminator.mbstd_group_size
    if group and micro % min(group, micro):
        raise ConfigError(
            f"model.discriminator.mbstd_group_size={group} does not divide the micro-batch of {micro}. "
            f"Set it to a divisor of {micro}, or change training.batch_size or training.batch_gpu."
        )
    return per_process, micro, per_process // micro


def _problems(profile: Profile) -> list[str]:
    data, model, training = profile.data, profile.model, profile.training
    patch = training.patch
    found = []
    if not _power_of_two(data.resolution):
        found.append(f"data.resolution={data.resolution} must be a power of two.")
    if patch.enabled:
        found += _patch_problems(profile)
    else:
        if patch.conditioning:
            found.append("training.patch.enabled=false needs training.patch.conditioning=false.")
        if model.discriminator.hyper_mod:
            found.append("training.patch.enabled=false needs model.discriminator.hyper_mod=false.")
    if model.discriminator.hyper_mod and not patch.conditioning and patch.enabled:
        found.append("model.discriminator.hyper_mod=true needs training.patch.conditioning=true.")
    if not _power_of_two(model.generator.tri_plane.resolution):
        found.append("model.generator.tri_plane.resolution must be a power of two.")
    if model.kind != "3dgp":
        for key in ("use_depth", "learn_camera"):
            if getattr(training, key):
                found.append(f"model.kind={model.kind} has no adaptors: set training.{key}=false.")
    if model.generator.marcher == "mip" and model.generator.clamp_mode != "softplus":
        found.append("model.generator.marcher=mip only knows model.generator.clamp_mode=softplus.")
    if model.generator.marcher == "mip" and model.generator.last_back:
        found.append("model.generator.marcher=mip has no model.generator.last_back.")
    if training.augment.mode != "none" and data.augment.where == "both":
        found.append(
            "training.augment and data.augment.where=both would both change the discriminator's input: use one."
        )
    found += _camera_problems(profile.camera, learned=training.learn_camera)
    group = model.discriminator.mbstd_group_size
    if group and training.batch_size % min(group, training.batch_size):
        found.append(
            f"training.batch_size={training.batch_size} is not a multiple of "
            f"model.discriminator.mbstd_group_size={group}."
        )
    if training.batch_gpu and training.batch_size % training.batch_gpu:
        found.append(
            f"training.batch_gpu={training.batch_gpu} does not divide training.batch_size={training.batch_size}."
        )
    if not all(
        0 <= beta < 1 for o in (training.generator_optimizer, training.discriminator_optimizer) for beta in o.betas
    ):
        found.append("Optimizer betas must lie in [0, 1).")
    return found


def _patch_problems(profile: Profile) -> list[str]:
    resolution, patch = profile.data.resolution, profile.training.patch
    found = []
    if patch.resolution > resolution or not _power_of_two(patch.resolution):
        found.append(
            f"training.patch.resolution={patch.resolution} must be a power of two up to data.resolution={resolution}."
        )
    if patch.min_scale is not None and patch.min_scale * resolution < patch.resolution - 1e-6:
        found.append(
            f"training.patch.min_scale={patch.min_scale} would enlarge real images: "
            f"it must be at least {patch.resolution / resolution:g} (patch / image resolution)."
        )
    if patch.min_scale is not None and patch.min_scale > patch.max_scale:
        found.append("training.patch.min_scale is larger than training.patch.max_scale.")
    if patch.distribution == "discrete_uniform" and not patch.discrete_support:
        found.append("training.patch.discrete_support is empty.")
    return found


def _camera_problems(camera: CameraConfig, *, learned: bool) -> list[str]:
    found = []
    if camera.near >= camera.far:
        found.append(f"camera.near={camera.near} must be smaller than camera.far={camera.far}.")
    for name, prior in (("fov", camera.fov), ("radius", camera.radius), ("look_at.radius", camera.look_at.radius)):
        found += _scalar_problems(f"camera.{name}", prior)
    for name, group in (("origin", camera.origin), ("look_at", camera.look_at)):
        for axis in ("yaw", "pitch"):
            found += _angle_problems(f"camera.{name}.{axis}", group.dist, getattr(group, axis))
    if learned:
        bounded = {
            "origin.yaw": camera.origin.yaw,
            "origin.pitch": camera.origin.pitch,
            "fov": camera.fov,
            "look_at.yaw": camera.look_at.yaw,
            "look_at.pitch": camera.look_at.pitch,
            "look_at.radius": camera.look_at.radius,
        }
        missing = [name for name, prior in bounded.items() if prior.min is None or prior.max is None]
        if missing:
            keys = ", ".join(f"camera.{name}" for name in missing)
            found.append(f"training.learn_camera=true needs bounds (min and max) for {keys}.")
        if camera.origin.dist == "custom":
            found.append(
                "training.learn_camera=true cannot adapt cameras given by the data (camera.origin.dist=custom)."
            )
    return found


def _scalar_problems(path: str, prior: ScalarPriorConfig) -> list[str]:
    if prior.dist == "normal":
        if prior.mean is None or prior.std:
            return [f"{path}: dist normal is a constant here: it needs mean, and std 0."]
        return []
    return _bounds_problems(path, prior, needs_std=prior.dist == "truncnorm", needs_mean=prior.dist == "truncnorm")


def _angle_problems(path: str, dist: str, prior: RangeConfig) -> list[str]:
    if dist == "custom":
        return []
    if dist in ("normal", "hybrid"):
        missing = [key for key in ("mean", "std") if getattr(prior, key) is None]
        return [f"{path}: dist {dist} needs {' and '.join(missing)}."] if missing else []
    return _bounds_problems(path, prior, needs_std=dist == "truncnorm", needs_mean=False)


def _bounds_problems(path: str, prior: RangeConfig, *, needs_std: bool, needs_mean: bool) -> list[str]:
    needed = ["min", "max"] + ["std"] * needs_std + ["mean"] * needs_mean
    missing = [key for key in needed if getattr(prior, key) is None]
    if missing:
        return [f"{path} needs {' and '.join(missing)}."]
    if prior.min > prior.max:
        return [f"{path}: min {prior.min} is larger than max {prior.max}."]
    if needs_std and not prior.std:
        return [f"{path}: std must be larger than 0."]
    return []


def _power_of_two(value: int) -> bool:
    return value >= 4 and value & (value - 1) == 0
