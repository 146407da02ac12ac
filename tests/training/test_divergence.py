"""The monitor fires on runs that are broken, soon and with the right name, and never on healthy ones."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter
from torch import nn

from threedgp.config.schema import DivergenceConfig
from threedgp.training.divergence import DivergenceMonitor, Memory, TickReading, all_finite

TICK = 4000  # images
KIMG = 25_000.0  # so that the grace period is 200
GOOD = {
    "Loss/G/loss": 1.5,
    "Loss/D/loss": 0.8,
    "Loss/signs/real": 0.5,
    "Loss/signs/fake": -0.6,
    "Loss/abs_scores/real": 2.0,
    "Loss/abs_scores/fake": 2.5,
}
SATURATED = {**GOOD, "Loss/D/loss": 0.001, "Loss/signs/real": 1.0, "Loss/signs/fake": -1.0}


class Run:
    """A run whose statistics are made up, tick by tick."""

    def __init__(self, **config):
        self.monitor = DivergenceMonitor(DivergenceConfig(**config), KIMG)
        self.nimg = 0

    def tick(self, means=GOOD, ticks=1, steps=62, **more):
        """The trigger of the first tick that fires, or None."""
        for _ in range(ticks):
            self.nimg += TICK
            trigger = self.monitor.observe(TickReading(self.nimg, means, steps=steps, **more))
            if trigger:
                return trigger
        return None

    def warm(self, ticks=60):
        assert self.tick(ticks=ticks, diversity=0.5) is None
        return self


def test_a_long_healthy_run_never_fires():
    random = np.random.default_rng(0)
    run = Run()
    for tick in range(1, 3001):
        progress = tick / 3000
        noise = random.normal(size=6)
        means = {
            "Loss/G/loss": 0.7 + 2.5 * progress + 0.5 * abs(noise[0]) + (2.0 if tick % 97 == 0 else 0.0),
            "Loss/D/loss": 1.3 - 0.8 * progress + 0.1 * noise[1],
            "Loss/signs/real": min(0.2 + 0.6 * progress + 0.1 * noise[2], 1.0),
            "Loss/signs/fake": max(-0.2 - 0.7 * progress + 0.1 * noise[3], -1.0),
            "Loss/abs_scores/real": 1 + 8 * progress + abs(noise[4]),
            "Loss/abs_scores/fake": 1 + 9 * progress + abs(noise[5]),
        }
        more = {"bad_steps": int(tick % 200 == 0)}
        if tick % 10 == 0:
            more["diversity"] = 0.1 + 0.4 * progress + 0.02 * noise[0]
        if tick % 100 == 0:
            more["metric"] = 300 * math.exp(-4 * progress) + 15 + 4 * noise[1]
        assert run.tick(means, **more) is None, tick


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_fires_at_once_even_at_the_start(bad):
    trigger = Run().tick({**GOOD, "Loss/camera_dist/emd": bad})
    assert trigger.criterion == "non-finite value"
    assert trigger.first_nimg == trigger.nimg == TICK
    json.dumps(trigger.values, allow_nan=False)


def test_non_finite_weights_fire_at_once():
    assert Run().tick(weights_finite=False).criterion == "non-finite value"


def test_non_finite_gradients_fire_when_they_are_no_accident():
    assert Run().tick(bad_steps=3).criterion == "non-finite gradients"
    assert Run().tick(bad_steps=3, steps=1000) is None  # within the allowed share
    run = Run()
    for _ in range(10):
        assert run.tick(bad_steps=2) is None
        assert run.tick() is None
    run = Run()  # ticks of a single iteration
    assert run.tick(bad_steps=1, steps=1, ticks=2) is None
    trigger = run.tick(bad_steps=1, steps=1)
    assert (trigger.criterion, trigger.first_nimg) == ("non-finite gradients", TICK)


def test_a_saturated_discriminator_fires_after_five_ticks():
    run = Run().warm()
    began = run.nimg + TICK
    assert run.tick(SATURATED, ticks=4) is None
    trigger = run.tick(SATURATED)
    assert (trigger.criterion, trigger.first_nimg, trigger.nimg) == ("saturated discriminator", began, began + 4 * TICK)
    assert trigger.values["Loss/D/loss"] == 0.001


def test_saturation_must_not_be_interrupted():
    run = Run().warm()
    for _ in range(5):
        assert run.tick(SATURATED, ticks=4) is None
        assert run.tick() is None


def test_a_generator_loss_far_above_its_median_fires():
    assert Run().warm().tick({**GOOD, "Loss/G/loss": 8.1}, ticks=5).criterion == "generator loss"
    assert Run().warm().tick({**GOOD, "Loss/G/loss": 7.9}, ticks=50) is None
    run = Run()
    assert run.tick({**GOOD, "Loss/G/loss": 4.0}, ticks=100) is None  # this run's losses are large
    assert run.tick({**GOOD, "Loss/G/loss": 15.0}, ticks=50) is None
    assert run.tick({**GOOD, "Loss/G/loss": 70.0}, ticks=5).criterion == "generator loss"


def test_a_growing_loss_does_not_become_normal():
    run = Run().warm()
    assert run.tick({**GOOD, "Loss/G/loss": 9.0}, ticks=4) is None
    assert run.tick() is None
    assert run.tick({**GOOD, "Loss/G/loss": 9.0}, ticks=5).criterion == "generator loss"


@pytest.mark.parametrize("side", ["real", "fake"])
def test_huge_logits_fire_after_five_ticks(side):
    means = {**GOOD, f"Loss/abs_scores/{side}": 101.0}
    run = Run().warm()
    assert run.tick(means, ticks=4) is None
    assert run.tick(means).criterion == "logit size"


def test_collapsed_samples_fire_after_three_readings():
    run = Run().warm()
    for _ in range(2):
        assert run.tick(diversity=0.05) is None
        assert run.tick(ticks=9) is None  # not measured
    assert run.tick(diversity=0.05).criterion == "collapsed samples"
    assert Run().warm().tick(diversity=0.11, ticks=20) is None


def test_a_jump_of_the_metric_fires_at_the_second_evaluation():
    run = Run().warm()
    assert run.tick(metric=30.0) is None
    assert run.tick(metric=44.0) is None  # within the margin
    assert run.tick(metric=47.0) is None
    assert run.tick(ticks=10) is None
    assert run.tick(metric=46.0).criterion == "metric"


def test_a_collapse_of_the_metric_fires_at_once():
    run = Run().warm()
    assert run.tick(metric=30.0) is None
    trigger = run.tick(metric=91.0)
    assert (trigger.criterion, trigger.first_nimg) == ("metric", run.nimg)


def test_a_score_that_is_not_finite_fires_at_once():
    trigger = Run().tick(scores={"nfs16": math.nan})
    assert trigger.criterion == "non-finite score"
    assert trigger.values["nfs16"] == "nan"


def test_nothing_proves_healthy_before_the_criteria_can_say_so():
    run = Run(candidate_ticks=2, patience=1)
    run.monitor.note_checkpoint(run.nimg)
    run.tick(ticks=49)  # 196 kimg
    assert not run.monitor.memory.candidates[0].healthy
    run.tick()
    assert run.monitor.memory.candidates[0].healthy


def test_soft_criteria_rest_at_the_start_and_after_a_rollback():
    run = Run(grace=0.004)  # 100 kimg, and 20 after a rollback
    assert run.tick(SATURATED, ticks=24) is None
    assert run.tick(SATURATED, ticks=5).criterion == "saturated discriminator"
    run.monitor.rewind(run.nimg, [])
    assert run.tick(SATURATED, ticks=4) is None
    assert run.tick(SATURATED, ticks=5).criterion == "saturated discriminator"


def test_small_runs_are_watched_with_small_spans():
    monitor = DivergenceMonitor(DivergenceConfig(patience=2), kimg=25.0)
    for tick in range(1, 4):
        assert monitor.observe(TickReading(tick * 100, SATURATED)) is None or tick == 3
    assert monitor.observe(TickReading(400, SATURATED)).criterion == "saturated discriminator"


def test_the_switch_turns_everything_off():
    run = Run(enabled=False)
    assert run.tick({"Loss/G/loss": math.nan}, weights_finite=False, bad_steps=60) is None
    assert not run.monitor.wants_candidate(50)
    run.monitor.note_checkpoint(1)
    assert run.monitor.kept() == []


def test_a_checkpoint_becomes_healthy_after_quiet_ticks_only():
    run = Run(candidate_ticks=10).warm()
    run.monitor.note_checkpoint(run.nimg)
    (candidate,) = run.monitor.memory.candidates
    run.tick(ticks=4)
    assert not candidate.healthy
    run.tick(SATURATED)  # counts towards a criterion
    run.tick(ticks=4)
    assert not candidate.healthy
    run.tick()
    assert candidate.healthy
    run.tick(SATURATED, ticks=2)
    assert candidate.healthy


def test_only_the_newest_candidates_are_kept():
    run = Run(candidate_ticks=50)
    assert [tick for tick in range(1, 151) if run.monitor.wants_candidate(tick)] == [50, 100, 150]
    for nimg in (1, 2, 3, 4, 5, 6, 7, 7):
        run.monitor.note_checkpoint(nimg)
    assert run.monitor.kept() == [2, 3, 4, 5, 6, 7]


def test_a_rollback_forgets_what_came_after():
    run = Run(candidate_ticks=1, patience=1, grace=0.0)
    for _ in range(3):
        run.monitor.note_checkpoint(run.nimg)
        run.tick()
    run.tick(SATURATED)
    known = run.monitor.memory.candidates
    other = DivergenceMonitor(DivergenceConfig(), KIMG)
    other.rewind(TICK, known)
    assert [(c.nimg, c.healthy) for c in other.memory.candidates] == [(0, True), (TICK, True)]


def test_the_state_continues_exactly():
    run, twin = Run().warm(), Run().warm()
    run.monitor.note_checkpoint(run.nimg)
    twin.monitor.note_checkpoint(twin.nimg)
    for means, more in ((SATURATED, {}), (SATURATED, {"metric": 20.0}), (SATURATED, {"diversity": 0.4})):
        assert run.tick(means, **more) is None
        assert twin.tick(means, **more) is None
    state = json.loads(json.dumps(asdict(run.monitor.memory)))
    run.monitor = DivergenceMonitor(DivergenceConfig(), KIMG)
    run.monitor.memory = TypeAdapter(Memory).validate_python(state)
    assert run.tick(SATURATED) is None
    assert twin.tick(SATURATED) is None
    assert run.monitor.memory == twin.monitor.memory
    assert run.tick(SATURATED) == twin.tick(SATURATED) is not None


def test_finite_networks_are_told_from_others():
    good, bad = nn.Linear(3, 3), nn.BatchNorm1d(3)
    assert all_finite([good, bad])
    bad.running_mean[1] = math.nan
    assert not all_finite([good, bad])


def test_what_is_normal_is_learned_before_the_criteria_start():
    run = Run(grace=0.008)
    high = {**GOOD, "Loss/G/loss": 10.0}  # a small run's generator loses by far, from the start
    assert run.tick(high, ticks=200) is None
    assert run.tick({**GOOD, "Loss/G/loss": 41.0}, ticks=5).criterion == "generator loss"
