"""Checkpoints: named tensors and a JSON state in one folder that appears whole or not at all.

    checkpoints/000180000/            nine digits: how many real images the run has seen
        G.safetensors, D.safetensors, G_ema.safetensors, ...      one file for each group of tensors
        state.json                                                counters and whatever else fits JSON
        manifest.json                                             format, profile, size and SHA-256 of each file

A checkpoint is written under a hidden name, every file is flushed to the disk, and one rename makes it visible: a
crash, a full disk or `kill -9` at any moment leaves the previous checkpoint as it was. Loading checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from threedgp.errors import CheckpointError
from threedgp.files import TEMPORARY_MARK, fsync, sha256_of
from threedgp.progress import NULL_PROGRESS, Progress

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"

TensorGroups = dict[str, dict[str, torch.Tensor]]

_NAME = re.compile(r"\d{9,}")
_DISPLACED = re.compile(r"\.(\d{9,})\.displaced")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class NewerCheckpointError(CheckpointError):
    """The checkpoint was written by a newer version of this program."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns: `tensors[group][name]` on one device, and the JSON state."""

    path: Path
    tensors: TensorGroups
    state: dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- writing


def checkpoint_name(nimg: int) -> str:
    """Folder name of a checkpoint: the number of real images seen, nine digits, so that names sort by age."""
    return f"{nimg:09d}"


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
        folder.mkdir(parents=True, exist_ok=True)
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
        (work / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        _write_manifest(work, profile)
        fsync(work)
        _publish(work, target)
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
    manifest["digest"] = _digest(manifest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync(work / MANIFEST)


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in the manifest, so that a damaged manifest cannot hide a file."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _publish(work: Path, target: Path) -> None:
    """Rename `work` to `target`. A folder cannot be replaced in one step: an old one steps aside first, under a name
    that `list_checkpoints` still understands should the process die between the two renames."""
    displaced = target.with_name(f".{target.name}.displaced")
    if target.exists():
        os.rename(target, displaced)
    os.rename(work, target)
    fsync(target.parent)
    if displaced.exists():
        shutil.rmtree(displaced, ignore_errors=True)


def clean_leftovers(folder: Path) -> None:
    """Remove what crashed writers left behind. Only for the process that holds the run's lock."""
    for path in list(folder.iterdir()):
        if path.name.startswith(".") and TEMPORARY_MARK in path.name:
            shutil.rmtree(path, ignore_errors=True)
        elif match := _DISPLACED.fullmatch(path.name):
            if (folder / match[1]).exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, folder / match[1])


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
            raise CheckpointError(f"Checkpoint {path} holds no {group}, only {', '.join(stored)}.")
    if profile is not None:
        _check_profile(path, manifest, profile)
    _verify_files(path, manifest, [STATE, *(f"{group}.safetensors" for group in wanted)])
    try:
        tensors = {group: load_file(path / f"{group}.safetensors", device=str(device)) for group in wanted}
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read ({error}). {_ADVICE}") from error
    return Checkpoint(path, tensors, state)


def read_state(path: Path | str) -> dict[str, Any]:
    """Only the JSON state of a checkpoint, verified; cheap even for large networks."""
    return load_checkpoint(path, groups=[]).state


def verify_checkpoint(path: Path | str) -> None:
    """Check format, sizes and checksums of every file; raises `CheckpointError` like `load_checkpoint`."""
    manifest = read_manifest(path)
    _verify_files(Path(path), manifest, manifest["files"])


_ADVICE = "Use another checkpoint: delete this folder and the newest intact one before it is taken."


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a checkpoint this program can read, its structure checked."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path}. `3dgp runs show` lists those of a run.")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}. {_ADVICE}") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged ({error}). {_ADVICE}") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise NewerCheckpointError(
            f"Checkpoint {path} was written by a newer 3dgp ({manifest.get('version', 'unknown version')}, checkpoint "
            f"format {version}; this one reads up to {FORMAT}). Upgrade with: pip install --upgrade threedgp"
        )
    if version != FORMAT or manifest.get("digest") != _digest(manifest):
        raise CheckpointError(f"{path / MANIFEST} is damaged. {_ADVICE}")
    return manifest


def _verify_files(path: Path, manifest: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        file, expected = path / name, manifest["files"][name]
        try:
            size = file.stat().st_size
            if size != expected["size"]:
                raise CheckpointError(f"{file} has {size} bytes instead of {expected['size']}. {_ADVICE}")
            if sha256_of(file) != expected["sha256"]:
                raise CheckpointError(f"{file} was altered after it was written (checksum differs). {_ADVICE}")
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing. {_ADVICE}") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error}). {_ADVICE}") from None


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
        "model.discriminator": model.discriminator.model_dump(
            include={"cbase", "cmax", "fmaps", "hyper_mod", "additional_start_blocks"}
        ),
        "data": profile.data.model_dump(include={"resolution", "num_classes", "embedding_dim"}),
        "training": profile.training.model_dump(include={"use_depth", "learn_camera"}),
        "training.patch": profile.training.patch.model_dump(include={"enabled", "conditioning", "resolution"}),
    }
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _check_profile(path: Path, manifest: dict[str, Any], profile: Profile) -> None:
    stored = manifest.get("networks", {})
    for key, value in network_values(profile).items():
        if key in stored and stored[key] != value:
            raise CheckpointError(
                f"Checkpoint {path} belongs to profile '{manifest.get('profile')}' with {key} = {stored[key]}, but "
                f"profile '{profile.name}' has {value}. Use the run's own profile, or start a new run."
            )


# ------------------------------------------------------------------------------------------------- finding and pruning


def list_checkpoints(folder: Path | str) -> list[Path]:
    """Every complete checkpoint of a folder, oldest first, without verifying its bytes."""
    found: dict[str, Path] = {}
    try:
        entries = sorted(Path(folder).iterdir(), reverse=True)  # visible names before hidden ones
    except (FileNotFoundError, NotADirectoryError):
        return []
    for path in entries:
        if _NAME.fullmatch(path.name):
            found[path.name] = path
        elif match := _DISPLACED.fullmatch(path.name):
            found.setdefault(match[1], path)
    return [found[name] for name in sorted(found, key=int)]


def checkpoint_nimg(path: Path | str) -> int:
    """Number of real images a checkpoint had seen, from its name."""
    name = Path(path).name
    match = _DISPLACED.fullmatch(name)
    return int(match[1] if match else name)


def find_latest(folder: Path | str, progress: Progress = NULL_PROGRESS) -> Path | None:
    """The newest checkpoint that verifies, or None. Damaged newer ones are passed over with a note each.

    Raises:
        NewerCheckpointError: the newest one needs a newer version of this program: an older checkpoint would silently
            throw training away.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            progress.note(f"Passed over a checkpoint: {error}")
        else:
            return path
    return None


def remove_checkpoint(path: Path | str) -> None:
    """Delete a checkpoint; it disappears from `list_checkpoints` in one step."""
    path = Path(path)
    doomed = path.with_name(f".{path.name.strip('.')}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune_checkpoints(
    folder: Path | str,
    *,
    keep_last: int,
    keep: Iterable[Path | str] = (),
    keep_every_kimg: float | None = None,
) -> list[Path]:
    """Delete old checkpoints once the newest one is known to be intact; returns the deleted paths.

    Kept are the last `keep_last`, those in `keep` (the best one, rollback candidates), and the first one at or after
    every multiple of `keep_every_kimg` thousand images. If the newest does not verify, nothing is deleted.
    """
    paths = list_checkpoints(folder)
    if not paths:
        return []
    try:
        verify_checkpoint(paths[-1])
    except CheckpointError:
        return []
    kept = {Path(path).name for path in keep} | {path.name for path in paths[-keep_last:]}
    if keep_every_kimg is not None:
        milestone = 0
        for path in paths:
            reached = int(checkpoint_nimg(path) // (1000 * keep_every_kimg))
            if reached > milestone:
                kept.add(path.name)
                milestone = reached
    doomed = [path for path in paths if path.name not in kept]
    for path in doomed:
        remove_checkpoint(path)
    return doomed
