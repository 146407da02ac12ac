"""When one of several processes fails, people hear which one and why."""

from __future__ import annotations

import signal

import pytest

from tests.training.tiny_runs import make_run
from threedgp.config.workspace import Workspace
from threedgp.errors import ThreeDGPError
from threedgp.launch.here import StopRequest
from threedgp.launch.options import LaunchOptions
from threedgp.launch.several import explain, run_workers
from threedgp.launcher import Failure, NoMeeting, WorkersFailed
from threedgp_cli.train import WORKER

LOST = {"kind": "contact", "text": "RuntimeError: gloo: connection closed by peer."}


@pytest.fixture
def run(tmp_path):
    return make_run(Workspace(tmp_path), "night")


def test_bad_input_found_by_any_process_is_reported_as_if_there_were_one(run):
    failures = [
        Failure(0, 100, 1, LOST),
        Failure(1, 101, 2, {"kind": "error", "text": "Use less."}),
        Failure(2, 102, -signal.SIGTERM),
    ]
    explained = explain(WorkersFailed(failures), run, LaunchOptions(3))
    assert (str(explained), explained.exit_code) == ("Use less.", 2)


def test_a_killed_process_is_named_before_those_that_miss_it(run):
    failures = [Failure(0, 100, 1, LOST), Failure(1, 101, -signal.SIGKILL)]
    text = str(explain(WorkersFailed(failures), run, LaunchOptions(2)))
    assert "process 1 (pid 101) was killed by SIGKILL" in text
    assert "memory" in text
    assert "3dgp resume night" in text
    text = str(explain(WorkersFailed(failures[:1]), run, LaunchOptions(1, nodes=2)))
    assert "process 0 lost contact" in text
    assert "another machine" in text


def test_a_crash_is_told_with_its_place_and_silence_as_such(run):
    crash = Failure(0, 100, 1, {"kind": "crash", "text": "ValueError: odd (in x.py, line 3)."})
    text = str(explain(WorkersFailed([Failure(1, 101, -signal.SIGTERM), crash]), run, LaunchOptions(2)))
    assert "process 0 failed: ValueError: odd (in x.py, line 3)." in text
    assert "exit code 7" in str(explain(WorkersFailed([Failure(0, 100, 7)]), run, LaunchOptions(2)))


def test_machines_that_do_not_meet_are_told_what_to_check(run):
    text = str(explain(NoMeeting("1 of 2 machines came to node1:29500."), run, LaunchOptions(1, nodes=2)))
    assert "1 of 2 machines came to node1:29500" in text
    assert "same --rendezvous" in text


@pytest.mark.slow
def test_an_error_of_real_workers_reaches_the_caller(run):
    with pytest.raises(ThreeDGPError, match="There is no data set"):
        run_workers(run, LaunchOptions(2), StopRequest(), WORKER)
    assert run.holder() is None
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "lock", "samples"]
