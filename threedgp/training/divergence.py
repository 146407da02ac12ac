"""Noticing that a run has diverged, and deciding where to go back to and what to change.

Divergence of this model looks like this: logits of fakes far negative and of reals far positive, so that the
discriminator's loss vanishes and the generator's grows; gradients that are NaN everywhere; one picture for all latents;
a jump of the FID. Once a tick the monitor gets the statistics that all processes share and counts how long each
criterion has held. It decides nothing about files: it names checkpoints by the number of images they were saved at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from threedgp.config.schema import DivergenceConfig

LOSS_HISTORY = 50  # quiet ticks whose generator losses tell what is normal
DIVERSITY_HISTORY = 20  # quiet readings of the samples' diversity
MIN_BAD_STEPS = 3  # steps with non-finite gradients, in ticks on end, that are no accident any more
METRIC_EVALUATIONS = 2  # bad evaluations in a row
METRIC_COLLAPSE = 3.0  # or one that is this much worse than the best


@dataclass(frozen=True)
class TickReading:
    """What the monitor looks at, equal on all processes. NaN is a legal value everywhere and None means not measured.

    Attributes:
        nimg: real images shown at the end of the tick.
        losses: mean of each loss of the tick by name.
        generator_loss, discriminator_loss: adversarial losses.
        real_sign, fake_sign: mean sign of the logits.
        real_size, fake_size: mean absolute logit.
        steps, bad_steps: optimiser steps of the tick, and those with a non-finite gradient element.
        weights_finite: all parameters of the networks and of the average are finite.
        diversity: see `sample_diversity`; measured every `diversity_every` ticks.
        metric: main metric if it was evaluated at this tick and lower is better.
    """

    nimg: int
    losses: Mapping[str, float] = field(default_factory=dict)
    generator_loss: float | None = None
    discriminator_loss: float | None = None
    real_sign: float | None = None
    fake_sign: float | None = None
    real_size: float | None = None
    fake_size: float | None = None
    steps: int = 1
    bad_steps: int = 0
    weights_finite: bool = True
    diversity: float | None = None
    metric: float | None = None

    @classmethod
    def from_means(cls, nimg: int, means: Mapping[str, float], **more) -> TickReading:
        """From the means of the statistics that the phases report; `more` sets the other attributes."""
        names = {
            "generator_loss": "Loss/G/loss",
            "discriminator_loss": "Loss/D/loss",
            "real_sign": "Loss/signs/real",
            "fake_sign": "Loss/signs/fake",
            "real_size": "Loss/abs_scores/real",
            "fake_size": "Loss/abs_scores/fake",
        }
        values = {attribute: means.get(name) for attribute, name in names.items()}
        losses = {name: value for name, value in means.items() if name.startswith("Loss/")}
        return cls(nimg, losses, **values, **more)


@dataclass(frozen=True)
class Trigger:
    """A criterion that was met: its name, the image count of the first tick that counted towards it, what was seen."""

    criterion: str
    first_nimg: int
    nimg: int
    values: dict[str, float | str | None]


@dataclass
class Candidate:
    """A checkpoint to which a run may go back: the images seen when it was saved, and the quiet ticks since."""

    nimg: int
    quiet_ticks: int = 0
    healthy: bool = False


class DivergenceMonitor:
    """Watches the statistics of a run tick by tick and keeps account of which checkpoints proved healthy.

    Immediate criteria: `non-finite value` (a loss or a weight), `non-finite gradients` (in more than a share of the
    steps). Criteria that must hold for several ticks: `saturated discriminator`, `generator loss`, `logit size`; for
    several readings: `collapsed samples`; for two evaluations: `metric`. The latter five rest at the start of a run and
    for a while after a rollback. All thresholds are in the profile's `training.divergence`.
    """

    def __init__(self, config: DivergenceConfig):
        self.config = config
        self.candidates: list[Candidate] = []
        self.rolled_back_nimg: int | None = None
        self._streaks: dict[str, list[int]] = {}  # criterion -> [count so far, nimg of the first]
        self._generator_losses: list[float] = []
        self._diversities: list[float] = []
        self._best_metric: float | None = None

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def wants_candidate(self, tick: int) -> bool:
        """Whether a checkpoint to fall back to is due after this many finished ticks."""
        return self.config.enabled and tick % self.config.candidate_ticks == 0

    def note_checkpoint(self, nimg: int) -> None:
        """Count a checkpoint that is about to be saved among the candidates; the oldest are forgotten."""
        self.candidates = [c for c in self.candidates if c.nimg != nimg]
        self.candidates.append(Candidate(nimg))
        self.candidates = self.candidates[-self.config.candidates :]

    def kept(self) -> list[int]:
        """Image counts of the checkpoints that must not be deleted."""
        return [c.nimg for c in self.candidates] if self.config.enabled else []

    def rewind(self, nimg: int, candidates: Sequence[Candidate]) -> None:
        """After the checkpoint of `nimg` was loaded: keep what is known of candidates up to it, and let things settle.

        Args:
            nimg: 0 when the run starts afresh.
            candidates: those known before the rollback, which is more than the checkpoint knew.
        """
        self.candidates = [c for c in candidates if c.nimg <= nimg]
        self.rolled_back_nimg = nimg
        self._streaks = {}

    # ------------------------------------------------------------------------------------------------------ criteria

    def observe(self, reading: TickReading) -> Trigger | None:
        """Take note of a tick; a trigger when the run has diverged."""
        if not self.config.enabled:
            return None
        config = self.config
        fired = self._hard(reading)
        soft = self._is_soft_phase(reading.nimg)
        if soft and not fired:
            checks = {
                "saturated discriminator": (self._is_saturated(reading), config.saturated_ticks),
                "generator loss": (self._is_generator_loss_high(reading), config.generator_loss_ticks),
                "logit size": (self._is_logit_large(reading), config.logit_ticks),
                "collapsed samples": (self._is_collapsed(reading), config.diversity_readings),
                "metric": (self._is_metric_bad(reading), METRIC_EVALUATIONS),
            }
            for criterion, (bad, needed) in checks.items():
                if self._count(criterion, bad, reading.nimg) >= needed:
                    fired.append(criterion)
            if self._has_metric_collapsed(reading):
                fired.append("metric")
        if fired:
            criterion = fired[0]
            _, first = self._streaks.get(criterion, [1, reading.nimg])
            return Trigger(criterion, first, reading.nimg, self._values(reading))
        self._learn(reading, soft)
        return None

    def _hard(self, reading: TickReading) -> list[str]:
        """Criteria that need no waiting and hold from the first tick on."""
        fired = []
        if not reading.weights_finite or not all(math.isfinite(value) for value in reading.losses.values()):
            fired.append("non-finite value")
        share = reading.bad_steps / max(reading.steps, 1)
        streak = self._streaks.get("non-finite gradients", [0, reading.nimg])
        if share > self.config.nonfinite_fraction:
            streak = [streak[0] + reading.bad_steps, streak[1]]
            self._streaks["non-finite gradients"] = streak
            if streak[0] >= MIN_BAD_STEPS:
                fired.append("non-finite gradients")
        else:
            self._streaks.pop("non-finite gradients", None)
        return fired

    def _is_soft_phase(self, nimg: int) -> bool:
        settled = self.rolled_back_nimg is None or nimg >= self.rolled_back_nimg + 1000 * self.config.settle_kimg
        return settled and nimg >= 1000 * self.config.grace_kimg

    def _count(self, criterion: str, bad: bool | None, nimg: int) -> int:
        """Length of the criterion's streak after this tick; None (not measured) leaves it as it is."""
        if bad is None:
            return 0
        if not bad:
            self._streaks.pop(criterion, None)
            return 0
        count, first = self._streaks.get(criterion, [0, nimg])
        self._streaks[criterion] = [count + 1, first]
        return count + 1

    def _is_saturated(self, r: TickReading) -> bool | None:
        if r.real_sign is None or r.fake_sign is None or r.discriminator_loss is None:
            return None
        limit = self.config.saturated_sign
        return r.real_sign > limit and r.fake_sign < -limit and r.discriminator_loss < self.config.saturated_loss

    def _is_generator_loss_high(self, r: TickReading) -> bool | None:
        if r.generator_loss is None:
            return None
        normal = statistics.median(self._generator_losses) if self._generator_losses else 0.0
        limit = max(self.config.generator_loss_floor, self.config.generator_loss_factor * normal)
        return r.generator_loss > limit

    def _is_logit_large(self, r: TickReading) -> bool | None:
        sizes = [size for size in (r.real_size, r.fake_size) if size is not None]
        return max(sizes) > self.config.logit_limit if sizes else None

    def _is_collapsed(self, r: TickReading) -> bool | None:
        if r.diversity is None or not self._diversities:
            return None
        return not r.diversity >= self.config.diversity_factor * statistics.median(self._diversities)

    def _is_metric_bad(self, r: TickReading) -> bool | None:
        if r.metric is None or self._best_metric is None:
            return None
        best = self._best_metric
        return not (r.metric <= self.config.metric_factor * best or r.metric <= best + self.config.metric_margin)

    def _has_metric_collapsed(self, r: TickReading) -> bool:
        return r.metric is not None and self._best_metric is not None and r.metric > METRIC_COLLAPSE * self._best_metric

    def _learn(self, reading: TickReading, soft: bool) -> None:
        """Update what is normal, and the health of the candidates, after a tick without a trigger."""
        quiet = not self._streaks
        if reading.metric is not None and math.isfinite(reading.metric):
            best = math.inf if self._best_metric is None else self._best_metric
            self._best_metric = min(reading.metric, best)
        if quiet and reading.generator_loss is not None:
            self._generator_losses = [*self._generator_losses, reading.generator_loss][-LOSS_HISTORY:]
        if quiet and soft and reading.diversity is not None:  # the first samples are noise and say nothing
            self._diversities = [*self._diversities, reading.diversity][-DIVERSITY_HISTORY:]
        for candidate in self.candidates:
            if not candidate.healthy and candidate.nimg < reading.nimg:
                candidate.quiet_ticks = candidate.quiet_ticks + 1 if quiet else 0
                candidate.healthy = candidate.quiet_ticks >= max(self.config.healthy_ticks, 1)

    @staticmethod
    def _values(reading: TickReading) -> dict[str, float | str | None]:
        """The reading as JSON can hold it: NaN and infinity as text."""
        values = asdict(reading)
        values |= values.pop("losses")
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    # ----------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict:
        """Everything as JSON."""
        return {
            "candidates": [asdict(c) for c in self.candidates],
            "rolled_back_nimg": self.rolled_back_nimg,
            "streaks": {name: list(streak) for name, streak in self._streaks.items()},
            "generator_losses": list(self._generator_losses),
            "diversities": list(self._diversities),
            "best_metric": self._best_metric,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state_dict` was taken."""
        self.candidates = [Candidate(**c) for c in state["candidates"]]
        self.rolled_back_nimg = state["rolled_back_nimg"]
        self._streaks = {name: list(streak) for name, streak in state["streaks"].items()}
        self._generator_losses = list(state["generator_losses"])
        self._diversities = list(state["diversities"])
        self._best_metric = state["best_metric"]


@torch.no_grad()
def all_finite(networks: Sequence[nn.Module]) -> bool:
    """Whether every parameter and buffer of the networks is finite; waits for the device once."""
    tensors = [t for network in networks for t in network.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())


def sample_diversity(images: Tensor) -> float:
    """Mean over pixels and channels of the deviation over samples; 0 when all pictures [B, C, H, W] are the same."""
    return images.float().std(dim=0, correction=0).mean().item()
