"""Where a run is started: on which devices, in how many processes, on how many machines."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from threedgp.errors import UsageError


@dataclass(frozen=True)
class LaunchOptions:
    """How to start a run.

    Attributes:
        processes: processes on this machine.
        device: `cpu` or `cuda`.
        nodes: machines; each starts the same command.
        rendezvous: `host:port` of one of the machines when there are several.
        data: training set folder or zip, if not the workspace's.
        wandb: Weights & Biases project, if wanted.
    """

    processes: int = 1
    device: str = "cpu"
    nodes: int = 1
    rendezvous: str | None = None
    data: str | None = None
    wandb: str | None = None

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @property
    def text(self) -> str:
        """Such as "2 GPUs on each of 4 machines"."""
        kind = {"cuda": "GPU", "cpu": "CPU process"}[self.device]
        plural = {"cuda": "s", "cpu": "es"}[self.device] if self.processes > 1 else ""
        return f"{self.processes} {kind}{plural}" + (f" on each of {self.nodes} machines" if self.nodes > 1 else "")


def choose_launch(
    *,
    gpus: int | None = None,
    procs: int | None = None,
    nodes: int = 1,
    rendezvous: str | None = None,
    data: str | None = None,
    wandb: str | None = None,
    elsewhere: bool = False,
) -> LaunchOptions:
    """Decide where to train: the GPUs asked for, one GPU if there is any, else the CPU.

    Args:
        elsewhere: the run will start on other machines than this one, whose GPUs do not matter then.

    Raises:
        UsageError: options contradict each other, or there are fewer GPUs than asked for.
    """
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs exclude each other: --procs starts processes on CPUs.")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_gpus = procs is None and (gpus is not None or there > 0 or elsewhere)
    options = LaunchOptions(procs or gpus or 1, "cuda" if on_gpus else "cpu", nodes, rendezvous, data, wandb)
    if elsewhere:
        return options
    if rendezvous is not None and not re.fullmatch(r"[^\s:]+:\d{1,5}", rendezvous):
        raise UsageError(f"--rendezvous {rendezvous}: write it as HOST:PORT, for example node1:29500.")
    if (nodes > 1) != (rendezvous is not None):
        raise UsageError(
            "--nodes N and --rendezvous HOST:PORT go together: give the same on every machine, one of them and a free "
            "port."
        )
    if gpus is not None and gpus > there:
        raise UsageError(f"--gpus {gpus}: this machine has {there} usable GPUs. On CPUs use --procs.")
    return options
