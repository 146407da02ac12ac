"""When one of several processes fails, people hear which one and why."""

from __future__ import annotations

import signal

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from tests.training.tiny_runs import make_run
from threedgp.config.workspace import Workspace
from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.launch.here import LaunchOptions, StopRequest
from threedgp.launch.torchrun import explain, launch_config, report_failure, run_workers


@pytest.fixture
def run(tmp_path):
    return make_run(Workspace(tmp_path), "night")


def failure(tmp_path, monkeypatch, rank, exitcode, error=None):
    """What torchrun knows of a process that ended like this."""
    file = tmp_path / f"reason-{rank}.json"
    if error is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        try:
            raise error
        except Exception as raised:
            report_failure(raised)
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=exitcode, error_file=str(file))


LOST = RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")


def test_bad_input_found_by_any_process_is_reported_as_if_there_were_one(run, tmp_path, monkeypatch):
    failures = {
        0: failure(tmp_path, monkeypatch, 0, 1, LOST),
        1: failure(tmp_path, monkeypatch, 1, 2, UsageError("Use less.")),
        2: failure(tmp_path, monkeypatch, 2, -signal.SIGTERM),
    }
    explained = explain(ChildFailedError("worker", failures), run, LaunchOptions(3))
    assert str(explained) == "Use less."
    assert explained.exit_code == 2
    failures[1] = failure(tmp_path, monkeypatch, 1, 1, DataError("Bad picture."))
    explained = explain(ChildFailedError("worker", failures), run, LaunchOptions(3))
    assert (str(explained), explained.exit_code) == ("Bad picture.", 1)


def test_a_killed_process_is_named_before_those_that_miss_it(run, tmp_path, monkeypatch):
    failures = {
        0: failure(tmp_path, monkeypatch, 0, 1, LOST),
        1: failure(tmp_path, monkeypatch, 1, -signal.SIGKILL),
    }
    text = str(explain(ChildFailedError("worker", failures), run, LaunchOptions(2)))
    assert "process 1 (pid 101) was killed by SIGKILL" in text
    assert "memory" in text
    assert "3dgp resume night" in text
    del failures[1]
    text = str(explain(ChildFailedError("worker", failures), run, LaunchOptions(1, nodes=2)))
    assert "process 0 lost contact" in text
    assert "another machine" in text


def test_a_bug_shows_its_place(run, tmp_path, monkeypatch):
    failures = {
        0: failure(tmp_path, monkeypatch, 0, 1, ValueError("odd\nsecond line")),
        1: failure(tmp_path, monkeypatch, 1, -signal.SIGTERM),
    }
    text = str(explain(ChildFailedError("worker", failures), run, LaunchOptions(2)))
    assert "process 0 failed: ValueError: odd (in test_workers.py, line " in text
    assert "second line" not in text
    silent = {0: failure(tmp_path, monkeypatch, 5, 7)}
    assert "exit code 7" in str(explain(ChildFailedError("worker", silent), run, LaunchOptions(2)))


def test_machines_that_do_not_meet_are_told_what_to_check(run):
    options = LaunchOptions(1, nodes=2, rendezvous="node1:29500")
    text = str(explain(RendezvousTimeoutError(), run, options))
    assert "did not meet at node1:29500" in text
    text = str(explain(torch.distributed.DistNetworkError("Failed to recv"), run, options))
    assert "contact with another machine was lost" in text
    other = OSError(5, "x")
    assert explain(other, run, options) is other


def test_a_worker_outside_torchrun_leaves_no_report(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    report_failure(ValueError("x"))


def test_one_machine_meets_itself_and_several_meet_where_they_are_told(run):
    alone = launch_config(run, LaunchOptions(3), "/nowhere")
    assert (alone.min_nodes, alone.max_nodes, alone.nproc_per_node, alone.max_restarts) == (1, 1, 3, 0)
    assert alone.rdzv_endpoint == "localhost:0"
    several = launch_config(run, LaunchOptions(2, nodes=4, rendezvous="a:1"), "/nowhere")
    assert (several.min_nodes, several.max_nodes, several.rdzv_endpoint) == (4, 4, "a:1")
    assert several.run_id == "night"


def test_an_error_of_real_workers_reaches_the_caller(run):
    with pytest.raises(ThreeDGPError, match="There is no data set"):
        run_workers(run, LaunchOptions(2), StopRequest())
    assert run.holder() is None
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "lock", "samples"]
