"""Noticing that a run has diverged, and knowing which checkpoints proved healthy.

Divergence of this model looks like this: logits of fakes far negative and of reals far positive, so that the
discriminator's loss vanishes and the generator's grows; gradients that are NaN everywhere; one picture for all latents;
a jump of the FID. Once a tick the monitor gets the statistics of all processes and counts how long each criterion has
held. It decides nothing about files: it names checkpoints by the number of images they were saved at.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from threedgp.config.schema import DivergenceConfig

BAD_STEPS_SHARE = 0.01  # of a tick's steps may have a non-finite gradient element,
MIN_BAD_STEPS = 3  # and fewer than these, in ticks on end, are an accident
SATURATED_SIGN, SATURATED_LOSS = 0.98, 0.02  # a discriminator that has won: nearly all signs right, no loss left
LOGIT_LIMIT = 100.0  # mean absolute logit
COLLAPSED_SHARE, COLLAPSED_READINGS = 0.2, 3  # of the usual diversity, at so many readings on end
METRIC_FACTOR, METRIC_MARGIN, METRIC_EVALUATIONS = 1.5, 15.0, 2  # worse than the best by both, in evaluations on end,
METRIC_COLLAPSE = 3.0  # or this much worse once
SETTLE = 0.2  # of the grace period the lasting criteria rest after a rollback
LOSS_HISTORY = 50  # quiet ticks whose generator losses tell what is normal
DIVERSITY_HISTORY = 20  # quiet readings of the samples' diversity
CANDIDATES = 6  # checkpoints that a run may go back to


@dataclass(frozen=True)
class TickReading:
    """What the monitor looks at. NaN is a legal value everywhere and None means not measured."""

    nimg: int  # real images shown at the end of the tick
    means: Mapping[str, float] = field(default_factory=dict)  # of the statistics that the phases report, by name
    steps: int = 1  # optimiser steps of the tick,
    bad_steps: int = 0  # and those with a non-finite gradient element
    weights_finite: bool = True  # all parameters of the networks and of the average are
    diversity: float | None = None  # how much a fixed set of samples differs; 0 when all are the same
    scores: Mapping[str, float] = field(default_factory=dict)  # every value of the metrics evaluated at this tick
    metric: float | None = None  # the main metric among them, if lower is better

    @property
    def losses(self) -> dict[str, float]:
        return {name: value for name, value in self.means.items() if name.startswith("Loss/")}

    @property
    def is_finite(self) -> bool:
        """Whether weights and losses are; if not, nothing else needs to be looked at."""
        return self.weights_finite and all(math.isfinite(value) for value in self.losses.values())

    def record(self) -> dict[str, Any]:
        """The reading as JSON can hold it: NaN and infinity as text."""
        values = {**asdict(self), **self.losses, **self.scores}
        del values["means"], values["scores"]
        odd = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        return {name: str(value) if name in odd else value for name, value in values.items()}


@dataclass(frozen=True)
class Trigger:
    """A criterion that was met: its name, the image count of the first tick that counted towards it, what was seen."""

    criterion: str
    first_nimg: int
    nimg: int
    values: dict[str, Any]


@dataclass
class Candidate:
    """A checkpoint to which a run may go back: the images seen when it was saved, and the quiet ticks since."""

    nimg: int
    quiet_ticks: int = 0
    healthy: bool = False


@dataclass
class Memory:
    """What a monitor remembers of a run, from tick to tick and in checkpoints."""

    candidates: list[Candidate] = field(default_factory=list)  # checkpoints to go back to, oldest first
    rolled_back_nimg: int | None = None  # where the run went back to last
    streaks: dict[str, tuple[int, int]] = field(default_factory=dict)  # criterion -> count, nimg of its first tick
    generator_losses: list[float] = field(default_factory=list)  # of quiet ticks: what is normal
    diversities: list[float] = field(default_factory=list)  # the same
    best_metric: float | None = None  # lowest value so far


class DivergenceMonitor:
    """Watches the statistics of a run tick by tick and keeps account of which checkpoints proved healthy.

    Immediate criteria: `non-finite value` (a loss or a weight), `non-finite score`, `non-finite gradients`. Criteria
    that must hold for several ticks: `saturated discriminator`, `generator loss`, `logit size`; for several readings:
    `collapsed samples`; for two evaluations: `metric`. The latter five rest at the start of a run and for a while
    after a rollback, and no checkpoint can prove healthy while they do.

    Args:
        config: `training.divergence` of the profile.
        kimg: length of the run in thousand images, of which the grace period is a share.
    """

    def __init__(self, config: DivergenceConfig, kimg: float):
        self.config = config
        self.grace = 1000 * config.grace * kimg  # images
        self.memory = Memory()

    def wants_candidate(self, tick: int) -> bool:
        """Whether a checkpoint to fall back to is due after this many finished ticks."""
        return self.config.enabled and tick % self.config.candidate_ticks == 0

    def note_checkpoint(self, nimg: int) -> None:
        """Count a checkpoint that is about to be saved among the candidates; the oldest are forgotten."""
        others = [c for c in self.memory.candidates if c.nimg != nimg]
        self.memory.candidates = [*others, Candidate(nimg)][-CANDIDATES:]

    def kept(self) -> list[int]:
        """Image counts of the checkpoints that must not be deleted."""
        return [c.nimg for c in self.memory.candidates] if self.config.enabled else []

    def rewind(self, nimg: int, candidates: Sequence[Candidate]) -> None:
        """After the checkpoint of `nimg` was loaded: keep what is known of candidates up to it, and let things settle.

        Args:
            nimg: 0 when the run starts afresh.
            candidates: those known before the rollback, which is more than the checkpoint knew.
        """
        self.memory.candidates = [c for c in candidates if c.nimg <= nimg]
        self.memory.rolled_back_nimg = nimg
        self.memory.streaks = {}

    def observe(self, reading: TickReading) -> Trigger | None:
        """Take note of a tick; a trigger when the run has diverged."""
        if not self.config.enabled:
            return None
        back = self.memory.rolled_back_nimg
        experienced = reading.nimg >= self.grace and (back is None or reading.nimg >= back + SETTLE * self.grace)
        fired = self._immediate(reading) or (self._lasting(reading) if experienced else None)
        if fired is not None:
            _, first = self.memory.streaks.get(fired, (1, reading.nimg))
            return Trigger(fired, first, reading.nimg, reading.record())
        self._learn(reading, experienced)
        return None

    def _count(self, criterion: str, by: int, nimg: int) -> int:
        """Length of the criterion's streak, which grows `by` so much, or ends where that is 0."""
        if by == 0:
            self.memory.streaks.pop(criterion, None)
            return 0
        count, first = self.memory.streaks.get(criterion, (0, nimg))
        self.memory.streaks[criterion] = (count + by, first)
        return count + by

    def _immediate(self, reading: TickReading) -> str | None:
        """A criterion that holds from the first tick on."""
        if not reading.is_finite:
            return "non-finite value"
        if not all(math.isfinite(value) for value in reading.scores.values()):
            return "non-finite score"
        accident = reading.bad_steps <= BAD_STEPS_SHARE * max(reading.steps, 1)
        count = self._count("non-finite gradients", 0 if accident else reading.bad_steps, reading.nimg)
        return "non-finite gradients" if count >= MIN_BAD_STEPS else None

    def _lasting(self, reading: TickReading) -> str | None:
        """The first criterion that has held long enough. What was not measured leaves its streak as it is."""
        memory, config = self.memory, self.config
        seen = defaultdict(lambda: math.nan, reading.means)
        won = seen["Loss/signs/real"] > SATURATED_SIGN and seen["Loss/signs/fake"] < -SATURATED_SIGN
        normal = statistics.median(memory.generator_losses) if memory.generator_losses else 0.0
        limit = max(config.generator_loss_floor, config.generator_loss_factor * normal)
        large = any(seen[f"Loss/abs_scores/{side}"] > LOGIT_LIMIT for side in ("real", "fake"))
        checks = {
            "saturated discriminator": (won and seen["Loss/D/loss"] < SATURATED_LOSS, config.patience),
            "generator loss": (seen["Loss/G/loss"] > limit, config.patience),
            "logit size": (large, config.patience),
        }
        if reading.diversity is not None and memory.diversities:
            usual = reading.diversity >= COLLAPSED_SHARE * statistics.median(memory.diversities)
            checks["collapsed samples"] = (not usual, COLLAPSED_READINGS)
        metric, best = reading.metric, memory.best_metric
        if metric is not None and best is not None:
            collapsed = 0 < METRIC_COLLAPSE * best < metric
            worse = metric > METRIC_FACTOR * best and metric > best + METRIC_MARGIN
            checks["metric"] = (collapsed or worse, 1 if collapsed else METRIC_EVALUATIONS)
        fired = [name for name, (bad, needed) in checks.items() if self._count(name, int(bad), reading.nimg) >= needed]
        return fired[0] if fired else None

    def _learn(self, reading: TickReading, experienced: bool) -> None:
        """Update what is normal, and the health of the candidates, after a tick without a trigger."""
        memory, quiet = self.memory, not self.memory.streaks
        if reading.metric is not None:
            memory.best_metric = min(reading.metric, math.inf if memory.best_metric is None else memory.best_metric)
        if quiet and "Loss/G/loss" in reading.means:
            memory.generator_losses = [*memory.generator_losses, reading.means["Loss/G/loss"]][-LOSS_HISTORY:]
        if not experienced:  # the first samples are noise and say nothing, and no criterion says that all is well
            return
        if quiet and reading.diversity is not None:
            memory.diversities = [*memory.diversities, reading.diversity][-DIVERSITY_HISTORY:]
        needed = max(self.config.candidate_ticks // 2, self.config.patience)
        for candidate in memory.candidates:
            if not candidate.healthy and candidate.nimg < reading.nimg:
                candidate.quiet_ticks = candidate.quiet_ticks + 1 if quiet else 0
                candidate.healthy = candidate.quiet_ticks >= needed


@torch.no_grad()
def all_finite(networks: Sequence[nn.Module]) -> bool:
    """Whether every parameter and buffer of the networks is finite; waits for the device once."""
    tensors = [t for network in networks for t in network.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())
