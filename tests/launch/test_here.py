"""Asking a run to stop, one trainer at a time, and which training set a run uses."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.training.tiny_runs import make_run, make_workspace
from threedgp.errors import DataError, UsageError
from threedgp.files import read_json, write_json
from threedgp.launch.here import (
    STOP_SIGNALS,
    StopRequest,
    require_free,
    stop_on_signals,
    train_here,
)
from threedgp.launch.options import LaunchOptions
from threedgp.progress import Progress
from threedgp.runs.training_set import training_data


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_a_request_and_handlers_come_back(number, capfd):
    before = {entry: signal.getsignal(entry) for entry in STOP_SIGNALS}
    announced = []
    with stop_on_signals(StopRequest(), lambda: announced.append(True)) as request:
        assert not request()
        os.kill(os.getpid(), number)
        assert request()
        assert request.signal == number
        deadline = time.monotonic() + 5
        while not announced and time.monotonic() < deadline:
            time.sleep(0.01)
    assert announced == [True]
    assert {entry: signal.getsignal(entry) for entry in STOP_SIGNALS} == before


def test_only_a_second_ctrl_c_interrupts():
    with stop_on_signals(StopRequest()) as request:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_ignored_by_nohup_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(StopRequest()) as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_data_loading_processes_end_on_sigterm_and_leave_ctrl_c_to_their_parent():
    with stop_on_signals(StopRequest()) as request:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
        assert not request()


@pytest.mark.slow
def test_the_stop_file_of_a_run_ends_it_and_an_old_one_does_not(workspace):
    run = make_run(workspace, "run")
    stop = run.folder / "stop"
    stop.touch()  # left by an earlier start

    class TouchLater(Progress):
        def advance(self, count=1):
            if count == 8:
                stop.touch()

    result = train_here(run, LaunchOptions(), StopRequest(stop), TouchLater())
    assert (result.nimg, result.finished) == (8, False)
    assert not stop.exists()
    assert run.state() == "stopped"
    assert train_here(run, LaunchOptions(), StopRequest(stop)).finished
    assert (run.folder / "DONE").exists()
    assert run.state() == "done"
    assert train_here(run, LaunchOptions(), StopRequest(stop)).nimg == 64  # again: nothing left to do


def test_a_run_in_use_is_refused_with_a_way_to_stop_it(workspace):
    run = make_run(workspace, "run")
    require_free(run)
    with run.lock(), pytest.raises(UsageError, match=rf"process {os.getpid()} on host .*touch .*stop"):
        require_free(run)
    require_free(run)


def test_a_run_keeps_to_its_training_set(workspace, tmp_path):
    run = make_run(workspace, "run")
    expected = workspace.root / "data" / "noise" / "16"
    assert training_data(workspace, run.profile, run) == expected
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    train_here(run, LaunchOptions(), stop)
    assert read_json(run.folder / "data.json")["path"] == str(expected)
    moved = tmp_path / "elsewhere"
    expected.rename(moved)
    with pytest.raises(DataError, match=r"which is gone.*--data"):
        train_here(run, LaunchOptions(), stop)
    assert train_here(run, LaunchOptions(data=str(moved)), stop).nimg == 16
    assert read_json(run.folder / "data.json")["path"] == str(moved)


def test_a_missing_size_names_the_command_that_makes_it(workspace):
    run = make_run(workspace, "run", "data.resolution=32", "training.patch.resolution=16")
    with pytest.raises(DataError, match=r"3dgp data resize -s 32$"):
        training_data(workspace, run.profile, run)
    (workspace.root / "data" / "other").mkdir()
    with pytest.raises(UsageError, match="Choose with --dataset"):
        training_data(workspace, run.profile, run)


def test_a_changed_set_is_not_trained_on_silently(workspace):
    run = make_run(workspace, "run")
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    train_here(run, LaunchOptions(), stop)
    data = workspace.root / "data" / "noise" / "16"
    labels = read_json(data / "dataset.json")
    for name in ("011.png", "011_depth.png"):
        (data / name).unlink()
    with pytest.raises(DataError, match=r"12 images then, 11 now.*--data"):
        train_here(run, LaunchOptions(), stop)
    assert train_here(run, LaunchOptions(data=str(data)), stop).nimg == 16  # asked for by name
    write_json(data / "dataset.json", labels | {"classes": ["a", "b", "c", "d"]})
    with pytest.raises(DataError, match=r"new: a, b, c, d"):
        train_here(run, LaunchOptions(data=str(data)), stop)
