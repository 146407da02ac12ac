"""`3dgp train` and `3dgp resume` from the outside: plans, JSON, exit codes, kills and cluster scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.small import tiny_profile
from tests.training.tiny_runs import OVERRIDES, free_port, make_run, make_workspace
from threedgp.config.profile import save_profile
from threedgp.errors import CheckpointError, UsageError
from threedgp.files import read_json_lines, write_json
from threedgp.runs.catalog import verify_checkpoint
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run
from threedgp_cli.main import app

LONG = ("--set", "training.kimg=1000.0")


@pytest.fixture
def workspace(tmp_path):
    made = make_workspace(tmp_path)
    save_profile(tiny_profile(*OVERRIDES), tmp_path / "tiny.yaml")
    return made


def start(workspace, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "threedgp_cli.main", *arguments],
        cwd=workspace.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, output, errors


def run_3dgp(workspace, *arguments: str, **environment: str) -> tuple[int, str, str]:
    return finish(start(workspace, *arguments, **environment))


@pytest.fixture
def call(workspace, monkeypatch, capsys):
    """Run a command that starts no process inside this one, which saves loading everything again."""
    monkeypatch.chdir(workspace.root)

    def run(*arguments: str) -> tuple[str, str]:
        app(args=list(arguments), prog_name="3dgp", standalone_mode=False)
        return capsys.readouterr()

    return run


def wait_for_checkpoints(run: Run, count: int, *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while len(run.checkpoints()) < count:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def workers_of(run: Run) -> list[int]:
    """Processes that work on a run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "threedgp_cli.worker" in line and str(run.folder) in line:
            found.append(int(entry.name))
    return sorted(found)


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to find the workers")


def test_training_to_the_end_and_longer(workspace, call):
    code, output, errors = run_3dgp(workspace, "train", "-p", "tiny.yaml", "--json")
    assert code == 0
    result = json.loads(output)
    assert (result["run"], result["finished"], result["checkpoint"]) == ("tiny-001", True, "000000064")
    assert re.search(r"^batch +8 = 1 x 8", errors, re.MULTILINE)
    run = Run(workspace.runs / "tiny-001")
    verify_checkpoint(run.checkpoints()[-1])
    output, _ = call("resume")
    assert "tiny-001 is complete" in output
    assert "--set training.kimg" in output
    output, _ = call("resume", "--set", "training.kimg=0.01")
    assert "is complete: 0.064 thousand images" in output
    code, output, errors = run_3dgp(workspace, "resume", "--set", "training.kimg=0.072")
    assert code == 0
    assert "goes on at 0.064 thousand images" in output
    assert output.rstrip().endswith(f"complete: 0.072 thousand images, in {run.folder}.")
    assert len(read_json_lines(run.folder / "starts.jsonl")) == 2
    assert Run(run.folder).profile.training.kimg == 0.072


@pytest.mark.slow
@needs_proc
def test_two_processes_stop_on_ctrl_c_die_with_their_parent_and_are_missed(workspace, call):
    run = Run(workspace.runs / "night")
    process = start(workspace, "train", "-p", "tiny.yaml", "--run", "night", "--procs", "2", *LONG)
    wait_for_checkpoints(run, 1, process)
    with pytest.raises(UsageError, match=r"Run 'night' is being trained by process \d+"):
        call("resume", "night", "--procs", "2")
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)
    assert code == 130
    assert "Stopping with a checkpoint" in errors
    assert re.search(r"Run night stopped at [\d.]+ thousand images. Go on with: 3dgp resume night", output)
    stopped = run.checkpoints()[-1]
    verify_checkpoint(stopped)
    assert not (run.folder / "stop").exists()

    process = start(workspace, "resume", "night", "--procs", "2")
    wait_for_checkpoints(run, len(run.checkpoints()) + 1, process)
    os.kill(workers_of(run)[1], signal.SIGKILL)
    code, _, errors = finish(process)
    assert code == 1
    assert "was killed by SIGKILL" in errors
    assert "3dgp resume night" in errors
    assert workers_of(run) == []

    process = start(workspace, "resume", "night", "--procs", "2")
    wait_for_checkpoints(run, len(run.checkpoints()) + 1, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (workers_of(run) or run.holder() is not None) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_of(run) == []
    assert run.holder() is None
    verify_checkpoint(run.checkpoint("latest"))


@pytest.mark.slow
def test_one_process_saves_on_a_warning_and_stops_at_once_on_a_second_ctrl_c(workspace):
    run = Run(workspace.runs / "night")
    process = start(workspace, "train", "-p", "tiny.yaml", "--run", "night", *LONG)
    wait_for_checkpoints(run, 1, process)
    process.send_signal(signal.SIGUSR1)
    code, output, _ = finish(process)
    assert code == 0
    assert "Go on with: 3dgp resume night" in output
    verify_checkpoint(run.checkpoints()[-1])
    # the command of before goes on where it stopped; iterations that take long are given up by a second Ctrl-C
    process = start(workspace, "train", "-p", "tiny.yaml", "--run", "night", *LONG, "--set", "training.tick_kimg=0.016")
    wait_for_checkpoints(run, len(run.checkpoints()) + 1, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    code, *_ = finish(process)
    assert code == 130
    verify_checkpoint(run.checkpoint("latest"))


@pytest.mark.slow
def test_two_machines_meet(workspace):
    shared = ("--nodes", "2", "--procs", "1", "--rendezvous", f"localhost:{free_port()}")
    command = ("train", "-p", "tiny.yaml", "--run", "both", *shared, "--set", "training.kimg=0.016")
    machines = [start(workspace, *command) for _ in range(2)]
    for machine in machines:
        code, output, errors = finish(machine)
        assert code == 0, errors
        assert "Run both is complete" in output
    run = Run(workspace.runs / "both")
    verify_checkpoint(run.checkpoints()[-1])
    assert not list(workspace.runs.glob("both?*"))


def test_a_dry_run_writes_nothing_and_prints_the_script_alone(workspace, call):
    output, errors = call(
        "train", "-p", "tiny.yaml", "--dry-run", "--slurm", "--procs", "2", "--partition", "long", "--time", "2-0",
        "--sbatch", "qos=low",
    )  # fmt: skip
    assert output.startswith("#!/bin/bash")
    for line in ("--partition=long", "--time=2880", "--qos=low", "--cpus-per-task=10"):
        assert f"#SBATCH {line}" in output
    assert "2 CPU processes" in errors
    assert not workspace.runs.exists()
    output, _ = call("train", "-p", "tiny.yaml", "--dry-run", "--json")
    assert json.loads(output)["images"] == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chain", "3"], "--chain: only with --slurm"),
        (["--wandb", "x"], "pip install wandb"),
        (["--slurm", "--procs", "1"], "login node"),
        (["--slurm", "--sbatch", "qos"], "--sbatch qos: write it as NAME=VALUE"),
        (["--slurm", "--time", "soon"], "--time soon"),
        (["--nodes", "2", "--procs", "1", "--rendezvous", "localhost:1"], "--run"),
        (["--procs", "3"], "cannot be split over 3"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(workspace, call, monkeypatch, arguments, words):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=words):
        call("train", "-p", "tiny.yaml", *arguments)
    assert not workspace.runs.exists()


def test_a_refused_resume_of_a_run_given_by_path_changes_nothing(workspace, call):
    """Somebody's copy, outside the workspace's runs/: checked like a run called by its name."""
    run = make_run(workspace, "night")
    save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(1)}}, {}, nimg=16, profile=run.profile)
    write_json(run.folder / "data.json", {"path": str(workspace.root / "data" / "noise" / "16")})
    copy = Path(shutil.copytree(run.folder, workspace.root / "elsewhere" / "copy"))
    before = (copy / "config.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.generator\.w_dim = 8"):
        call("resume", str(copy), "--set", "model.generator.w_dim=32")
    assert (copy / "config.yaml").read_bytes() == before
    output, _ = call("resume", str(copy), "--dry-run")
    assert "goes on at 0.016" in output
