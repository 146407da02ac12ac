"""Checkpoints: named tensors and a JSON state in one folder that appears whole or not at all.

    checkpoints/000180000/            nine digits: how many real images the run has seen
        G.safetensors, D.safetensors, G_ema.safetensors, ...      one file for each group of tensors
        state.json                                                counters and whatever else fits JSON
        manifest.json                                             format, profile, size and SHA-256 of each file

A checkpoint is written under a hidden name, every file is flushed to the disk, and one rename makes it visible: a
crash, a full disk or `kill -9` at any moment leaves the previous checkpoint as it was. Loading checks every byte.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import threedgp
from threedgp.config.schema import Profile
from threedgp.errors import CheckpointError, DataError
from threedgp.files import NEW_FILE_MODE, TEMPORARY_MARK, fsync, parse_json, read_bytes, sha256_of
from threedgp.runs.catalog import (
    ADVICE,
    FORMAT,
    MANIFEST,
    STATE,
    checkpoint_name,
    clean_leftovers,
    manifest_digest,
    publish,
    read_manifest,
    verify_files,
)

TensorGroups = dict[str, dict[str, torch.Tensor]]

_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns: `tensors[group][name]` on one device, and the JSON state."""

    path: Path
    tensors: TensorGroups
    state: dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path | str,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    *,
    nimg: int,
    profile: Profile | None = None,
) -> Path:
    """Write `checkpoints/<nimg>/` durably and return its path. Only the process that holds the run's lock may call it.

    Args:
        folder: the run's `checkpoints` folder, made if missing; leftovers of crashed writers in it are removed.
        tensors: group -> name -> tensor of any shape, dtype and device, for example `G`, `D`, `G_ema`, `optim_G`.
        state: anything JSON can hold. Python's NaN and infinity survive.
        nimg: real images seen so far; an existing checkpoint of the same number is replaced, never lost.
        profile: stored as the shape of the networks, so that loading into other networks is refused by name.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = Path(folder)
    target = folder / checkpoint_name(nimg)
    work = folder / f".{target.name}{TEMPORARY_MARK}{secrets.token_hex(4)}"
    groups = {group: _storable(group, members) for group, members in tensors.items()}
    try:
        folder.mkdir(exist_ok=True)  # not the run's own folder, which may have been moved
        clean_leftovers(folder)
        needed = sum(value.nbytes for members in groups.values() for value in members.values())
        free = shutil.disk_usage(folder).free
        if free < needed + (1 << 20):
            raise CheckpointError(
                f"Checkpoint {target} needs {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free on that disk. "
                "Free some space and resume; the previous checkpoint is intact."
            )
        work.mkdir()
        for group, members in groups.items():
            save_file(members, work / f"{group}.safetensors")
            (work / f"{group}.safetensors").chmod(NEW_FILE_MODE)
        (work / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        _write_manifest(work, profile)
        fsync(work)
        publish(work, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Checkpoint {target} could not be written ({error}). Check the free space and permissions of that disk "
            "and resume; the previous checkpoint is intact."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _storable(group: str, members: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU copies where needed; tensors that share memory are stored apart."""
    if not _GROUP.fullmatch(group):
        raise ValueError(f"not a usable group name: {group!r}")
    seen: set[int] = set()
    result = {}
    for name, value in members.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in seen or value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()
        seen.add(address)
        result[name] = value
    return result


def _write_manifest(work: Path, profile: Profile | None) -> None:
    files = {}
    for path in sorted(work.iterdir()):
        fsync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {"format": FORMAT, "version": threedgp.__version__, "files": files}
    if profile is not None:
        manifest |= {"profile": profile.name, "networks": network_values(profile)}
    manifest["digest"] = manifest_digest(manifest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync(work / MANIFEST)


# ------------------------------------------------------------------------------------------------------------- reading


def load_checkpoint(
    path: Path | str,
    *,
    groups: Iterable[str] | None = None,
    profile: Profile | None = None,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Read a checkpoint after checking size and SHA-256 of every file it is about to use.

    Args:
        path: the checkpoint's folder.
        groups: read only these (`["G_ema"]` for an evaluation); all by default.
        profile: if given, the checkpoint must fit the networks it describes.
        device: where the tensors go.

    Raises:
        CheckpointError: missing, cut short, altered, of other networks or of a newer version; says which file or
            value, and what to do.
    """
    path = Path(path)
    manifest = read_manifest(path)
    stored = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
    wanted = stored if groups is None else list(groups)
    for group in wanted:
        if group not in stored:
            hint = "" if "optim_G" in stored else " Imported weights can be evaluated and rendered, but not trained on."
            raise CheckpointError(f"Checkpoint {path} holds no {group}, only {', '.join(stored)}.{hint}")
    if profile is not None:
        check_profile(path, manifest, profile)
    verify_files(path, manifest, [STATE, *(f"{group}.safetensors" for group in wanted)])
    try:
        tensors = {group: load_file(path / f"{group}.safetensors", device=str(device)) for group in wanted}
        state = parse_json(read_bytes(path / STATE))
    except (SafetensorError, ValueError, OSError, DataError) as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read ({error}). {ADVICE}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE} is damaged. {ADVICE}")
    return Checkpoint(path, tensors, state)


def load_weights(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """`load_state_dict` whose complaint is one sentence: `source` names the file and group.

    Raises:
        CheckpointError: a tensor is missing, unknown or has another shape.
    """
    check_weights(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_weights(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Compare names and shapes with the module's, which may be on the meta device; raises like `load_weights`."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{source} does not fit the network: {', '.join(problems[:3])}{more}. Use the profile it was trained with."
        )


def network_values(profile: Profile) -> dict[str, Any]:
    """The values of a profile that decide which tensors its networks have, by dotted name."""
    model, generator = profile.model, profile.model.generator
    sections = {
        "model": model.model_dump(include={"kind"}),
        "model.generator": generator.model_dump(
            include={"z_dim", "w_dim", "cbase", "cmax", "fmaps", "map_depth", "architecture", "use_noise"}
        ),
        "model.generator.tri_plane": generator.tri_plane.model_dump(include={"resolution", "features"}),
        "model.generator.tri_plane.mlp": generator.tri_plane.mlp.model_dump(),
        "model.depth_adaptor": model.depth_adaptor.model_dump(include={"kernel_size", "hidden_dim", "layers"}),
        "model.camera_adaptor": model.camera_adaptor.model_dump(include={"hidden_dim", "embed_dim"}),
        "model.discriminator": model.discriminator.model_dump(include={"cbase", "cmax", "fmaps", "hyper_mod"})
        | {"additional_start_blocks": profile.start_blocks},
        "data": profile.data.model_dump(include={"resolution", "num_classes", "embedding_dim"}),
        "training": profile.training.model_dump(include={"use_depth", "learn_camera"}),
        "training.patch": profile.training.patch.model_dump(include={"enabled", "conditioning", "resolution"}),
    }
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def check_profile(path: Path, manifest: dict[str, Any], profile: Profile) -> None:
    """Check by a checkpoint's manifest that it belongs to the networks a profile describes.

    Raises:
        CheckpointError: names the first value that differs.
    """
    stored = manifest.get("networks", {})
    # What was chosen before what follows from it: a person knows data.resolution, not the blocks it leads to.
    for key, value in sorted(network_values(profile).items(), key=lambda entry: not entry[0].startswith("data.")):
        if key in stored and stored[key] != value:
            raise CheckpointError(
                f"Checkpoint {path} belongs to profile '{str(manifest.get('profile'))[:100]}' with {key} = "
                f"{str(stored[key])[:100]}, but "
                f"profile '{profile.name}' has {value}. Use the run's own profile, or start a new run."
            )
