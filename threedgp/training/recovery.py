"""What to do about a divergence: which checkpoint to go back to, and what to change so that it does not come again.

Decisions are written to `recovery.jsonl` in the run folder before they are carried out, and read from there, so that
neither a rollback nor a restarted job forgets how often the same stretch has been tried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from threedgp.config.schema import DivergenceConfig
from threedgp.errors import DataError
from threedgp.files import append_json_line, read_json_lines
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import checkpoint_nimg, find_latest, remove_checkpoint
from threedgp.runs.run import Run
from threedgp.training.divergence import Candidate, Trigger

GENTLE, STEEP = 0.3, 0.1  # what both learning rates are multiplied by at the second attempt, and at each later one
FAR = 0.03  # the same in a run of which no checkpoint ever proved healthy: its rates were never right
RAISE_GAMMA = 2.0  # factor of the gradient penalty's weight at the same moments
STEP_BACK = 0.5  # grace periods: a checkpoint this shortly before the trouble may be infected already
BEYOND = 2.0  # trouble is over when a checkpoint this far beyond it has proved healthy


@dataclass(frozen=True)
class Rollback:
    """One decision."""

    source: int  # images seen at the checkpoint to load; 0: start afresh
    stream: int  # number of the random stream to continue with, never used before in this run
    attempt: int  # 1, 2, 3, ... for the same stretch
    learning_rate: float  # factor of both learning rates from here on
    gamma: float  # and of the gradient penalty's weight
    nimg: int  # this and the next three: what was seen, see `Trigger`
    first_nimg: int
    criterion: str
    values: dict[str, Any]
    time: float  # of the decision, seconds since 1970


class Recovery:
    """Decides on rollbacks, a bounded number of times.

    1. attempt: the newest healthy checkpoint well before the trouble began, with new random numbers;
    2. and later: each time one checkpoint further back, with lower learning rates and a gradient penalty twice as
       strong. These stay: with the old ones the run would diverge again. Where no checkpoint ever proved healthy, the
       run starts afresh.

    The count starts anew when a checkpoint well beyond the last trouble has proved healthy.

    Args:
        path: recovery.jsonl of the run.
        config: `training.divergence` of the profile.
        kimg: length of the run in thousand images.
        rollbacks: earlier decisions, see `read_rollbacks`.
    """

    def __init__(self, path: Path, config: DivergenceConfig, kimg: float, rollbacks: Sequence[Rollback] = ()):
        self.path, self.config = path, config
        self.grace = 1000 * config.grace * kimg  # images
        self.rollbacks = list(rollbacks)

    @classmethod
    def open(cls, run: Run, world: World) -> Recovery:
        """As rank 0 finds it in the run folder, on every process.

        Raises:
            DataError: recovery.jsonl is damaged.
        """
        path, training = run.folder / "recovery.jsonl", run.profile.training
        found = world.share([asdict(rollback) for rollback in read_rollbacks(path)] if world.is_main else [])
        return cls(path, training.divergence, training.kimg, [Rollback(**values) for values in found])

    @property
    def last(self) -> Rollback | None:
        return self.rollbacks[-1] if self.rollbacks else None

    @property
    def stream(self) -> int:
        """Number of the random stream that is in use: 0 before the first rollback."""
        return self.last.stream if self.last else 0

    @property
    def factors(self) -> tuple[float, float]:
        """Factors of both learning rates and of gamma that hold now."""
        return (self.last.learning_rate, self.last.gamma) if self.last else (1.0, 1.0)

    def decide(self, trigger: Trigger, candidates: Sequence[Candidate]) -> Rollback | None:
        """Choose a checkpoint and a remedy and write them down; None when there have been too many attempts.

        Args:
            trigger: what the monitor saw.
            candidates: checkpoints that exist, with their health.
        """
        attempt = self._attempt(candidates)
        if attempt > self.config.attempts or len(self.rollbacks) >= self.config.rollbacks:
            return None
        learning_rate, gamma = self.factors
        lower = 1.0
        if attempt > 1:
            proved = any(c.healthy for c in candidates)
            lower = FAR if not proved else GENTLE if attempt == 2 else STEEP
        rollback = Rollback(
            source=self._source(trigger, candidates, attempt),
            stream=self.stream + 1,
            attempt=attempt,
            learning_rate=learning_rate * lower,
            gamma=gamma * (RAISE_GAMMA if attempt > 1 else 1.0),
            nimg=trigger.nimg,
            first_nimg=trigger.first_nimg,
            criterion=trigger.criterion,
            values=trigger.values,
            time=time.time(),
        )
        append_json_line(self.path, asdict(rollback))
        self.rollbacks.append(rollback)
        return rollback

    def _attempt(self, candidates: Sequence[Candidate]) -> int:
        """Number of this attempt at the last trouble, which is over when a checkpoint well beyond it is healthy."""
        if self.last is None:
            return 1
        over = any(c.healthy and c.nimg >= self.last.nimg + BEYOND * self.grace for c in candidates)
        return 1 if over else self.last.attempt + 1

    def _source(self, trigger: Trigger, candidates: Sequence[Candidate], attempt: int) -> int:
        limit = trigger.first_nimg - STEP_BACK * self.grace
        healthy = sorted((c.nimg for c in candidates if c.healthy and c.nimg <= limit), reverse=True)
        if healthy:
            return healthy[min(attempt, len(healthy)) - 1]
        unproven = [c.nimg for c in candidates if c.nimg < trigger.first_nimg]
        return min(unproven, default=0) if attempt == 1 else 0


def source_of(rollback: Rollback, run: Run, progress: Progress = NULL_PROGRESS) -> str | None:
    """Path of the checkpoint to load: the one chosen, or the newest intact one before it; None to start afresh."""
    if rollback.source == 0:
        return None
    path = find_latest(run.checkpoints_folder, progress, at_most=rollback.source)
    return None if path is None else str(path)


def forget_diverged(rollback: Rollback, run: Run, nimg: int) -> None:
    """Delete the checkpoints of more than `nimg` images, but for the best one if it is older than the trouble."""
    best = run.best()
    for path in run.checkpoints():
        proved = best is not None and path == best.path and checkpoint_nimg(path) < rollback.first_nimg
        if checkpoint_nimg(path) > nimg and not proved:
            remove_checkpoint(path)


def read_rollbacks(path: Path) -> list[Rollback]:
    """All decisions of a run so far; those of earlier versions lowered the learning rates at a third attempt only.

    Raises:
        DataError: the file holds something else.
    """
    rollbacks, form = [], TypeAdapter(Rollback)
    try:
        for line in read_json_lines(path):
            slow = line.pop("slow", False)
            before = {"learning_rate": 0.5 if slow else 1.0, "gamma": 2.0 if slow else 1.0}
            rollbacks.append(form.validate_python(before | line))
    except (TypeError, AttributeError, ValidationError):
        raise DataError(f"{path} is damaged. Delete it to forget earlier rollbacks of this run.") from None
    return rollbacks
