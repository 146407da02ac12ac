"""What to do about a divergence: which checkpoint to go back to, and what to change so that it does not come again.

Decisions are written to `recovery.jsonl` in the run folder before they are carried out, and read from there, so that
neither a rollback nor a restarted job forgets how often the same stretch has been tried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from threedgp.config.schema import DivergenceConfig
from threedgp.errors import DataError
from threedgp.files import append_json_line, read_json_lines
from threedgp.training.divergence import Candidate, Trigger
from threedgp.training.schedules import linear

SLOW_LEARNING_RATE = 0.5  # factor of both learning rates in the third attempt
SLOW_GAMMA = 2.0  # factor of the gradient penalty's weight in the third attempt


@dataclass(frozen=True)
class Rollback:
    """One decision.

    Attributes:
        source: images seen at the checkpoint to load; 0: start afresh.
        stream: number of the random stream to continue with, never used before in this run.
        attempt: 1, 2, 3, ... for the same stretch.
        slow: lower the learning rates for a while.
        region: image count of the first trigger in this stretch.
        nimg, first_nimg, criterion, values: what was seen, see `Trigger`.
        time: of the decision, seconds since 1970.
    """

    source: int
    stream: int
    attempt: int
    slow: bool
    region: int
    nimg: int
    first_nimg: int
    criterion: str
    values: dict[str, float | str | None]
    time: float


class Recovery:
    """Decides on rollbacks, a bounded number of times, and remembers them.

    1. attempt: the newest healthy checkpoint well before the trouble began, with new random numbers;
    2. attempt: the one before that;
    3. attempt: the same with lower learning rates and a stronger gradient penalty for a while.

    Args:
        path: recovery.jsonl of the run.
        config: `training.divergence` of the profile.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, path: Path, config: DivergenceConfig):
        self.path, self.config = path, config
        try:
            self.rollbacks = [Rollback(**line) for line in read_json_lines(path)]
        except TypeError:
            raise DataError(f"{path} is damaged. Delete it to forget earlier rollbacks of this run.") from None

    @property
    def last(self) -> Rollback | None:
        return self.rollbacks[-1] if self.rollbacks else None

    @property
    def stream(self) -> int:
        """Number of the random stream that is in use: 0 before the first rollback."""
        return self.last.stream if self.last else 0

    def pending(self, stream: int) -> Rollback | None:
        """The newest rollback, if a run that continues with this random stream has not carried it out yet."""
        return self.last if self.last is not None and stream < self.last.stream else None

    def decide(self, trigger: Trigger, candidates: Sequence[Candidate]) -> Rollback | None:
        """Choose a checkpoint and a remedy and write them down; None when there have been too many attempts.

        Args:
            trigger: what the monitor saw.
            candidates: checkpoints that exist, with their health.
        """
        attempt, region = self._attempt(trigger)
        if attempt > self.config.attempts or len(self.rollbacks) >= self.config.rollbacks:
            return None
        rollback = Rollback(
            source=self._source(trigger, candidates, older=attempt > 1),
            stream=self.stream + 1,
            attempt=attempt,
            slow=attempt > 2,
            region=region,
            nimg=trigger.nimg,
            first_nimg=trigger.first_nimg,
            criterion=trigger.criterion,
            values=trigger.values,
            time=time.time(),
        )
        append_json_line(self.path, asdict(rollback))
        self.rollbacks.append(rollback)
        return rollback

    def _attempt(self, trigger: Trigger) -> tuple[int, int]:
        """Number of this attempt, and the region it belongs to: the same one if it is near and not long over."""
        last = self.last
        if last is None:
            return 1, trigger.nimg
        near = abs(trigger.nimg - last.region) <= 1000 * self.config.region_kimg
        calm = trigger.nimg - last.source >= 1000 * self.config.calm_kimg
        return (last.attempt + 1, last.region) if near and not calm else (1, trigger.nimg)

    def _source(self, trigger: Trigger, candidates: Sequence[Candidate], *, older: bool) -> int:
        limit = trigger.first_nimg - 1000 * self.config.step_back_kimg
        healthy = sorted((c.nimg for c in candidates if c.healthy and c.nimg <= limit), reverse=True)
        if healthy:
            return healthy[min(int(older), len(healthy) - 1)]
        before = [c.nimg for c in candidates if c.nimg < trigger.first_nimg]
        return min(before, default=0)

    def slow_down(self, nimg: int) -> tuple[float, float]:
        """Factors of both learning rates and of gamma here: (0.5, 2) after a third attempt, fading to (1, 1)."""
        last = self.last
        if last is None or not last.slow:
            return 1.0, 1.0
        kimg, begin = nimg / 1000, last.source / 1000 + self.config.slow_kimg
        if kimg < begin:
            return SLOW_LEARNING_RATE, SLOW_GAMMA
        span = self.config.return_kimg
        return linear(kimg, SLOW_LEARNING_RATE, 1.0, span, begin), linear(kimg, SLOW_GAMMA, 1.0, span, begin)
