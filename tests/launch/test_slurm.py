"""Cluster jobs: what is asked of Slurm, requeueing after its warning, and chains that stop when the run is done."""

from __future__ import annotations

import os
import pickle
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.training.tiny_runs import make_run, make_workspace
from threedgp.config.workspace import Workspace
from threedgp.errors import MissingExtraError, ThreeDGPError, UsageError
from threedgp.launch.options import LaunchOptions
from threedgp.launch.slurm import (
    SlurmOptions,
    TrainingJob,
    parse_memory,
    parse_time,
    resume_arguments,
    sbatch_script,
    submit,
)
from threedgp.runs.run import Run

submitit = pytest.importorskip("submitit")
CPU = LaunchOptions(1, "cpu")


def sbatch_options(script: str) -> dict[str, str]:
    return {name: value.strip("'") for name, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE)}


def test_the_script_asks_for_what_the_options_say(tmp_path):
    launch = LaunchOptions(4, "cuda", nodes=2)
    options = SlurmOptions("gpu", "lab", 90, 200.0, 24, extra={"qos": "high", "exclude": "node7"})
    script = sbatch_script(tmp_path / "runs" / "night", "night", launch, options)
    assert script.startswith("#!/bin/bash")
    found = sbatch_options(script)
    expected = {
        "job-name": "night",
        "partition": "gpu",
        "account": "lab",
        "time": "90",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "24",
        "mem": "204800M",
        "signal": "USR2@120",
        "requeue": "",
        "open-mode": "append",
        "qos": "high",
        "exclude": "node7",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["output"].startswith(str(tmp_path / "runs" / "night" / "slurm"))
    assert re.search(r"^srun .*submitit\.core\._submit", script, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_defaults_follow_the_processes(tmp_path):
    found = sbatch_options(sbatch_script(tmp_path, "x", LaunchOptions(2, "cuda"), SlurmOptions()))
    assert (found["time"], found["cpus-per-task"], found["mem"]) == ("1440", "10", "131072M")
    assert "gpus-per-node" not in sbatch_options(sbatch_script(tmp_path, "x", CPU, SlurmOptions()))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("30:00", 30),
        ("10:01", 11),
        ("24:00:00", 1440),
        ("2-12", 3600),
        ("1-2:30", 1590),
        ("1-0:0:30", 1441),
    ],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1d", "0", "2"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="--time"):
        parse_time(text)


def test_memory_is_read_as_slurm_reads_it():
    assert [parse_memory(text) for text in ("64G", "512M", "2048", "1.5T", "8GB")] == [64.0, 0.5, 2.0, 1536.0, 8.0]
    for text in ("", "lots", "0G", "-4G", "4X"):
        with pytest.raises(UsageError, match="--mem"):
            parse_memory(text)


def test_without_submitit_or_slurm_people_hear_what_to_do(tmp_path, monkeypatch):
    run = make_run(Workspace(tmp_path), "run")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="login node"):
        submit(run, CPU, SlurmOptions())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"threedgp\[slurm\]"):
        submit(run, CPU, SlurmOptions())


def test_a_job_names_everything_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(Workspace(Path(".")), "run")
    arguments = resume_arguments(run, LaunchOptions(4, "cuda", 2, data="set.zip", wandb="project"))
    assert arguments == [
        "run", "--workspace", str(tmp_path), "--gpus", "4", "--data", str(tmp_path / "set.zip"), "--wandb", "project",
    ]  # fmt: skip
    job = pickle.loads(pickle.dumps(TrainingJob(str(run.folder.resolve()), resume_arguments(run, LaunchOptions(2)), 1)))
    assert (job.folder, job.nodes) == (str(run.folder.resolve()), 1)
    assert job.arguments[-2:] == ["--procs", "2"]


def test_nodes_meet_at_the_first_of_the_job(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08],gpu11")
    assert TrainingJob("x", [], 3).meeting_point() == ["--nodes", "3", "--rendezvous", "gpu07:24567"]
    assert TrainingJob("x", [], 1).meeting_point() == []


def test_a_finished_run_ends_the_job_at_once(tmp_path):
    (tmp_path / "DONE").touch()
    began = time.monotonic()
    assert "complete" in TrainingJob(str(tmp_path), ["this would fail"], 1)()
    assert time.monotonic() - began < 5


def install(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands named like Slurm's: sbatch keeps the script and numbers the jobs from 101."""
    folder = tmp_path / "slurm-commands"
    folder.mkdir()
    install(folder, "srun", "true")
    install(
        folder,
        "sbatch",
        f'n=$(ls {folder}/*.sh 2>/dev/null | wc -l); n=$((101 + n)); cp "$1" {folder}/$n.sh\n'
        'echo "Submitted batch job $n"',
    )
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_jobs_of_a_chain_wait_for_each_other(tmp_path, slurm):
    run = make_run(Workspace(tmp_path), "run")
    assert submit(run, CPU, SlurmOptions("gpu", chain=3)) == ["101", "102", "103"]
    dependencies = [sbatch_options((slurm / f"{n}.sh").read_text()).get("dependency") for n in (101, 102, 103)]
    assert dependencies == [None, "afterany:101", "afterany:102"]
    assert len(list((run.folder / "slurm").glob("*submitted.pkl"))) == 3


def test_what_slurm_says_against_a_job_is_passed_on(tmp_path, slurm):
    install(slurm, "sbatch", 'echo "sbatch: error: invalid partition specified: gpuu" >&2; exit 1')
    with pytest.raises(ThreeDGPError, match="invalid partition specified: gpuu"):
        submit(make_run(Workspace(tmp_path), "run"), CPU, SlurmOptions("gpuu"))


def wait_until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the job's process")
def test_a_warned_job_saves_requeues_itself_and_goes_on_to_the_end(tmp_path, monkeypatch):
    """Slurm's warning signal to a job of submitit's local executor, which requeues like a cluster does."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    run = make_run(make_workspace(tmp_path), "run", "training.kimg=2.0", "training.tick_kimg=0.032")
    executor = submitit.LocalExecutor(run.folder / "slurm")
    executor.update_parameters(timeout_min=5, signal_delay_s=1)
    job = executor.submit(TrainingJob(str(run.folder), resume_arguments(run, CPU), 1))
    wait_until(lambda: len(run.checkpoints()) >= 2)
    reached = int(run.checkpoints()[-1].name)
    os.kill(parent_of(run.holder()["pid"]), signal.SIGUSR2)
    wait_until(lambda: run.holder() is None)
    assert reached <= int(run.checkpoint("latest").name) < 2000
    assert not (run.folder / "DONE").exists()
    wait_until(lambda: run.holder() is not None)  # the same job again
    os.kill(run.holder()["pid"], signal.SIGTERM)
    assert job.result() == "stopped with a checkpoint"
    assert int(Run(run.folder).checkpoint("latest").name) > reached
    starts = (run.folder / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2
    assert not (run.folder / "DONE").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"account": "lab\n#SBATCH --wrap=date"},
        {"partition": "gpu\rx"},
        {"extra": {"qos": "high\u2028"}},
        {"extra": {"qos\n": "high"}},
        {"extra": {"": "x"}},
    ],
)
def test_no_option_adds_a_line_to_the_script(given):
    with pytest.raises(UsageError, match=r"--(account|partition|sbatch)"):
        SlurmOptions(**given)
