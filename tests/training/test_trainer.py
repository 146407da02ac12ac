"""The loop: it reports, draws, scores and saves when due, and repairs a run that was broken on purpose."""

from __future__ import annotations

import errno
import math

import pytest
import torch

from tests.training.small import TINY
from tests.training.tiny_runs import OVERRIDES, make_run, make_workspace
from threedgp.config.profile import load_profile
from threedgp.data.dataset import open_training_set
from threedgp.errors import DivergenceError, NotFiniteError
from threedgp.files import read_json_lines
from threedgp.metrics import evaluate as metrics
from threedgp.processes import World
from threedgp.runs.run import Run
from threedgp.training import observer
from threedgp.training.divergence import Trigger
from threedgp.training.log import RunLog
from threedgp.training.observer import Evaluation
from threedgp.training.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
QUICK_RECOVERY = (
    "training.divergence.grace=0.1",
    "training.divergence.candidate_ticks=1",
    "training.divergence.patience=1",
    "training.divergence.diversity_ticks=1000",
)


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path)


def make_trainer(workspace, name, *overrides, log=False):
    run = make_run(workspace, name, *overrides)
    dataset = open_training_set(run.profile, workspace.data / "noise" / "16")
    return Trainer(run, ALONE, dataset, log=RunLog(run.folder) if log else None)


def events(trainer, kind):
    return [line for line in read_json_lines(trainer.run.log_file) if line["kind"] == kind]


class Sabotage:
    """Breaks the discriminator once the trainer has seen so many images, as often as told."""

    def __init__(self, trainer, at, times=1):
        self.trainer, self.at, self.left, self.inner = trainer, at, times, trainer.iteration
        trainer.iteration = self

    def __call__(self, item):
        if self.left and self.trainer.state.counters.nimg >= self.at:
            self.left -= 1
            next(self.trainer.state.D.parameters()).data[0] = math.nan
        self.inner(item)


def spoil(trainer, at):
    """Make one batch of real images NaN."""
    iteration = trainer.iteration

    def spoiled(item):
        if trainer.state.counters.nimg + 8 == at and trainer.state.counters.stream == 0:
            item = item._replace(image=torch.full(item.image.shape, math.nan))
        iteration(item)

    trainer.iteration = spoiled


def assert_healthy(trainer):
    assert all(torch.isfinite(p).all() for network in trainer.state.networks.values() for p in network.parameters())


def test_a_run_reports_saves_and_ends(workspace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(workspace, "plain", "training.image_ticks=2", log=True)
    result = trainer.train()
    assert (result.nimg, result.finished) == (64, True)
    ticks = events(trainer, "tick")
    assert [tick["nimg"] for tick in ticks] == [16, 32, 48, 64]
    for name in ("Loss/G/loss", "Loss/D/loss", "Grad_norm/G/Gmain", "Timing/images_per_second", "Progress/kimg"):
        assert all(math.isfinite(tick["statistics"][name][0]) for tick in ticks)
    assert [path.name for path in trainer.run.checkpoints()] == [f"{nimg:09d}" for nimg in (16, 32, 48, 64)]
    drawn = sorted(path.name for path in trainer.run.samples.iterdir())
    for nimg in (0, 32, 64):
        assert f"{nimg:09d}.jpg" in drawn
        assert f"{nimg:09d}.mp4" in drawn
        assert f"{nimg:09d}-cameras.png" in drawn
    trainer.log.close()
    curves = EventAccumulator(str(trainer.run.tensorboard))
    curves.Reload()
    assert [point.step for point in curves.Scalars("Loss/G/loss")] == [16, 32, 48, 64]


def test_nan_in_the_discriminator_is_repaired(workspace):
    trainer = make_trainer(workspace, "broken", "training.kimg=0.128", *QUICK_RECOVERY, log=True)
    Sabotage(trainer, at=72)
    result = trainer.train()
    assert (result.nimg, result.finished) == (128, True)
    (rollback,) = events(trainer, "rollback")
    assert rollback["criterion"] == "non-finite value"
    assert 0 < rollback["source"] < 72
    assert trainer.state.counters.stream == 1
    assert all(torch.isfinite(p).all() for network in trainer.state.networks.values() for p in network.parameters())


def test_nan_on_the_tick_that_evaluates_goes_back_instead_of_scoring(workspace):
    scored = ("training.metrics=[nfs8]", "training.metric_ticks=1", "training.kimg=0.096")
    trainer = make_trainer(workspace, "scored", *scored, *QUICK_RECOVERY, log=True)
    spoil(trainer, at=64)
    assert trainer.train().finished
    (rollback,) = events(trainer, "rollback")
    assert rollback["criterion"] == "non-finite value"
    assert_healthy(trainer)


def test_a_score_that_is_not_finite_goes_back(workspace, monkeypatch):
    scored = ("training.metrics=[nfs8]", "training.metric_ticks=1")
    trainer = make_trainer(workspace, "scored", *scored, *QUICK_RECOVERY, log=True)
    score = metrics.score_depth
    calls = []

    def fail_once(*args, **options):
        calls.append(args)
        if len(calls) == 4:  # at 48 images
            raise NotFiniteError("A rendered depth map is not finite.")
        return score(*args, **options)

    monkeypatch.setattr(metrics, "score_depth", fail_once)
    assert trainer.train().finished
    (rollback,) = events(trainer, "rollback")
    assert (rollback["criterion"], rollback["source"]) == ("non-finite score", 16)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(workspace):
    trainer = make_trainer(workspace, "damaged", "training.kimg=0.128", *QUICK_RECOVERY, log=True)
    Sabotage(trainer, at=104)
    keep = trainer.iteration

    def damage(item):
        if trainer.state.counters.nimg == 104:
            weights = trainer.run.checkpoints_folder / "000000080" / "G.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])
        keep(item)

    trainer.iteration = damage
    assert trainer.train().finished
    (rollback,) = events(trainer, "rollback")
    assert rollback["source"] == 80
    assert trainer.state.counters.stream == 1
    assert trainer.state.monitor.memory.rolled_back_nimg == 64
    assert_healthy(trainer)


@pytest.mark.slow
def test_learning_rates_a_hundred_times_too_high_heal(workspace):
    trainer = make_trainer(
        workspace,
        "hot",
        "training.generator_optimizer.lr=0.25",
        "training.discriminator_optimizer.lr=0.2",
        "training.kimg=1.0",
        "training.divergence.candidate_ticks=4",
        "training.checkpoint.keep_last=2",
        log=True,
    )
    assert trainer.train().finished
    rollbacks = events(trainer, "rollback")
    assert rollbacks
    assert rollbacks[-1]["learning_rate"] < 0.1
    last = [tick["statistics"] for tick in events(trainer, "tick")][-20:]
    assert all(abs(tick["Loss/G/loss"][0]) < 8 for tick in last)
    assert_healthy(trainer)


def test_the_error_names_checkpoints_only_if_there_are_any(workspace):
    trainer = make_trainer(workspace, "early", *QUICK_RECOVERY, "training.divergence.rollbacks=0", log=True)
    Sabotage(trainer, at=0, times=100)
    with pytest.raises(DivergenceError) as caught:
        trainer.train()
    assert "checkpoint" not in str(caught.value)


def test_a_full_disk_costs_the_log_and_the_samples_but_not_the_training(workspace, monkeypatch):
    trainer = make_trainer(workspace, "full", "training.image_ticks=1", log=True)

    def no_space(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("threedgp.training.log.append_json_line", no_space)
    monkeypatch.setattr(trainer.log._board._records, "write", no_space)
    monkeypatch.setattr(observer, "atomic_path", no_space)
    assert trainer.train().finished
    assert trainer.run.checkpoints()


def test_a_run_that_stays_broken_gives_up_with_exit_code_3(workspace):
    trainer = make_trainer(workspace, "hopeless", *QUICK_RECOVERY, "training.divergence.attempts=2", log=True)
    Sabotage(trainer, at=16, times=100)
    with pytest.raises(DivergenceError, match="going back did not help") as caught:
        trainer.train()
    assert caught.value.exit_code == 3
    assert len(events(trainer, "rollback")) == 2


def test_the_monitor_can_be_switched_off(workspace):
    trainer = make_trainer(workspace, "blind", *QUICK_RECOVERY, "training.divergence.enabled=false", log=True)
    Sabotage(trainer, at=16)
    assert trainer.train().finished
    assert not events(trainer, "rollback")


def test_a_rollback_that_was_interrupted_is_carried_out_at_the_next_start(workspace):
    trainer = make_trainer(workspace, "interrupted", "training.kimg=0.128", *QUICK_RECOVERY, log=True)
    Sabotage(trainer, at=72)

    def killed(rollback):
        raise KeyboardInterrupt

    trainer._roll_back = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    again = Trainer(trainer.run, ALONE, trainer.dataset)
    again.restore()
    assert again.state.counters.stream == 1
    assert again.state.counters.nimg == again.recovery.last.source
    assert again.train().finished


def test_lowered_learning_rates_after_the_second_attempt(workspace):
    trainer = make_trainer(workspace, "slow", *QUICK_RECOVERY)
    trigger = Trigger("generator loss", 16, 16, {})
    for _ in range(2):
        trainer.recovery.decide(trigger, [])
    trainer._begin_stretch()
    trainer.iteration(next(trainer.batches))
    for name, optimizer in trainer.state.optimizers.items():
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(0.03 * optimizer.defaults["lr"]), name


def test_the_best_checkpoint_survives_pruning(workspace):
    trainer = make_trainer(
        workspace,
        "best",
        "training.metrics=[nfs8]",
        "training.metric_ticks=1",
        "training.checkpoint.keep_last=1",
        "training.divergence.enabled=false",
        log=True,
    )
    values = iter([3.0, 2.0, 5.0, 4.0, 1.0])

    def evaluate(generator, nimg):
        value = next(values)
        earlier = trainer.run.best()
        best = earlier is None or value >= earlier.value
        trainer.run.append_metrics({"metric": "nfs8", "results": {"nfs8": value}, "checkpoint": f"{nimg:09d}"})
        return Evaluation({"nfs8": value}, None, best)

    trainer.observer.evaluate = evaluate
    trainer.train()
    assert trainer.run.best().path.name == "000000032"  # evaluated at 0, 16, 32, ...: 5.0 was the third
    assert [path.name for path in trainer.run.checkpoints()] == ["000000032", "000000064"]


def test_metrics_are_computed_while_training(workspace):
    trainer = make_trainer(workspace, "scored", "training.metrics=[nfs8]", "training.metric_ticks=4", log=True)
    trainer.train()
    lines = trainer.run.metrics()
    assert [line["checkpoint"] for line in lines] == ["000000000", "000000064"]
    assert all(1 <= line["results"]["nfs8"] <= 64 for line in lines)


def test_a_time_limit_ends_the_run_as_finished(workspace):
    trainer = make_trainer(workspace, "short", "training.max_minutes=1e-6", log=True)
    result = trainer.train()
    assert result.finished
    assert result.nimg < 64
    assert trainer.run.checkpoints()


def test_samples_and_scores_count_towards_the_time_limit(workspace, monkeypatch):
    trainer = make_trainer(workspace, "watched", "training.max_minutes=60", log=True)
    clock = [0.0]
    monkeypatch.setattr("threedgp.training.trainer.time.perf_counter", lambda: clock[0])

    def draw_for_an_hour(*_):
        clock[0] += 3601.0

    monkeypatch.setattr(trainer.observer, "draw", draw_for_an_hour)
    result = trainer.train()
    assert result.finished
    assert result.nimg == trainer.profile.training.batch_size


OPTIONS = [
    ("loss.camera.emd.anneal_kimg=0.0",),
    ("training.augment.mode=ada",),
    ("data.augment.where=reals",),
    ("training.learn_camera=false",),
    ("training.use_depth=false",),
    ("model.generator.marcher=mip",),
    ("training.patch.distribution=uniform",),
    ("data.num_classes=0",),
    ("precision=bf16",),
]
PHASES = [  # whose phases `test_phases` runs one by one
    ("loss.adversarial=hinge",),
    ("loss.adversarial=relativistic",),
    ("loss.camera.gradient_penalty.enabled=true",),
    ("data.augment.where=both",),
    ("loss.path_length.weight=2.0",),
    ("loss.path_length.weight=2.0", "model.generator.marcher=mip", "training.use_depth=false"),
]


@pytest.mark.parametrize("overrides", [*OPTIONS, *(pytest.param(o, marks=pytest.mark.slow) for o in PHASES)])
def test_every_option_trains(workspace, overrides):
    trainer = make_trainer(workspace, "option", "training.kimg=0.016", "training.image_ticks=1", *overrides)
    assert trainer.train().finished
    assert all(torch.isfinite(p).all() for network in trainer.state.networks.values() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("epigraf256", ("training.patch.resolution=8",)),
        ("stylegan2-256", ()),
        ("imagenet256-paper-gp", ("training.patch.resolution=8", "data.num_classes=4")),
    ],
)
def test_published_profiles_train_at_reduced_size(workspace, name, overrides):
    small = [value for value in (*TINY, *OVERRIDES) if not value.startswith("training.patch")]
    cadence = ("training.batch_size=4", "training.kimg=0.016", "training.workers=0")
    profile = load_profile(name, [*small, *cadence, *overrides])
    run = Run.create(workspace, profile, name)
    trainer = Trainer(run, ALONE, open_training_set(profile, workspace.data / "noise" / "16"))
    assert trainer.train().finished
    assert all(torch.isfinite(p).all() for network in trainer.state.networks.values() for p in network.parameters())
