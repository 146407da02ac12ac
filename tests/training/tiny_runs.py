"""Small complete runs: a written training set, a run folder, and processes that train it and may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.training.small import tiny_profile
from threedgp.config.workspace import Workspace
from threedgp.files import write_json
from threedgp.launch.here import train_here
from threedgp.launch.options import LaunchOptions
from threedgp.launcher import MEETING
from threedgp.progress import Progress
from threedgp.runs import catalog, checkpoint
from threedgp.runs.run import Run

IMAGES = 12
OVERRIDES = (
    "loss.distillation.weight=0.0",
    "training.metrics=[]",
    "training.kimg=0.064",
    "training.tick_kimg=0.016",
    "training.snapshot_ticks=1",
    "training.image_ticks=1000",
    "training.checkpoint.keep_last=20",
)
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.training.tiny_runs", "torch._dynamo"])  # optimisers import it, slowly


def write_training_set(folder: Path, size: int = 16) -> Path:
    """Twelve noise pictures with depth, of four classes."""
    random = np.random.default_rng(3)
    folder.mkdir(parents=True)
    names = [f"{index:03d}.png" for index in range(IMAGES)]
    for name in names:
        Image.fromarray(random.integers(256, size=(size, size, 3), dtype=np.uint8)).save(folder / name)
        depth = random.integers(65536, size=(size, size), dtype=np.uint16)
        Image.fromarray(depth).save(folder / name.replace(".png", "_depth.png"))
    write_json(folder / "dataset.json", {"labels": [[name, index % 4] for index, name in enumerate(names)]})
    return folder


def make_workspace(root: Path) -> Workspace:
    write_training_set(root / "data" / "noise" / "16")
    return Workspace(root)


def make_run(workspace: Workspace, name: str, *overrides: str) -> Run:
    return Run.create(workspace, tiny_profile(*OVERRIDES, *overrides), name)


class KillAt(Progress):
    """Ends this process by kill -9 once it has trained so many images."""

    def __init__(self, nimg: int):
        self.nimg, self.seen = nimg, 0

    def start(self, label: str, total: int | None = None, unit: str = "images", done: int = 0) -> None:
        self.seen = done

    def advance(self, count: int = 1) -> None:
        self.seen += count
        if self.seen >= self.nimg:
            os.kill(os.getpid(), signal.SIGKILL)


class KillInWrite:
    """Ends this process by kill -9 before the given step of writing checkpoints: a file, a flush, a rename."""

    def __init__(self, step: int):
        self.left = step
        for module, name in ((checkpoint, "save_file"), (checkpoint, "fsync"), (catalog, "fsync"), (os, "rename")):
            self.watch(module, name)

    def watch(self, module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        setattr(module, name, counted)


class StopAt(Progress):
    """A stop request once so many images have been trained; it counts them as progress."""

    def __init__(self, nimg: int | None):
        self.nimg, self.seen = nimg, 0

    def start(self, label: str, total: int | None = None, unit: str = "images", done: int = 0) -> None:
        self.seen = done

    def advance(self, count: int = 1) -> None:
        self.seen += count

    def __call__(self) -> bool:
        return self.nimg is not None and self.seen >= self.nimg


@dataclass(frozen=True)
class Disturbance:
    """What happens to a process while it trains."""

    kill_at: int | None = None
    kill_in_write: int | None = None
    stop_at: int | None = None


def become_worker(rank: int, size: int, meeting: Path) -> None:
    """Be one of several processes from here on, as `threedgp.launcher` would have it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        MEETING: f"file:{meeting}",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _train(folder: str, rank: int, size: int, meeting: Path, disturbance: Disturbance) -> None:
    if size > 1:
        become_worker(rank, size, meeting)
    stop = StopAt(disturbance.stop_at)
    progress = stop if disturbance.kill_at is None else KillAt(disturbance.kill_at)
    if disturbance.kill_in_write is not None:
        KillInWrite(disturbance.kill_in_write)
    train_here(Run(Path(folder)), LaunchOptions(processes=size), stop, progress)


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(run: Run, processes: int = 1, **disturbance: int) -> list[multiprocessing.Process]:
    """Start training a run in processes of its own."""
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    arguments = [(str(run.folder), rank, processes, meeting, Disturbance(**disturbance)) for rank in range(processes)]
    started = [context.Process(target=_train, args=args) for args in arguments]
    for process in started:
        process.start()
    return started


def train(run: Run, processes: int = 1, **disturbance: int) -> list[int]:
    """Train a run in processes of its own until its end or until they are killed; returns their exit codes."""
    started = start(run, processes, **disturbance)
    for process in started:
        process.join(120)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def checkpoint_bytes(path: Path) -> dict[str, bytes]:
    """Every file of a checkpoint that says where the run is."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != "manifest.json"}
