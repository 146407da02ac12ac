"""Imports snapshots of the published 3DGP code, of EpiGRAF and of StyleGAN2 as runs that evaluate and render.

Weights are stored unscaled in both, so that importing is a plain copy by name (3DGP, arXiv 2303.01416, reference code).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.errors import CheckpointError
from threedgp.files import sha256_of, write_json
from threedgp.legacy.snapshot_files import Snapshot, read_snapshot
from threedgp.legacy.snapshot_profile import snapshot_profile
from threedgp.models.build import build_discriminator, build_generator
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.checkpoint import check_weights, save_checkpoint
from threedgp.runs.run import IMPORTED, Run

# Constants that we compute, and layers that the reference stores but never uses.
_UNUSED = re.compile(r"(.+\.)?(resample_filter|fourier_coefs)|b\d+\.fromrgb\.(weight|bias)|mapping\.mean_camera_params")


@dataclass(frozen=True)
class Imported:
    """What `import_snapshot` made: the run, its checkpoint, and which networks are in it."""

    run: Run
    checkpoint: Path
    networks: tuple[str, ...]


def import_snapshot(
    path: Path | str,
    workspace: Workspace,
    *,
    name: str | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = NULL_PROGRESS,
) -> Imported:
    """Turn a snapshot file into a run folder.

    Args:
        path: .pkl of the reference code, or a flat .safetensors, .npz, .pt, .pth file with its parameter names.
        workspace: where `runs/` is.
        name: the new run's name; by default the profile's name and a number.
        profile: fills in what the file does not tell (camera prior, ray steps), such as "imagenet256".
        overrides: `key.path=value` strings that win over the file.
        progress: told what was left out.

    Raises:
        UnsafeFileError: the file asks for code to be executed.
        CheckpointError: it is damaged, or does not fit the networks.
        ConfigError: it does not tell a value that is needed; names it.
    """
    path = Path(path)
    snapshot = read_snapshot(path)
    overrides = list(overrides)
    try:
        found, tensors = _fit_all(snapshot, profile, overrides, str(path))
    except CheckpointError as error:
        if snapshot.tensors.pop("D", None) is None:
            raise
        found, tensors = _fit_all(snapshot, profile, overrides, str(path))
        progress.note(f"The discriminator is left out: {error}")
    nimg = snapshot.stats.get("cur_nimg")
    nimg = nimg if isinstance(nimg, int) and 0 <= nimg < 10**12 else 0
    run = Run.create(workspace, found, name)
    try:
        origin = {"file": path.name, "sha256": sha256_of(path), "classes": snapshot.classes, "stats": snapshot.stats}
        write_json(run.folder / IMPORTED, origin)
        state = {"nimg": nimg, "imported": True}
        checkpoint = save_checkpoint(run.checkpoints_folder, tensors, state, nimg=nimg, profile=found)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    return Imported(run, checkpoint, tuple(tensors))


def _fit_all(
    snapshot: Snapshot, base: str | None, overrides: list[str], source: str
) -> tuple[Profile, dict[str, dict[str, torch.Tensor]]]:
    """The profile, and the tensors under our names, each network checked against it. A lone G also serves as G_ema."""
    profile = snapshot_profile(snapshot, base, overrides)
    result = {}
    try:
        with torch.device("meta"):  # names and shapes only
            generator: torch.nn.Module = build_generator(profile)
            modules = {"G": generator, "G_ema": generator}
            if "D" in snapshot.tensors:
                modules["D"] = build_discriminator(profile)
    except (ValueError, ArithmeticError, RuntimeError, KeyError):
        raise CheckpointError(f"{source} does not fit any network: its parameters have impossible sizes.") from None
    for network, weights in snapshot.tensors.items():
        own = modules[network].state_dict()
        fitted = {name: _fit(value, own[name]) for name, value in weights.items() if name in own}
        unknown = {name: value for name, value in weights.items() if name not in own and not _UNUSED.fullmatch(name)}
        check_weights(modules[network], fitted | unknown, f"{source}, {network}")
        result[network] = fitted
    result.setdefault("G_ema", result.get("G", {}))
    return profile, result


def _fit(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if value.numel() == 1 == own.numel():  # scalars are stored with and without an axis
        value = value.reshape(own.shape)
    return value.to(own.dtype)
