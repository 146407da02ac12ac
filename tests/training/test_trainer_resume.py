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
    counters,
    make_run,
    make_workspace,
    start,
    train,
)
from threedgp.errors import CheckpointError
from threedgp.files import read_json, read_json_lines, write_json
from threedgp.launch.here import LaunchOptions, StopRequest, train_here
from threedgp.runs.catalog import manifest_digest, verify_checkpoint

KILLED = -signal.SIGKILL


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_and_resume_equal_training_straight_through_byte_for_byte(workspace, processes):
    straight, killed = make_run(workspace, "straight"), make_run(workspace, "killed")
    assert train(straight, processes) == [0] * processes
    assert train(killed, processes, kill_at=40) == [KILLED] * processes
    assert [path.name for path in killed.checkpoints()] == ["000000016", "000000032"]
    assert train(killed, processes) == [0] * processes
    for expected, actual in zip(straight.checkpoints(), killed.checkpoints(), strict=True):
        assert checkpoint_bytes(actual) == checkpoint_bytes(expected)
        assert counters(actual) == counters(expected)


def test_two_processes_equal_one_that_takes_the_same_micro_batches(workspace):
    one = make_run(workspace, "one", "training.batch_gpu=4", "training.tick_kimg=0.008", "training.kimg=0.04")
    two = make_run(workspace, "two", "training.tick_kimg=0.008", "training.kimg=0.04")
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
