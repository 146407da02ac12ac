"""Everything that changes while a run trains, and its way into a checkpoint and back."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import nn

from threedgp.config.schema import OptimizerConfig, Profile
from threedgp.errors import CheckpointError
from threedgp.models.build import build_discriminator, build_generator
from threedgp.models.discriminator import Discriminator
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.processes import World
from threedgp.runs.checkpoint import TensorGroups, load_checkpoint, load_weights, save_checkpoint
from threedgp.runs.state import load_optimizer_tensors, optimizer_tensors
from threedgp.training.augment import AugmentController, AugmentState
from threedgp.training.divergence import DivergenceMonitor, Memory
from threedgp.training.log import Statistics
from threedgp.training.phases import phases

Count = Annotated[int, Field(ge=0, strict=True)]


@dataclass
class Counters:
    """Where a run is. All draws and the data order follow from these, so no generator state has to be stored."""

    nimg: Count = 0  # real images shown
    iteration: Count = 0  # optimiser steps of the discriminator
    tick: Count = 0  # finished ticks
    tick_nimg: Count = 0  # nimg at the end of the last tick
    position: Count = 0  # items of the data order consumed since `stream` began
    stream: Count = 0  # number of the random stream; a rollback takes a new one


class PlainState(BaseModel):
    """The form of a checkpoint's state.json, which is checked before anything of it is used."""

    counters: Counters
    augment: AugmentState
    monitor: Memory
    statistics: list[dict[str, tuple[float, float, float]]] = []


@dataclass
class TrainingState:
    """Networks, optimisers, running statistics and counters of one run on one process."""

    G: Generator | StyleGAN2Generator
    D: Discriminator
    G_ema: Generator | StyleGAN2Generator
    optimizers: dict[str, torch.optim.Adam]
    path_length_mean: torch.Tensor
    augment: AugmentController
    monitor: DivergenceMonitor
    statistics: Statistics = field(default_factory=Statistics)
    counters: Counters = field(default_factory=Counters)

    @classmethod
    def build(cls, profile: Profile, world: World) -> TrainingState:
        """Fresh networks from the profile's seed, the same on every process."""
        device = world.device
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
        state = cls(
            G=G,
            D=D,
            G_ema=G_ema,
            optimizers=optimizers,
            path_length_mean=torch.zeros((), device=device),
            augment=AugmentController(training.augment),
            monitor=DivergenceMonitor(training.divergence, training.kimg),
        )
        state.synchronize(world)
        return state

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

    def save(self, folder: Path, profile: Profile, world: World) -> Path | None:
        """Write a checkpoint into `folder`, on rank 0 of the processes, which all call it; returns its path there.

        Raises:
            CheckpointError: see `save_checkpoint`.
        """
        plain = {
            "counters": asdict(self.counters),
            "augment": asdict(self.augment.state()),
            "monitor": asdict(self.monitor.memory),
            "statistics": world.gather(self.statistics.state_dict()),  # each process has its own
        }
        if not world.is_main:
            return None
        return save_checkpoint(folder, self.tensors(), plain, nimg=self.counters.nimg, profile=profile)

    def load(self, path: Path, profile: Profile, world: World) -> None:
        """Restore everything from a checkpoint, with as many processes as there are now.

        Raises:
            CheckpointError: damaged, of other networks, or without what training needs.
        """
        loaded = load_checkpoint(path, profile=profile, groups=["G", "D", "G_ema", "optim_G", "optim_D", "extra"])
        for name, network in self.networks.items():
            load_weights(network, loaded.tensors[name], f"Checkpoint {path}, {name}")
        for name in ("G", "D"):
            load_optimizer_tensors(self.optimizers[name], self.networks[name], loaded.tensors[f"optim_{name}"])
        path_length_mean = loaded.tensors["extra"].get("path_length_mean")
        if path_length_mean is None or path_length_mean.shape != self.path_length_mean.shape:
            raise CheckpointError(f"Checkpoint {path} has no path_length_mean, which training needs.")
        self.path_length_mean.copy_(path_length_mean)
        try:
            plain = PlainState.model_validate(loaded.state)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"A checkpoint's state.json is damaged at {where}: {first['msg'].lower()}.") from None
        self.counters, self.monitor.memory = plain.counters, plain.monitor
        self.augment.restore(plain.augment)
        self.statistics.load_state_dict(plain.statistics, world)
        self.synchronize(world)

    def synchronize(self, world: World) -> None:
        """Take rank 0's tensors on every process: other machines may have made or read slightly different ones."""
        world.broadcast(tensor for members in self.tensors().values() for tensor in members.values())

    def require_equal(self, world: World) -> None:
        """Check that all processes hold the same networks.

        Raises:
            ThreeDGPError: names the first tensor that differs.
        """
        groups = {name: members for name, members in self.tensors().items() if not name.startswith("optim_")}
        world.require_equal({f"{group}.{name}": v for group, members in groups.items() for name, v in members.items()})


def _compile(G: Generator | StyleGAN2Generator, D: Discriminator, profile: Profile) -> None:
    """Let torch.compile fuse the convolutional networks, which do nearly all the work, when they are first called.

    Compiled functions cannot be differentiated twice: the gradient penalty calls the discriminator's `forward` itself,
    and a generator whose path lengths are regularised stays as it is.
    """
    D.compile(dynamic=False)
    if profile.loss.path_length.weight == 0:
        G.backbone.compile(dynamic=False)


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
