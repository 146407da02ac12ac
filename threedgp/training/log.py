"""What a run reports: statistics of every tick as JSON lines, and in TensorBoard and Weights & Biases if wanted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from threedgp.errors import UsageError
from threedgp.files import append_json_line, best_effort
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress


class Moments(NamedTuple):
    """Mean, standard deviation and number of the values reported under one name in one tick, over all processes."""

    mean: float
    std: float
    number: int


class Statistics:
    """Collects values without waiting for the device; `collect` reduces them over all processes once a tick."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def report(self, name: str, value: torch.Tensor | float) -> None:
        """Add every element of `value` to the statistics of `name`."""
        value = torch.as_tensor(value).detach().double()
        count = torch.full_like(value.sum(), float(value.numel()))
        self._add(name, torch.stack([count, value.sum(), value.square().sum()]))

    def _add(self, name: str, sums: torch.Tensor) -> None:
        self._sums[name] = self._sums[name].to(sums.device) + sums if name in self._sums else sums

    def state_dict(self) -> dict[str, list[float]]:
        """The sums of this process since the last `collect`, as JSON can hold them exactly."""
        return {name: sums.tolist() for name, sums in self._sums.items()}

    def load_state_dict(self, states: Sequence[Mapping[str, Sequence[float]]], world: World) -> None:
        """Continue with the sums of earlier processes: each its own, or the first all if there were others."""
        if len(states) == world.size:
            states = [states[world.rank]]
        elif not world.is_main:
            states = []
        self._sums = {}
        for state in states:
            for name, sums in state.items():
                self._add(name, torch.tensor(sums, dtype=torch.float64))

    def collect(self, world: World) -> dict[str, Moments]:
        """Moments of everything reported since the last call, equal on all processes, sorted by name."""
        names = sorted({name for names in world.gather(list(self._sums)) for name in names})
        if not names:
            return {}
        zero = torch.zeros(3, dtype=torch.float64)
        table = torch.stack([self._sums.get(name, zero).to(world.device) for name in names])  # [names, 3]
        self._sums = {}
        result = {}
        for name, (count, total, squares) in zip(names, world.sum(table).tolist(), strict=True):
            mean = total / count
            variance = squares / count - mean * mean
            result[name] = Moments(mean, math.sqrt(variance) if variance > 0 else 0.0, int(count))
        return result


class RunLog:
    """Writes one line a tick to log.jsonl, and to TensorBoard and Weights & Biases; used by rank 0 only.

    A log is a convenience: when it cannot be written (a full disk), a note says so once and training goes on.

    Args:
        folder: the run folder.
        wandb_project: send the means to this Weights & Biases project; None: do not.
        name: the run's name there.
        progress: gets the note.

    Raises:
        UsageError: Weights & Biases was asked for but is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wandb_project: str | None = None,
        name: str | None = None,
        progress: Progress = NULL_PROGRESS,
    ):
        self.path, self.progress = folder / "log.jsonl", progress
        self._board: EventFile | None = None
        self._wandb = None
        with best_effort("The log", self.progress), suppress(ImportError):
            self._board = EventFile(folder / "tensorboard")
        if wandb_project is not None:
            self._wandb = require_wandb().init(
                project=wandb_project, name=name, dir=str(folder), resume="allow", id=name
            )

    def tick(self, nimg: int, moments: dict[str, Moments]) -> None:
        """Write the statistics of a tick; NaN and infinity become null in the JSON line."""
        numbers = {
            name: [value if math.isfinite(value) else None for value in moment] for name, moment in moments.items()
        }
        self.event("tick", nimg, statistics=numbers)
        self.scalars(nimg, {name: m.mean for name, m in moments.items()})

    def event(self, kind: str, nimg: int, **values: Any) -> None:
        """Write a line for something that happened: a checkpoint, a metric, a rollback."""
        with best_effort("The log", self.progress):
            append_json_line(self.path, {"kind": kind, "nimg": nimg, "time": time.time(), **values})

    def scalars(self, nimg: int, values: dict[str, float]) -> None:
        """Send numbers to TensorBoard and Weights & Biases."""
        if self._board is not None:
            with best_effort("The log", self.progress):
                self._board.write(nimg, values)
        if self._wandb is not None:
            self._wandb.log({**values, "kimg": nimg / 1000})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class EventFile:
    """A file of numbers that TensorBoard reads; its step is the number of images.

    Records are written here and now: the package's own writer does it in a thread, which dies with a traceback when the
    disk is full, and makes the folder of a moved run again.

    Raises:
        ImportError: the package tensorboard is missing.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb", buffering=0))
        self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of every name."""
        found = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=found))
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()


def require_wandb() -> Any:
    """The wandb module.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb needs the package wandb. Install it with: pip install wandb") from None
    return wandb
