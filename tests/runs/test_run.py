"""Run folders: atomic numbering, one trainer at a time, the best checkpoint by the metric's own direction."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from threedgp.config.profile import load_profile
from threedgp.config.workspace import Workspace
from threedgp.errors import CheckpointError, ConfigError, UsageError
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run, find_checkpoint, run_of
from threedgp.runs.summary import summarize_all

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def profile():
    return load_profile("tiny-cpu")


def save(run, nimg):
    return save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(2)}}, {}, nimg=nimg)


def test_a_new_run_is_complete_and_reads_its_profile_back(workspace, profile):
    run = Run.create(workspace, profile)
    assert run.folder == workspace.runs / "tiny-cpu-001"
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "samples"]
    assert run.profile == profile
    assert run.state() == "empty"
    assert Run.create(workspace, profile).name == "tiny-cpu-002"
    assert Run.create(workspace, profile, "mine").name == "mine"
    assert Run.create(workspace, profile).name == "tiny-cpu-003"
    assert [path.name for path in workspace.runs.iterdir() if path.name.startswith(".")] == []


def test_a_taken_name_is_refused_and_the_old_run_is_untouched(workspace, profile):
    run = Run.create(workspace, profile, "mine")
    before = run.config.read_bytes()
    with pytest.raises(UsageError, match="3dgp resume mine"):
        Run.create(workspace, profile, "mine")
    assert run.config.read_bytes() == before
    assert len(list(workspace.runs.iterdir())) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 101, "a b", "ä", "-x"])
def test_names_that_cannot_be_folders_are_refused(workspace, profile, name):
    with pytest.raises(UsageError, match="cannot be called"):
        Run.create(workspace, profile, name)
    assert not workspace.runs.exists()


def _create_many(root, barrier, names):
    barrier.wait()
    made = [Run.create(Workspace(root), load_profile("tiny-cpu")).name for _ in range(8)]
    names.put(made)


def test_numbers_are_unique_when_many_processes_create_runs_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, names = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_create_many, args=(tmp_path, barrier, names)) for _ in range(4)]
    for worker in workers:
        worker.start()
    made = sorted(name for _ in workers for name in names.get(timeout=60))
    for worker in workers:
        worker.join()
    assert made == [f"tiny-cpu-{number:03d}" for number in range(1, 33)]
    assert all(run.profile.name == "tiny-cpu" for run in Run.all(Workspace(tmp_path))[:3])


def test_runs_are_found_by_name_folder_age_and_nearest_name(workspace, profile):
    with pytest.raises(UsageError, match="3dgp train --profile NAME"):
        Run.newest(workspace)
    first, second = Run.create(workspace, profile), Run.create(workspace, profile)
    os.utime(first.config, ns=(1, 1))
    assert [run.name for run in Run.all(workspace)] == ["tiny-cpu-001", "tiny-cpu-002"]
    assert Run.newest(workspace) == second
    with pytest.raises(UsageError, match="has a checkpoint yet"):
        Run.newest(workspace, with_checkpoint=True)
    save(first, 100)
    assert Run.newest(workspace, with_checkpoint=True) == first
    assert Run.open(workspace, "tiny-cpu-001") == first
    assert Run.open(workspace, first.folder).folder == first.folder
    with pytest.raises(UsageError, match="Did you mean 'tiny-cpu-001'"):
        Run.open(workspace, "tinycpu-001")
    (workspace.runs / "not-a-run").mkdir()
    assert len(Run.all(workspace)) == 2


def test_a_broken_config_is_named(workspace, profile):
    run = Run.create(workspace, profile)
    run.config.write_text("name: x\ndata: {resolution: 31.5}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml.*data\.resolution"):
        Run(run.folder).profile  # noqa: B018


HOLDER = """
import sys, time
from pathlib import Path
from threedgp.runs.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_in_use_names_its_process_and_is_free_after_kill_9(workspace, profile):
    run = Run.create(workspace, profile)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert run.holder()["pid"] == process.pid
        assert run.state() == "running"
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on host \S+\."), run.lock():
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run.holder() is None
    assert run.state() == "empty"
    with run.lock():
        assert run.holder()["pid"] == os.getpid()
        with pytest.raises(UsageError, match=f"process {os.getpid()}"), run.lock():
            pass
    assert run.holder() is None
    with run.lock():
        pass


def test_looking_at_the_lock_never_makes_a_start_fail(workspace, profile):
    run = Run.create(workspace, profile)
    context = multiprocessing.get_context("fork")
    watcher = context.Process(target=_watch, args=(run.folder,))
    watcher.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with run.lock():
                pass
    finally:
        watcher.kill()
        watcher.join()


def _watch(folder):
    while True:
        Run(folder).holder()
        time.sleep(0.001)


def test_the_state_follows_the_length_of_training(workspace, profile):
    run = Run.create(workspace, profile)
    save(run, 10)
    assert run.state() == "stopped"
    save(run, round(1000 * profile.training.kimg))
    assert run.state() == "done"
    assert run.size() > run.config.stat().st_size


def score(run, nimg, metric, value, **more):
    run.append_metrics({"metric": metric, "results": {metric: value}, "checkpoint": f"{nimg:09d}", **more})


def test_best_follows_the_direction_of_each_metric(workspace, profile):
    run = Run.create(workspace, profile)
    paths = {nimg: save(run, nimg) for nimg in (1000, 2000, 3000)}
    assert run.best("fid2k_full") is None
    for nimg, fid, nfs in ((1000, 30.0, 5.0), (2000, 20.0, 7.0), (3000, 25.0, 6.0)):
        score(run, nimg, "fid2k_full", fid)
        score(run, nimg, "nfs256", nfs)
    assert run.best("fid2k_full")[:2] == (paths[2000], 20.0)
    assert run.best("nfs256")[:2] == (paths[2000], 7.0)
    assert run.best("kid50k_full") is None
    assert [line["metric"] for line in run.metrics()] == ["fid2k_full", "nfs256"] * 3
    assert all(line["timestamp"] > 0 for line in run.metrics())


def test_best_ignores_deleted_nonfinite_and_replaced_values_and_takes_the_earliest_of_equals(workspace, profile):
    run = Run.create(workspace, profile)
    paths = {nimg: save(run, nimg) for nimg in (1000, 2000, 3000, 4000)}
    score(run, 999, "fid2k_full", 1.0)  # never written or deleted since
    score(run, 1000, "fid2k_full", float("nan"))
    score(run, 2000, "fid2k_full", 3.0)
    score(run, 3000, "fid2k_full", 20.0)
    score(run, 4000, "fid2k_full", 20.0)
    score(run, 2000, "fid2k_full", 50.0)
    run.append_metrics({"metric": "fid2k_full", "results": {"fid2k_full": 0.1}, "checkpoint": None})
    with open(run.metrics_file, "a") as file:
        file.write('{"metric": "fid2k_full", "results": {"fid2k_fu')
    assert run.best("fid2k_full")[:2] == (paths[3000], 20.0)
    assert "NaN" not in run.metrics_file.read_text()


def test_a_stand_in_metric_chooses_only_where_the_real_one_is_missing(workspace, profile):
    tree = profile.model_copy(update={"training": profile.training.model_copy(update={"metrics": ["fid2k_full"]})})
    run = Run.create(workspace, tree)
    paths = {nimg: save(run, nimg) for nimg in (1000, 2000, 3000)}
    score(run, 1000, "fd_efflite0_2k_full", 0.5)
    score(run, 2000, "fd_efflite0_2k_full", 0.7)
    assert run.best()[:2] == (paths[1000], 0.5)
    assert run.checkpoint() == paths[1000]
    score(run, 3000, "fid2k_full", 30.0)
    assert run.best()[:2] == (paths[3000], 30.0)


def test_best_by_one_value_of_a_metric_that_has_several(workspace, profile):
    run = Run.create(workspace, profile)
    paths = {nimg: save(run, nimg) for nimg in (1000, 2000)}
    for nimg, precision, recall in ((1000, 0.5, 0.4), (2000, 0.6, 0.3)):
        results = {"pr50k3_full_precision": precision, "pr50k3_full_recall": recall}
        run.append_metrics({"metric": "pr50k3_full", "results": results, "checkpoint": paths[nimg]})
    assert run.best("pr50k3_full_recall")[:2] == (paths[1000], 0.4)
    assert run.best("pr50k3_full")[:2] == (paths[2000], 0.6)


@pytest.mark.parametrize("metric", ["accuracy", "", "fidelity"])
def test_a_metric_without_a_known_direction_is_an_error(workspace, profile, metric):
    with pytest.raises(UsageError, match="is no metric"):
        Run.create(workspace, profile).best(metric)


def test_checkpoints_are_chosen_by_best_latest_kimg_name_or_path(workspace, profile):
    run = Run.create(workspace, profile)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        run.checkpoint()
    first, second, third = save(run, 400_040), save(run, 800_080), save(run, 1_200_000)
    assert run.checkpoint("best") == third  # nothing was scored: the latest
    main = profile.training.metrics[0] if profile.training.metrics else None
    if main:
        score(run, 800_080, main, 1.0)
        assert run.checkpoint("best") == second
    assert run.checkpoint("latest") == third
    assert run.checkpoint(400.04) == run.checkpoint("400.04") == run.checkpoint("0400.040") == first
    with pytest.raises(CheckpointError, match=r"no checkpoint .400.\. .*400\.04"):
        run.checkpoint("400")
    assert run.checkpoint("000800080") == second
    assert run.checkpoint(first) == first
    with pytest.raises(CheckpointError, match=r"'500'.*400\.04, 800\.08, 1200"):
        run.checkpoint(500)
    os.truncate(third / "G.safetensors", 3)
    assert run.checkpoint("latest") == second
    for path in (first, second):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="All 3 checkpoints"):
        run.checkpoint("latest")


def test_evaluation_finds_run_and_checkpoint_from_whatever_it_is_given(workspace, profile, tmp_path, monkeypatch):
    old, new = Run.create(workspace, profile), Run.create(workspace, profile)
    os.utime(old.config, ns=(1, 1))
    first, second = save(old, 1000), save(new, 2000)
    assert find_checkpoint(workspace) == (new, second)
    assert find_checkpoint(workspace, old.name) == (old, first)
    assert find_checkpoint(workspace, old.folder, "latest") == (old, first)
    assert find_checkpoint(workspace, first)[1] == first
    assert find_checkpoint(workspace, None, first)[0].name == old.name
    assert run_of(first).profile == profile
    with pytest.raises(UsageError, match="no run 'nothing'"):
        find_checkpoint(workspace, "nothing")
    lone = tmp_path / "elsewhere" / "000000001"
    first.rename(lone.parent.parent / "moved")
    with pytest.raises(CheckpointError, match="does not lie in a run folder"):
        run_of(tmp_path / "moved")


def test_metric_lines_of_other_programs_do_not_disturb(workspace, profile):
    run = Run.create(workspace, profile)
    path = save(run, 1000)
    run.metrics_file.write_text(json.dumps([1, 2]) + "\n" + json.dumps({"results": 3}) + "\n")
    score(run, 1000, "fid2k_full", 9.0)
    assert run.best("fid2k_full")[:2] == (path, 9.0)


@pytest.mark.parametrize("text", ["", "# nothing\n", "data: {}\n", "[" * 100_000, "a: &x [1]\nb: *x\n"])
def test_a_run_without_a_whole_profile_is_broken_and_hides_no_other(workspace, profile, text):
    run, other = Run.create(workspace, profile), Run.create(workspace, profile)
    run.config.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        _ = Run(run.folder).profile
    states = {summary.name: summary.state for summary in summarize_all(workspace)}
    assert states == {run.name: "broken", other.name: "empty"}


def test_one_start_at_a_time_changes_a_run(workspace, profile):
    run = Run.create(workspace, profile)
    with run.starting(), pytest.raises(UsageError, match="in use by process"), run.starting():
        pass


def test_children_do_not_keep_a_lock(workspace, profile):
    run = Run.create(workspace, profile)
    ready, done = os.pipe()
    with run.lock():
        child = os.fork()
        if child == 0:
            os.write(done, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
    try:
        assert run.holder() is None
        with run.lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
