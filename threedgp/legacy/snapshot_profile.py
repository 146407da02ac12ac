"""Finds the profile of an imported snapshot: sizes from the tensors' shapes, the rest from its configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from threedgp.camera.priors import CameraPrior
from threedgp.config.profile import load_profile, merge, parse_override, validate
from threedgp.config.schema import Profile
from threedgp.errors import CheckpointError, ConfigError
from threedgp.legacy.snapshot_files import Snapshot

Shapes = dict[str, tuple[int, ...]]

PATCH_CONDITION_DIM = 828  # three numbers, 276 features each: what the discriminator is told about a patch
FOURIER_CAMERA_DIM = 24
RAW_CAMERA_DIM = 2

# What rendering needs and no shape tells.
_NEEDED_3D = (
    "camera.near",
    "camera.far",
    "camera.cube_scale",
    "camera.origin",
    "camera.fov",
    "camera.radius",
    "camera.look_at",
    "model.generator.ray_steps",
)


def snapshot_profile(snapshot: Snapshot, base: str | None = None, overrides: Iterable[str] = ()) -> Profile:
    """The profile whose networks fit the snapshot.

    Args:
        snapshot: weights and settings.
        base: a profile that fills in what the file does not tell.
        overrides: `key.path=value` strings; they win over everything.

    Raises:
        ConfigError: a value that is needed is neither in the file nor given; names it.
        CheckpointError: the shapes fit no network we know.
    """
    weights = snapshot.tensors.get("G_ema") or snapshot.tensors.get("G", {})
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    kind = _kind(shapes)
    settings = _settings(snapshot, "G_ema") or _settings(snapshot, "G")
    overrides = list(overrides)

    with _complete("generator"):
        known = merge(_generator_settings(settings, kind), _generator_shapes(shapes, kind, settings))
    if "D" in snapshot.tensors:
        d_shapes = {name: tuple(value.shape) for name, value in snapshot.tensors["D"].items()}
        with _complete("discriminator"):
            known = merge(_discriminator_tree(d_shapes, _settings(snapshot, "D"), known), known)
    resolution = _first(settings, "img_resolution", "dataset.resolution") or _first(
        snapshot.settings.get("training_set_kwargs", {}), "resolution", "cfg.resolution"
    )
    if kind != "stylegan2" and isinstance(resolution, int):
        known = merge(known, {"data": {"resolution": resolution}})
    given = known
    for override in overrides:
        given = merge(given, parse_override(override))

    needed = ["data.resolution", *(_NEEDED_3D if kind != "stylegan2" else ())]
    if "D" in snapshot.tensors:
        needed.append("training.patch.resolution")
    missing = [path for path in needed if _first(given, path) is None]
    if missing and base is None:
        raise ConfigError(
            f"The file does not say {', '.join(missing)}. Give each with --set KEY=VALUE, or name a profile that has "
            "them, for example --profile imagenet256."
        )
    shipped = {"3dgp": "base", "epigraf": "epigraf256", "stylegan2": "stylegan2-256"}[kind]
    tree = merge(load_profile(base or shipped).model_dump(), known)
    if "D" not in snapshot.tensors:  # nothing of the file depends on patches: any size that fits will do
        side = min(_first(tree, "training.patch.resolution"), _first(tree, "data.resolution"))
        tree = merge(tree, {"training": {"patch": {"resolution": side}}})
    for override in overrides:
        tree = merge(tree, parse_override(override))
    tree |= {"name": base or f"imported-{kind}", "description": f"imported {kind} weights"}
    found = validate(tree, note=False)
    mean = weights.get("mapping.mean_camera_params")
    if mean is not None and mean.numel() == 5 and not CameraPrior(found.camera).has_mean:
        found = validate(merge(tree, {"camera": {"data_mean": mean.flatten().tolist()}}), note=False)
    return found


# -------------------------------------------------------------------------------------------------------------- shapes


@contextlib.contextmanager
def _complete(network: str) -> Iterator[None]:
    """Says so when a parameter that tells a size is missing, or has no size to tell."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"The {network} is incomplete: {error} is missing.") from None
    except (IndexError, ValueError, TypeError, ArithmeticError):
        raise CheckpointError(f"The {network} has parameters or settings of an unusual shape.") from None


def _kind(shapes: Shapes) -> str:
    if "synthesis.b4.const" in shapes:
        return "stylegan2"
    if "synthesis.tri_plane_decoder.b4.const" not in shapes:
        raise CheckpointError(
            "The generator has neither synthesis.b4.const nor synthesis.tri_plane_decoder.b4.const: its parameters "
            "have the names of another code version, which cannot be imported."
        )
    adaptors = any(name.startswith(("synthesis.depth_adaptor.", "synthesis.camera_adaptor.")) for name in shapes)
    return "3dgp" if adaptors else "epigraf"


def _generator_shapes(shapes: Shapes, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about the generator that its shapes tell, as a profile tree."""
    prefix = "synthesis." if kind == "stylegan2" else "synthesis.tri_plane_decoder."
    resolutions = _resolutions(shapes, prefix)
    top = resolutions[-1]
    last_rgb = shapes[f"{prefix}b{top}.torgb.weight"]
    channels = {4: shapes[f"{prefix}b4.const"][0]} | {r: shapes[f"{prefix}b{r}.conv1.weight"][0] for r in resolutions}
    w_dim = shapes["mapping.fc0.weight"][0]
    conditional = "mapping.embed.weight" in shapes
    c_dim, camera = _class_dim(shapes, settings) if conditional else (0, False)
    if f"{prefix}b{top}.skip.weight" in shapes:
        architecture = "resnet"
    else:
        architecture = "skip" if f"{prefix}b4.torgb.weight" in shapes else "orig"
    generator: dict[str, Any] = {
        "w_dim": w_dim,
        "z_dim": shapes["mapping.fc0.weight"][1] - (w_dim if conditional else 0),
        "map_depth": _count(shapes, r"mapping\.fc(\d+)\.weight"),
        "architecture": architecture,
        "use_noise": f"{prefix}b4.conv1.noise_strength" in shapes,
        "camera_conditioning": {"enabled": camera},
        **_widths(channels, settings, "generator"),
    }
    tree: dict[str, Any] = {"model": {"kind": kind, "generator": generator}, "data": {"num_classes": c_dim}}
    if kind == "stylegan2":
        tree["data"]["resolution"] = top
        return tree
    generator["tri_plane"] = {
        "resolution": top,
        "features": last_rgb[0] // 3,
        "mlp": {
            "layers": _count(shapes, r"synthesis\.tri_plane_mlp\.model\.(\d+)\.weight"),
            "hidden_dim": shapes["synthesis.tri_plane_mlp.model.0.weight"][0],
        },
    }
    depth = "synthesis.depth_adaptor."
    cameras = "synthesis.camera_adaptor."
    tree["training"] = {
        "use_depth": any(name.startswith(depth) for name in shapes),
        "learn_camera": any(name.startswith(cameras) for name in shapes),
    }
    if tree["training"]["use_depth"]:
        first = shapes.get(f"{depth}layers.0.weight")
        layers = {"layers": _count(shapes, rf"{re.escape(depth)}layers\.(\d+)\.weight")}
        sizes = {"hidden_dim": first[0], "kernel_size": first[2]} if first else {}
        tree["model"]["depth_adaptor"] = layers | sizes
    if tree["training"]["learn_camera"]:
        tree["model"]["camera_adaptor"] = {
            "hidden_dim": shapes[f"{cameras}origin_adaptor.project_params.weight"][0],
            "embed_dim": shapes[f"{cameras}look_at_adaptor.project_z.weight"][0],
        }
    return tree


def _class_dim(shapes: Shapes, settings: Mapping[str, Any]) -> tuple[int, bool]:
    """Number of classes, and whether the mapping network also sees the camera."""
    width = shapes["mapping.embed.weight"][1]
    adaptor = shapes.get("synthesis.camera_adaptor.origin_adaptor.project_c.weight")
    stated = adaptor[1] if adaptor else _first(settings, "c_dim")
    if isinstance(stated, int) and width - stated in (0, RAW_CAMERA_DIM, FOURIER_CAMERA_DIM):
        return stated, width != stated
    if any(name.startswith("mapping.camera_scalar_enc.") for name in shapes):
        return width - FOURIER_CAMERA_DIM, True
    if _first(settings, "camera_cond"):
        return width - RAW_CAMERA_DIM, True
    return width, False


def _discriminator_tree(shapes: Shapes, settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What the discriminator's shapes and settings tell, as a profile tree."""
    resolutions = [r for r in _resolutions(shapes, "", needed="conv0.weight") if r > 4]
    if not resolutions or "b4.fc.weight" not in shapes:
        raise CheckpointError("The discriminator is incomplete: it has no blocks b8 and up, or no b4.fc.weight.")
    virtual = resolutions[-1]
    channels = {r: shapes[f"b{r}.conv0.weight"][0] for r in resolutions} | {4: shapes["b4.fc.weight"][0]}
    conditioning = any(name.startswith("scalar_enc.") for name in shapes)
    discriminator: dict[str, Any] = {
        "hyper_mod": any(name.startswith("hyper_mod_mapping.") for name in shapes),
        **_widths(channels, settings, "discriminator"),
    }
    discriminator |= _translate(settings, {key: key for key in ("fp32_only", "mbstd_group_size")})
    embed = shapes.get("head_mapping.embed.weight")
    if embed is not None:
        classes = _first(known, "data.num_classes") or 0
        extra = embed[1] - classes - (PATCH_CONDITION_DIM if conditioning else 0)
        discriminator["camera_conditioning"] = {"enabled": extra == FOURIER_CAMERA_DIM}
    patch: dict[str, Any] = {"enabled": conditioning, "conditioning": conditioning}
    tree: dict[str, Any] = {"model": {"discriminator": discriminator}, "training": {"patch": patch}}
    tree["data"] = {"resolution": virtual}  # unless the generator says otherwise
    # The published `img_resolution` is the virtual one; only the configuration knows the side of a patch.
    side, starts = _first(settings, "patch.resolution"), _first(settings, "num_additional_start_blocks")
    if _first(settings, "patch.enabled") is False or (side is None and not conditioning):
        side = virtual
    elif side is None and isinstance(starts, int) and 0 <= starts < 16:
        side = virtual >> starts
    if side is not None:
        if side not in [virtual >> starts for starts in range(virtual.bit_length())]:
            raise CheckpointError(f"The discriminator's patch.resolution is no power of two up to its own {virtual}.")
        discriminator["additional_start_blocks"] = (virtual // side).bit_length() - 1
        patch["resolution"] = side
        patch["enabled"] = conditioning or side < virtual
    head = shapes.get("b4.feat_out.1.weight")
    tree["loss"] = {"distillation": {"weight": 1.0 if head else 0.0}}
    if head:
        tree["data"]["embedding_dim"] = head[0]
    return tree


def _resolutions(shapes: Shapes, prefix: str, needed: str = "conv1.weight") -> list[int]:
    pattern = re.compile(rf"{re.escape(prefix)}b(\d+)\.{re.escape(needed)}")
    return sorted(int(match[1]) for name in shapes if (match := pattern.fullmatch(name)))


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)


def _widths(channels: Mapping[int, int], settings: Mapping[str, Any], network: str) -> dict[str, Any]:
    """cbase, cmax, fmaps with channels(r) = min(cbase * fmaps / r, cmax): as configured, else from the shapes."""
    top = max(channels)
    candidates = [{"cbase": channels[top] * top, "cmax": max(channels.values()), "fmaps": 1.0}]
    stated = {key: _first(settings, key) for key in ("cbase", "cmax", "fmaps")}
    if all(isinstance(value, (int, float)) for value in stated.values()):
        stated = {"cbase": int(stated["cbase"]), "cmax": int(stated["cmax"]), "fmaps": float(stated["fmaps"])}
        candidates.insert(0, stated)
    for widths in candidates:
        product = int(widths["cbase"] * widths["fmaps"])
        if all(min(product // r, widths["cmax"]) == count for r, count in channels.items()):
            return widths
    raise CheckpointError(
        f"The {network}'s layer widths {dict(sorted(channels.items()))} do not follow min(cbase / resolution, cmax)."
    )


# ------------------------------------------------------------------------------------------------------------ settings


def _settings(snapshot: Snapshot, network: str) -> dict[str, Any]:
    """A network's own attributes over its constructor arguments over its configuration."""
    own = snapshot.settings.get(network) or {}
    result: dict[str, Any] = {}
    for source in (own.get("cfg"), own.get("_init_kwargs"), own):
        if isinstance(source, dict):
            result = merge(result, {key: value for key, value in source.items() if value is not None})
    return result


def _first(tree: Any, *paths: str) -> Any:
    """The first of these dotted paths that has a value; an unresolved reference (${training.patch}) counts as none."""
    for path in paths:
        value = tree
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and not (isinstance(value, str) and ("${" in value or value == "???")):
            return value
    return None


# our key -> their key, for what shapes cannot tell
_GENERATOR_KEYS = {
    "ray_steps": "num_ray_steps",
    "marcher": "ray_marcher_type",
    "clamp_mode": "clamp_mode",
    "density_bias": "density_bias",
    "use_inf_depth": "use_inf_depth",
    "use_full_box": "use_full_box",
    "white_back": "dataset.white_back",
    "last_back": "dataset.last_back",
    "max_batch_res": "max_batch_res",
    "fp32_only": "fp32_only",
    "density_noise.init_std": "nerf_noise_std_init",
    "density_noise.anneal_kimg": "nerf_noise_kimg_growth",
    "camera_conditioning.drop_probability": "camera_cond_drop_p",
    "camera_conditioning.spoof_probability": "camera_cond_spoof_p",
}
_NEAR_PLANE = ("near_plane_offset_max_fraction", "near_plane_offset_bias")
_DEPTH_KEYS = {name: name for name in ("out_strategy", "selection_start_p", "anneal_kimg", *_NEAR_PLANE)}
_CAMERA_ADAPTOR_KEYS = {
    name: name
    for name in ("lr_multiplier", "residual", "adjust.angles", "adjust.radius", "adjust.fov", "adjust.look_at")
}


def _generator_settings(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What the generator's configuration tells beyond its shapes, as a profile tree."""
    model = {"generator": _translate(settings, _GENERATOR_KEYS)}
    if model["generator"].get("marcher", "classical") == "classical":
        model["generator"]["white_back"] = False  # the published classical marcher never looked at this flag
    if kind == "stylegan2":
        model["generator"] = _translate(settings, {"fp32_only": "fp32_only"})
        return {"model": model}
    for ours, keys in (("depth_adaptor", _DEPTH_KEYS), ("camera_adaptor", _CAMERA_ADAPTOR_KEYS)):
        section = _first(settings, ours)
        if isinstance(section, Mapping):
            model[ours] = _translate(section, keys)
    tree: dict[str, Any] = {"model": model}
    camera = _first(settings, "camera")
    if isinstance(camera, Mapping):
        tree["camera"] = _camera_tree(camera)
    return tree


def _translate(settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for ours, theirs in keys.items():
        value = _first(settings, theirs)
        if value is not None:
            for key in reversed(ours.split(".")):
                value = {key: value}
            tree = merge(tree, value)
    return tree


def _camera_tree(camera: Mapping[str, Any]) -> dict[str, Any]:
    """The camera prior. Angles lie under `angles` or directly in their section; a bare number is a constant."""
    tree: dict[str, Any] = {
        "near": _first(camera, "ray.start"),
        "far": _first(camera, "ray.end"),
        "cube_scale": _first(camera, "cube_scale"),
        "validate_viewing_frustum": _first(camera, "validate_viewing_frustum"),
        "fov": _scalar(_first(camera, "fov")),
        "radius": _scalar(_first(camera, "origin.radius", "radius")),
        "origin": _angles(_first(camera, "origin.angles", "origin")),
        "look_at": _angles(_first(camera, "look_at.angles", "look_at")),
    }
    if tree["look_at"]:
        radius = _scalar(_first(camera, "look_at.radius"))
        tree["look_at"] |= {"radius": radius} if radius else {}
    return {key: value for key, value in tree.items() if value is not None}


def _range(prior: Any) -> dict[str, Any]:
    values = {key: _first(prior, key) for key in ("min", "max", "mean", "std")}
    return {key: float(value) if isinstance(value, (int, float)) else None for key, value in values.items()}


def _scalar(prior: Any) -> dict[str, Any] | None:
    if isinstance(prior, (int, float)):
        return {"dist": "normal", "mean": float(prior), "std": 0.0, "min": None, "max": None}
    if isinstance(prior, Mapping):
        return {"dist": _first(prior, "dist") or "uniform", **_range(prior)}
    return None


def _angles(prior: Any) -> dict[str, Any] | None:
    if not isinstance(prior, Mapping) or _first(prior, "dist") is None:
        return None
    return {"dist": prior["dist"], "yaw": _range(_first(prior, "yaw")), "pitch": _range(_first(prior, "pitch"))}
