"""Untrained models small enough to render in a moment."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from threedgp.config.profile import load_profile
from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.models.build import build_generator
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run

SMALL = [
    "data.resolution=16",
    "model.generator.z_dim=16",
    "model.generator.w_dim=16",
    "model.generator.cbase=256",
    "model.generator.cmax=16",
]
SMALL_3D = [
    *SMALL,
    "training.patch.resolution=8",
    "model.generator.ray_steps=6",
    "model.generator.tri_plane={resolution: 16, features: 4, mlp: {hidden_dim: 8}}",
]
KINDS = {
    "3dgp": ("tiny-cpu", SMALL_3D),
    "epigraf": ("epigraf256", SMALL_3D),
    "stylegan2": ("stylegan2-256", SMALL),
}


@cache
def tiny(kind: str = "3dgp", *overrides: str) -> tuple[Profile, torch.nn.Module]:
    """A profile and its generator in evaluation mode; weights from seed 0, strong enough to show something."""
    name, settings = KINDS[kind]
    profile = load_profile(name, [*settings, *overrides])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator(profile).eval().requires_grad_(False)
    if kind != "stylegan2":
        generator.synthesis["tri_plane_mlp"].model[-1].bias[-1] += 2.0
    return profile, generator


def tiny_run(root: Path, kind: str = "3dgp", *overrides: str, name: str | None = None, nimg: int = 2000) -> Run:
    """A run with one checkpoint of the tiny model in a workspace at `root`."""
    profile, generator = tiny(kind, *overrides)
    run = Run.create(Workspace(root), profile, name)
    save_checkpoint(run.checkpoints_folder, {"G_ema": generator.state_dict()}, {}, nimg=nimg, profile=profile)
    return run
