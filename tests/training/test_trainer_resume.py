"""Stopping, killing and resuming change nothing: the weights are those of a run that was never disturbed."""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from tests.tools import relative_error
from tests.training.tiny_runs import (
    checkpoint_bytes,
    make_run,
    make_workspace,
    start,
    train,
)
from threedgp.errors import CheckpointError, DataError, DivergenceError
from threedgp.files import read_json, read_json_lines, write_json
from threedgp.launch.here import StopRequest, train_here
from threedgp.launch.options import LaunchOptions
from threedgp.launch.plan import change_profile, outcome
from threedgp.runs.catalog import manifest_digest, verify_checkpoint

KILLED = -signal.SIGKILL


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path)


FEATURES = (  # a second discriminator, which learns from the fakes and maps of the generator's phase
    "loss.adversarial=relativistic",
    "model.feature_discriminator={weight: 0.25, input_size: 32}",
    "training.reuse_fakes=true",
    "training.coarse_kimg=0.03",
)


@pytest.fixture(scope="module")
def straight_bytes(tmp_path_factory):
    """The checkpoints of an undisturbed run with so many processes and such settings, trained once."""
    known = {}

    def find(processes, overrides=()):
        if (processes, overrides) not in known:
            run = make_run(make_workspace(tmp_path_factory.mktemp("straight")), "run", *overrides)
            assert train(run, processes) == [0] * processes
            known[processes, overrides] = {path.name: checkpoint_bytes(path) for path in run.checkpoints()}
        return known[processes, overrides]

    return find


def assert_equal_bytes(run, straight):
    for name, expected in straight.items():
        assert checkpoint_bytes(run.checkpoints_folder / name) == expected


@pytest.mark.parametrize(("processes", "overrides"), [(1, ()), (2, ()), (1, FEATURES)])
def test_kill_9_and_resume_equal_training_straight_through_byte_for_byte(
    workspace, straight_bytes, processes, overrides
):
    run = make_run(workspace, "killed", *overrides)
    assert train(run, processes, kill_at=40) == [KILLED] * processes
    assert [path.name for path in run.checkpoints()] == ["000000016", "000000032"]
    assert train(run, processes) == [0] * processes
    assert_equal_bytes(run, straight_bytes(processes, overrides))


@pytest.mark.parametrize("overrides", [(), pytest.param(FEATURES, marks=pytest.mark.slow)])
def test_two_processes_equal_one_that_takes_the_same_micro_batches(workspace, overrides):
    cadence = ("training.tick_kimg=0.008", "training.kimg=0.04", *overrides)
    one, two = make_run(workspace, "one", "training.batch_gpu=4", *cadence), make_run(workspace, "two", *cadence)
    assert train(one) == [0]
    assert train(two, 2) == [0, 0]
    ticks = [
        [line["statistics"] for line in read_json_lines(run.log_file) if line["kind"] == "tick"] for run in (one, two)
    ]
    assert len(ticks[0]) == len(ticks[1]) == 5
    for first, second in zip(*ticks, strict=True):
        names = [name for name in first if name.startswith(("Loss/", "Grad_norm/"))]
        assert "Loss/G/loss" in names
        assert "Loss/D/loss" in names
        for name in names:
            assert relative_error(second[name][0], first[name][0]) < 1e-4, name
    for group in ("G", "D", "G_ema"):
        expected, actual = (load_file(run.checkpoints()[-1] / f"{group}.safetensors") for run in (one, two))
        for name, value in expected.items():
            assert relative_error(actual[name], value) < 1e-4, f"{group}.{name}"


def test_a_run_goes_on_with_fewer_processes(workspace):
    run = make_run(workspace, "run")
    assert train(run, 2, kill_at=24) == [KILLED] * 2
    assert train(run, 1) == [0]
    assert run.checkpoints()[-1].name == "000000064"
    assert (run.folder / "DONE").exists()


@pytest.mark.slow
def test_kill_9_at_random_moments_always_leaves_a_checkpoint_that_resumes(workspace):
    run = make_run(workspace, "run", "training.tick_kimg=0.008", "training.kimg=10.0")
    moments = random.Random(5)
    reached = 0
    for _ in range(4):
        (process,) = start(run)
        deadline = time.monotonic() + 60
        while len(run.checkpoints()) == 0 or int(run.checkpoints()[-1].name) <= reached:
            assert process.is_alive()
            assert time.monotonic() < deadline, "no checkpoint in a minute"
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
        newest = run.checkpoint("latest")
        verify_checkpoint(newest)
        assert int(newest.name) > reached
        reached = int(newest.name)


def test_a_stop_request_ends_with_a_checkpoint_at_the_next_iteration(workspace):
    run = make_run(workspace, "run")
    request = StopRequest()
    request.signal = signal.SIGTERM
    result = train_here(run, LaunchOptions(), request)
    assert (result.nimg, result.finished) == (8, False)
    verify_checkpoint(run.checkpoint("latest"))
    assert not (run.folder / "DONE").exists()


def test_a_checkpoint_cut_in_half_is_passed_over_for_the_one_before(workspace):
    run = make_run(workspace, "run")
    assert train(run, kill_at=40) == [KILLED]
    weights = run.checkpoints()[-1] / "G.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    assert train_here(run, LaunchOptions(), stop).nimg == 24
    for path in run.checkpoints():
        weights = path / "D.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        train_here(run, LaunchOptions(), stop)


def test_checkpoints_of_other_networks_or_newer_versions_are_refused(workspace):
    run = make_run(workspace, "run")
    assert train(run, kill_at=40) == [KILLED]
    wider = make_run(workspace, "wider", "model.generator.w_dim=16")
    shutil.copytree(run.checkpoints()[-1], wider.checkpoints_folder / "000000032")
    with pytest.raises(CheckpointError, match=r"model\.generator\.w_dim = 8.*has 16"):
        train_here(wider, LaunchOptions(), StopRequest())
    newest = run.checkpoints()[-1] / "manifest.json"
    manifest = read_json(newest) | {"format": 99, "version": "9.0"}
    manifest["digest"] = manifest_digest(manifest)
    write_json(newest, manifest)
    with pytest.raises(CheckpointError, match=r"newer 3dgp \(9\.0.*pip install --upgrade"):
        train_here(run, LaunchOptions(), StopRequest())
    assert run.holder() is None


def test_a_full_disk_at_a_checkpoint_says_so_and_keeps_the_one_before(workspace, monkeypatch):
    run = make_run(workspace, "run")
    assert train(run, kill_at=24) == [KILLED]
    before = checkpoint_bytes(run.checkpoints()[-1])
    usage = shutil.disk_usage(run.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"Free some space and resume; the previous checkpoint is intact"):
        train_here(run, LaunchOptions(), StopRequest())
    monkeypatch.undo()
    assert [path.name for path in run.checkpoints()] == ["000000016"]
    assert checkpoint_bytes(run.checkpoint("latest")) == before
    assert run.holder() is None


class StopAt:
    """A stop request (Ctrl-C, TERM, the stop file) after so many iterations."""

    def __init__(self, iterations):
        self.left = iterations

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def test_a_stop_inside_a_tick_leaves_no_trace_in_weights_and_state(workspace):
    longer = ("training.tick_kimg=0.032", "training.kimg=0.064", "training.augment.mode=ada")
    straight = make_run(workspace, "straight", *longer)
    assert train_here(straight, LaunchOptions(), StopRequest()).finished
    expected = {path.name: checkpoint_bytes(path) for path in straight.checkpoints()}
    for iterations in (1, 2, 3):
        stopped = make_run(workspace, f"stopped-{iterations}", *longer)
        assert train_here(stopped, LaunchOptions(), StopAt(iterations)).nimg == 8 * iterations
        assert train_here(stopped, LaunchOptions(), StopRequest()).finished
        assert_equal_bytes(stopped, expected)


def test_what_a_tick_remembers_decides_alike_after_a_stop(workspace):
    watch = [f"training.divergence.{key}" for key in ("grace=0.0", "patience=1", "candidate_ticks=1", "rollbacks=1")]
    watch += ["training.divergence.generator_loss_floor=0.6", "training.divergence.generator_loss_factor=1.0"]
    decisions = []
    for name, stops in (("straight", ()), ("stopped", (1, 1))):
        run = make_run(workspace, name, "training.tick_kimg=0.024", *watch)
        for stop in stops:
            train_here(run, LaunchOptions(), StopAt(stop))
        with pytest.raises(DivergenceError):
            train_here(run, LaunchOptions(), StopRequest())
        lines = read_json_lines(run.folder / "recovery.jsonl")
        decisions.append([{key: value for key, value in line.items() if key != "time"} for line in lines])
    assert decisions[0] == decisions[1] != []


def test_a_stop_with_two_processes_is_exact_too(workspace, straight_bytes):
    run = make_run(workspace, "stopped")
    assert train(run, 2, stop_at=24) == [0, 0]  # inside the second tick
    assert run.checkpoints()[-1].name == "000000024"
    assert train(run, 2) == [0, 0]
    assert_equal_bytes(run, straight_bytes(2))


def test_the_time_a_run_took_is_kept_apart_from_its_checkpoints(workspace):
    run = make_run(workspace, "run", "training.max_minutes=10")
    train_here(run, LaunchOptions(), StopAt(2))
    spent = read_json(run.folder / "clock.json")["seconds"]
    assert spent > 0
    write_json(run.folder / "clock.json", {"seconds": 601.0})
    assert outcome(run)["ended_by"] == "training.max_minutes"
    assert outcome(run)["finished"]
    longer = change_profile(run, ["training.max_minutes=100"])
    assert not outcome(run, longer)["finished"]
    assert not outcome(run, change_profile(run, ["training.max_minutes=null"]))["finished"]


def test_a_run_that_is_moved_while_it_trains_says_so_and_leaves_no_ghost(workspace):
    run = make_run(workspace, "run")

    def move_away():
        if run.folder.exists() and run.checkpoints():
            run.folder.rename(workspace.runs / "elsewhere")
        return False

    with pytest.raises(DataError, match="was moved or deleted"):
        train_here(run, LaunchOptions(), move_away)
    assert not run.folder.exists()


# Twenty kills at moments spread over writing a checkpoint, one of them in the quick suite, and twenty of two processes.
KILLS = [pytest.param(seed, marks=[] if seed < 1 else pytest.mark.slow) for seed in range(20)]


@pytest.mark.parametrize("seed", KILLS)
def test_a_kill_inside_a_checkpoint_write_loses_nothing(workspace, straight_bytes, seed):
    run = make_run(workspace, "run")
    assert train(run, kill_in_write=random.Random(seed).randrange(1, 60)) in ([KILLED], [0])
    assert train(run) == [0]
    assert not [path for path in run.checkpoints_folder.iterdir() if path.name.startswith(".")]
    assert_equal_bytes(run, straight_bytes(1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_of_two_processes_loses_nothing(workspace, straight_bytes, seed):
    run = make_run(workspace, "run")
    assert train(run, 2, kill_at=8 * random.Random(seed).randrange(1, 9)) == [KILLED] * 2
    assert train(run, 2) == [0, 0]
    assert_equal_bytes(run, straight_bytes(2))
