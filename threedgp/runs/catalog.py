"""Which checkpoints a run has, which are intact, which may go. Needs no torch: listing runs stays quick.

The layout is described in `threedgp.runs.checkpoint`, which reads and writes the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from threedgp.errors import CheckpointError, DataError
from threedgp.files import TEMPORARY_MARK, fsync, parse_json, read_bytes, sha256_of
from threedgp.progress import NULL_PROGRESS, Progress

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"

_NAME = re.compile(r"\d{9,}")
_DISPLACED = re.compile(r"\.(\d{9,})\.displaced")
ADVICE = "Use another checkpoint: delete this folder and the newest intact one before it is taken."


class NewerCheckpointError(CheckpointError):
    """The checkpoint was written by a newer version of this program."""


# ------------------------------------------------------------------------------------------------------------ integrity


def verify_checkpoint(path: Path | str) -> None:
    """Check format, sizes and checksums of every file; raises `CheckpointError` like `load_checkpoint`."""
    manifest = read_manifest(path)
    verify_files(Path(path), manifest, manifest["files"])


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a checkpoint this program can read, its structure checked."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path}. `3dgp runs show` lists those of a run.")
    try:
        manifest = parse_json(read_bytes(path / MANIFEST))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}. {ADVICE}") from None
    except (ValueError, OSError, DataError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged ({error}). {ADVICE}") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise NewerCheckpointError(
            f"Checkpoint {path} is of a newer 3dgp ({str(manifest.get('version', 'unknown'))[:30]}, checkpoint "
            f"format {version}; this one reads up to {FORMAT}). Upgrade with: pip install --upgrade threedgp"
        )
    if version != FORMAT or manifest.get("digest") != manifest_digest(manifest) or not _is_well_formed(manifest):
        raise CheckpointError(f"{path / MANIFEST} is damaged. {ADVICE}")
    return manifest


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has what this program reads: plain file names with size and checksum, and network values."""
    files, networks = manifest.get("files"), manifest.get("networks", {})
    return (
        isinstance(networks, dict)
        and isinstance(files, dict)
        and STATE in files
        and all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        )
        and not any(os.sep in name or name.startswith(".") for name in files)
    )


def verify_files(path: Path, manifest: dict[str, Any], names: Iterable[str]) -> None:
    """Check size and SHA-256 of the named files of a checkpoint against its manifest."""
    for name in names:
        file, expected = path / name, manifest["files"][name]
        try:
            if not file.is_file():  # a folder or a pipe is no file either
                raise FileNotFoundError
            size = file.stat().st_size
            if size != expected["size"]:
                raise CheckpointError(f"{file} has {size} bytes instead of {expected['size']}. {ADVICE}")
            if sha256_of(file) != expected["sha256"]:
                raise CheckpointError(f"{file} was altered after it was written (checksum differs). {ADVICE}")
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing. {ADVICE}") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error}). {ADVICE}") from None


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in the manifest, so that a damaged manifest cannot hide a file."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- finding and naming


def checkpoint_name(nimg: int) -> str:
    """Folder name of a checkpoint: the number of real images seen, nine digits, so that names sort by age."""
    return f"{nimg:09d}"


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


def find_latest(folder: Path | str, progress: Progress = NULL_PROGRESS, *, at_most: int | None = None) -> Path | None:
    """The newest checkpoint that verifies, or None. Damaged newer ones are passed over with a note each.

    Args:
        at_most: only those of so many images or fewer.

    Raises:
        NewerCheckpointError: the newest one needs a newer version of this program: an older checkpoint would silently
            throw training away.
    """
    for path in reversed(list_checkpoints(folder)):
        if at_most is not None and checkpoint_nimg(path) > at_most:
            continue
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


def publish(work: Path, target: Path) -> None:
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
