"""What a run reports: statistics of every tick as JSON lines, and in TensorBoard and Weights & Biases if wanted."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from threedgp.errors import UsageError
from threedgp.files import append_json_line
from threedgp.processes import World


class Moments(NamedTuple):
    """Mean, standard deviation and number of the values reported under one name in one tick, over all processes."""

    mean: float
    std: float
    count: int


class Statistics:
    """Collects values without waiting for the device; `collect` reduces them over all processes once a tick."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def report(self, name: str, value: torch.Tensor | float) -> None:
        """Add every element of `value` to the statistics of `name`."""
        value = torch.as_tensor(value).detach().double()
        count = torch.full_like(value.sum(), float(value.numel()))
        sums = torch.stack([count, value.sum(), value.square().sum()])  # [3]
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

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

    Args:
        folder: the run folder.
        wandb_project: send the means to this Weights & Biases project; None: do not.
        name: the run's name there.

    Raises:
        UsageError: Weights & Biases was asked for but is not installed.
    """

    def __init__(self, folder: Path, *, wandb_project: str | None = None, name: str | None = None):
        self.path = folder / "log.jsonl"
        self._board = _tensorboard(folder / "tensorboard")
        self._wandb = None
        if wandb_project is not None:
            self._wandb = require_wandb().init(
                project=wandb_project, name=name, dir=str(folder), resume="allow", id=name
            )

    def tick(self, nimg: int, moments: dict[str, Moments]) -> None:
        """Write the statistics of a tick; NaN and infinity become null in the JSON line."""
        values = {name: [_finite(m.mean), _finite(m.std), m.count] for name, m in moments.items()}
        append_json_line(self.path, {"kind": "tick", "nimg": nimg, "time": time.time(), "statistics": values})
        self.scalars(nimg, {name: m.mean for name, m in moments.items()})

    def event(self, kind: str, nimg: int, **values: Any) -> None:
        """Write a line for something that happened: a checkpoint, a metric, a rollback."""
        append_json_line(self.path, {"kind": kind, "nimg": nimg, "time": time.time(), **values})

    def scalars(self, nimg: int, values: dict[str, float]) -> None:
        """Send numbers to TensorBoard and Weights & Biases."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=nimg // 1000, walltime=time.time())
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({**values, "kimg": nimg / 1000})

    def close(self) -> None:
        """Flush and close everything."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


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


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
