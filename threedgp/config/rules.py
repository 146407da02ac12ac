"""Combinations of settings that cannot work, and how a batch is split."""

from __future__ import annotations

from threedgp.config.metric_names import parse_metric
from threedgp.config.schema import CameraConfig, Profile, RangeConfig, ScalarPriorConfig
from threedgp.errors import ConfigError, UsageError


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
    half = max(micro // 2, 1)
    if group and training.patch.enabled and profile.loss.path_length.weight > 0 and half % min(group, half):
        raise ConfigError(
            f"loss.path_length takes half of the micro-batch of {micro}, which model.discriminator.mbstd_group_size="
            f"{group} does not divide. Change training.batch_size or training.batch_gpu, or set "
            "loss.path_length.weight=0."
        )
    return per_process, micro, per_process // micro


def problems(profile: Profile) -> list[str]:
    """One sentence for each combination that cannot work, naming its keys; empty if there is none."""
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
    if model.kind == "stylegan2" and training.coarse_kimg > 0:
        found.append("model.kind=stylegan2 renders no rays: set training.coarse_kimg=0.")
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
    if model.depth_adaptor.kernel_size % 2 == 0:
        found.append(f"model.depth_adaptor.kernel_size={model.depth_adaptor.kernel_size} must be odd.")
    candidates, start = model.depth_adaptor.layers + 1, model.depth_adaptor.selection_start_p
    if start * candidates > 2:
        found.append(
            f"model.depth_adaptor.selection_start_p={start} leaves no probability for the last of {candidates} "
            f"candidates: it must be at most {2 / candidates:g}."
        )
    for name in training.metrics:
        try:
            parse_metric(name)
        except UsageError as error:
            found.append(f"training.metrics: {error}")
    return found


def _patch_problems(profile: Profile) -> list[str]:
    resolution, patch = profile.data.resolution, profile.training.patch
    found = []
    if not (8 <= patch.resolution <= resolution and _power_of_two(patch.resolution)):
        found.append(
            f"training.patch.resolution={patch.resolution} must be a power of two from 8 up to "
            f"data.resolution={resolution}."
        )
    if patch.min_scale is not None and patch.min_scale * resolution < patch.resolution - 1e-6:
        found.append(
            f"training.patch.min_scale={patch.min_scale} would enlarge real images: "
            f"it must be at least {patch.resolution / resolution:g} (patch / image resolution)."
        )
    if patch.min_scale is not None and patch.min_scale > patch.max_scale:
        found.append("training.patch.min_scale is larger than training.patch.max_scale.")
    first = profile.patch_law.min_scale or 0 if patch.anneal_kimg == 0 else patch.max_scale  # smallest at the start
    allowed = [scale for scale in patch.discrete_support if first <= scale <= patch.max_scale]
    if patch.distribution == "discrete_uniform" and not allowed:
        found.append(
            f"training.patch.discrete_support has no value between {first:g} and {patch.max_scale:g}, the "
            "scales at the start."
        )
    return found


def _camera_problems(camera: CameraConfig, *, learned: bool) -> list[str]:
    found = []
    if camera.near >= camera.far:
        found.append(f"camera.near={camera.near} must be smaller than camera.far={camera.far}.")
    for name, prior in (("fov", camera.fov), ("radius", camera.radius), ("look_at.radius", camera.look_at.radius)):
        found += _scalar_problems(f"camera.{name}", prior)
        low, high = (0.01, 179.0) if name == "fov" else (0.0, 1e6)
        for key in ("min", "max", "mean"):
            value = getattr(prior, key)
            if value is not None and not low <= value <= high:
                found.append(f"camera.{name}.{key}={value:g} must lie between {low:g} and {high:g}.")
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
        found += [
            f"training.learn_camera=true needs the prior's mean, which camera.{name}.dist=hybrid does not have."
            for name, prior in (("origin", camera.origin), ("look_at", camera.look_at))
            if prior.dist == "hybrid"
        ]
    return found


def _scalar_problems(path: str, prior: ScalarPriorConfig) -> list[str]:
    if prior.dist == "normal":
        constant = prior.mean is not None and not prior.std
        return [] if constant else [f"{path}: dist normal is a constant here: it needs mean, and std 0."]
    return _missing_or_wrong(path, prior, ["min", "max", *(["std", "mean"] if prior.dist == "truncnorm" else [])])


def _angle_problems(path: str, dist: str, prior: RangeConfig) -> list[str]:
    if dist in ("normal", "hybrid"):
        missing = [key for key in ("mean", "std") if getattr(prior, key) is None]
        return [f"{path}: dist {dist} needs {' and '.join(missing)}."] if missing else []
    needed = ["min", "max", *(["std"] if dist == "truncnorm" else [])]
    return [] if dist == "custom" else _missing_or_wrong(path, prior, needed)


def _missing_or_wrong(path: str, prior: RangeConfig, needed: list[str]) -> list[str]:
    missing = [key for key in needed if getattr(prior, key) is None]
    if missing:
        return [f"{path} needs {' and '.join(missing)}."]
    if prior.min is not None and prior.max is not None and prior.min > prior.max:
        return [f"{path}: min {prior.min} is larger than max {prior.max}."]
    return [f"{path}: std must be larger than 0."] if "std" in needed and not prior.std else []


def _power_of_two(value: int) -> bool:
    return value >= 4 and value & (value - 1) == 0
