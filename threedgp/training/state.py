"""Everything that changes while a run trains, and its way into a checkpoint and back."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from threedgp.config.schema import OptimizerConfig, Profile
from threedgp.models.build import build_discriminator, build_generator
from threedgp.runs.checkpoint import TensorGroups, load_checkpoint, load_weights, save_checkpoint
from threedgp.runs.state import load_optimizer_tensors, optimizer_tensors
from threedgp.training.augment import AugmentController
from threedgp.training.divergence import DivergenceMonitor
from threedgp.training.phases import phases


@dataclass
class Counters:
    """Where a run is. All draws and the data order follow from these, so no generator state has to be stored.

    Attributes:
        nimg: real images shown.
        iteration: optimiser steps of the discriminator.
        tick: number of finished ticks.
        tick_nimg: nimg at the end of the last tick.
        position: items of the data order consumed since `stream` began.
        stream: number of the random stream; a rollback takes a new one.
        elapsed: seconds spent training, with scores and samples on the way.
    """

    nimg: int = 0
    iteration: int = 0
    tick: int = 0
    tick_nimg: int = 0
    position: int = 0
    stream: int = 0
    elapsed: float = 0.0


@dataclass
class TrainingState:
    """Networks, optimisers, running statistics and counters of one run on one process."""

    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    path_length_mean: torch.Tensor
    augment: AugmentController
    monitor: DivergenceMonitor
    counters: Counters = field(default_factory=Counters)

    @classmethod
    def build(cls, profile: Profile, device: torch.device) -> TrainingState:
        """Fresh networks from the profile's seed, the same on every process."""
        torch.manual_seed(profile.training.seed)
        G = build_generator(profile).to(device).train().requires_grad_(False)
        D = build_discriminator(profile).to(device).train().requires_grad_(False)
        training = profile.training
        optimizers = {
            name: torch.optim.Adam(network.parameters(), fused=True, **adam_settings(config, name, profile))
            for name, network, config in (
                ("G", G, training.generator_optimizer),
                ("D", D, training.discriminator_optimizer),
            )
        }
        G_ema = copy.deepcopy(G).eval()
        if profile.compile:
            _compile(G, D, profile)
        return cls(
            G=G,
            D=D,
            G_ema=G_ema,
            optimizers=optimizers,
            path_length_mean=torch.zeros((), device=device),
            augment=AugmentController(training.augment),
            monitor=DivergenceMonitor(training.divergence),
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    def tensors(self) -> TensorGroups:
        """Every tensor of a checkpoint, by group."""
        groups = {name: dict(network.state_dict()) for name, network in self.networks.items()}
        for name in ("G", "D"):
            groups[f"optim_{name}"] = optimizer_tensors(self.optimizers[name], self.networks[name])
        groups["extra"] = {"path_length_mean": self.path_length_mean}
        return groups

    def save(self, folder: Path, profile: Profile, **more: Any) -> Path:
        """Write a checkpoint into `folder`; `more` is stored beside the counters. See `save_checkpoint` for errors."""
        state = {
            "counters": asdict(self.counters),
            "augment": self.augment.state_dict(),
            "monitor": self.monitor.state_dict(),
            **more,
        }
        return save_checkpoint(folder, self.tensors(), state, nimg=self.counters.nimg, profile=profile)

    def load(self, path: Path, profile: Profile) -> dict[str, Any]:
        """Restore everything from a checkpoint and return its JSON state.

        Raises:
            CheckpointError: damaged, of other networks, or without what training needs.
        """
        loaded = load_checkpoint(path, profile=profile, groups=["G", "D", "G_ema", "optim_G", "optim_D", "extra"])
        for name, network in self.networks.items():
            load_weights(network, loaded.tensors[name], f"Checkpoint {path}, {name}")
        for name in ("G", "D"):
            load_optimizer_tensors(self.optimizers[name], self.networks[name], loaded.tensors[f"optim_{name}"])
        self.path_length_mean.copy_(loaded.tensors["extra"]["path_length_mean"])
        self.augment.load_state_dict(loaded.state["augment"])
        self.monitor.load_state_dict(loaded.state["monitor"])
        known = {entry.name for entry in fields(Counters)}
        self.counters = Counters(**{key: value for key, value in loaded.state["counters"].items() if key in known})
        return loaded.state

    def shared_tensors(self) -> dict[str, torch.Tensor]:
        """All tensors that must be the same on every process, by name."""
        return {
            f"{group}.{name}": value
            for group, members in self.tensors().items()
            for name, value in members.items()
            if not group.startswith("optim_")
        }


def _compile(G: nn.Module, D: nn.Module, profile: Profile) -> None:
    """Let torch.compile fuse the convolutional networks, which do nearly all the work, when they are first called.

    Compiled functions cannot be differentiated twice: the gradient penalty calls the discriminator's `forward` itself,
    and a generator whose path lengths are regularised stays as it is.
    """
    D.compile(dynamic=False)
    if profile.loss.path_length.weight == 0:
        backbone = G.synthesis if profile.model.kind == "stylegan2" else G.synthesis["tri_plane_decoder"]
        backbone.compile(dynamic=False)


def adam_settings(config: OptimizerConfig, network: str, profile: Profile) -> dict[str, Any]:
    """Adam's arguments for "G" or "D", corrected for its lazy regularisation phase (StyleGAN2, App. B).

    With a second phase every k iterations and c = k / (k + 1): learning rate times c, betas to the power of c.
    """
    intervals = [phase.interval for phase in phases(profile) if phase.network == network]
    c = intervals[1] / (intervals[1] + 1) if len(intervals) > 1 else 1.0
    return {
        "lr": config.lr * c,
        "betas": (config.betas[0] ** c, config.betas[1] ** c),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
