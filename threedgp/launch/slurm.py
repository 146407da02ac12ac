"""Training as jobs of a Slurm cluster, through submitit.

A job is `3dgp resume RUN` in a process of its own on each node. When Slurm warns (pre-emption, or the end of the job's
time), that process writes a checkpoint and ends, and the job puts itself back into the queue. A chain is the same job
several times, each waiting for the one before; once the run is complete the others end as soon as they start.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threedgp.errors import MissingExtraError, ThreeDGPError, UsageError
from threedgp.runs.run import DONE_FILE, Run

if TYPE_CHECKING:
    from threedgp.launch.options import LaunchOptions

FOLDER = "slurm"  # in the run folder: sbatch scripts and logs
WARNING_SECONDS = 120  # before a job is ended, Slurm sends a signal
RESTARTS = 100  # a single job goes back into the queue this often when its time is over
FIRST_PORT, PORTS = 10000, 20000  # jobs that share a node meet at different ports


@dataclass(frozen=True)
class SlurmOptions:
    """What to ask the cluster for, on each node.

    Attributes:
        partition, account: as sbatch takes them.
        minutes: time of one job.
        memory_gb: None: 64 GB for each process.
        cpus: None: 5 for each process.
        chain: jobs in a row.
        extra: more sbatch options by name, without dashes in front.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = 24 * 60
    memory_gb: float | None = None
    cpus: int | None = None
    chain: int = 1
    extra: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a text that would not stay in its line of the sbatch script."""
        texts = {"--partition": self.partition or "", "--account": self.account or ""}
        for name, value in (self.extra or {}).items():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name, re.ASCII):
                raise UsageError(f"--sbatch {name!a}: this is no name of an sbatch option, as qos or mail-type are.")
            texts[f"--sbatch {name}"] = value
        for option, text in texts.items():
            if not text.isprintable():
                raise UsageError(f"{option} {text!a}: line breaks and control characters are not allowed here.")


class TrainingJob:
    """What submitit runs on each node. It is pickled into the queue, so it holds only text and numbers.

    Args:
        folder: the run folder.
        arguments: of `3dgp resume`, see `resume_arguments`.
        nodes: machines of the job; the first one is where they meet.
    """

    def __init__(self, folder: str, arguments: list[str], nodes: int):
        self.folder, self.arguments, self.nodes = folder, arguments, nodes
        self._process: subprocess.Popen | None = None
        self._ended = threading.Event()

    def __call__(self) -> str:
        """Train until the end, a stop, or a failure; returns a word for the job's result file."""
        if (Path(self.folder) / DONE_FILE).exists():
            return "nothing to do: the run is complete"
        arguments = [*self.arguments, *self.meeting_point()]
        self._process = subprocess.Popen([sys.executable, "-m", "threedgp_cli.main", "resume", *arguments])
        threading.Thread(target=self._watch, args=[self._process], daemon=True).start()
        self._wait()
        if self._process.returncode != 0:
            raise ThreeDGPError(f"3dgp resume ended with exit code {self._process.returncode}; see the job's log.")
        return "complete" if (Path(self.folder) / DONE_FILE).exists() else "stopped with a checkpoint"

    def checkpoint(self) -> Any:
        """submitit calls this in the handler of Slurm's warning: what to put back into the queue."""
        import submitit

        if self._process is not None and not self._ended.is_set():
            os.kill(self._process.pid, signal.SIGUSR1)
            self._wait()
        return submitit.helpers.DelayedSubmission(TrainingJob(self.folder, self.arguments, self.nodes))

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingJob, (self.folder, self.arguments, self.nodes)

    def _watch(self, process: subprocess.Popen) -> None:
        process.wait()
        self._ended.set()

    def _wait(self) -> None:
        """Wait without locks: the same thread may already be waiting when the handler interrupts it."""
        while not self._ended.is_set():
            time.sleep(0.2)

    def meeting_point(self) -> list[str]:
        """Arguments of `3dgp resume` that tell the nodes of this job where to meet."""
        if self.nodes == 1:
            return []
        import submitit

        job = submitit.JobEnvironment()
        port = FIRST_PORT + int(re.sub(r"\D", "", job.job_id)) % PORTS
        return ["--nodes", str(self.nodes), "--rendezvous", f"{job.hostnames[0]}:{port}"]


def submit(run: Run, launch: LaunchOptions, options: SlurmOptions) -> list[str]:
    """Put a run's jobs into the queue; returns their numbers.

    Raises:
        MissingExtraError: submitit is not installed.
        UsageError: there is no Slurm here.
        ThreeDGPError: Slurm refuses the job; says what it said.
    """
    require_slurm()
    submitit = require_submitit()
    job = TrainingJob(str(run.folder.resolve()), resume_arguments(run, launch), launch.nodes)
    executor = _executor(submitit.SlurmExecutor, run.folder, run.name, launch, options)
    numbers: list[str] = []
    for _ in range(options.chain):
        if numbers:
            executor.update_parameters(dependency=f"afterany:{numbers[-1]}")
        try:
            numbers.append(executor.submit(job).job_id)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise ThreeDGPError(f"Slurm refused job {len(numbers) + 1} of {options.chain}: {reason}") from None
    return numbers


def sbatch_script(folder: Path, name: str, launch: LaunchOptions, options: SlurmOptions) -> str:
    """The script that `submit` would hand to sbatch, also where there is no Slurm.

    Args:
        folder: the run folder, which need not exist.
        name: the run's name.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    submitit = require_submitit()

    class Preview(submitit.SlurmExecutor):  # type: ignore[name-defined, misc]
        """Writes scripts on machines without Slurm."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = _executor(Preview, folder, name, launch, options)
    return executor._make_submission_file_text(executor._submitit_command_str, "preview")


def _executor(kind: Any, folder: Path, name: str, launch: LaunchOptions, options: SlurmOptions) -> Any:
    """submitit's executor for jobs of one task on each node, which starts that node's processes."""
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": options.minutes,
        "nodes": launch.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": options.cpus or 5 * launch.processes,
        "mem": f"{round(1024 * (options.memory_gb or 64 * launch.processes))}M",
        "signal_delay_s": WARNING_SECONDS,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **(options.extra or {})},
    }
    if launch.device == "cuda":
        parameters["gpus_per_node"] = launch.processes
    for key in ("partition", "account"):
        if getattr(options, key):
            parameters[key] = getattr(options, key)
    # A job that ran out of time goes back into the queue; in a chain the next one takes over.
    executor = kind(folder / FOLDER, max_num_timeout=RESTARTS if options.chain == 1 else 0)
    executor.update_parameters(**parameters)
    return executor


def resume_arguments(run: Run, launch: LaunchOptions) -> list[str]:
    """Arguments of `3dgp resume` that start a run's processes on one node."""
    folder = run.folder.resolve()
    arguments = [run.name, "--workspace", str(folder.parents[1])]
    arguments += ["--gpus" if launch.device == "cuda" else "--procs", str(launch.processes)]
    if launch.data is not None:
        arguments += ["--data", str(Path(launch.data).resolve())]
    if launch.wandb is not None:
        arguments += ["--wandb", launch.wandb]
    return arguments


def parse_time(text: str) -> int:
    """Minutes of a time as Slurm writes it: 90 (minutes), 30:00, 24:00:00, 2-12, 2-12:30 or 2-12:30:00.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise UsageError(f"--time {text}: write minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES, as for sbatch.")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] or match[4]:  # hours come first
        seconds = 86400 * days + 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    minutes = -(-seconds // 60)
    if minutes * 60 <= WARNING_SECONDS:
        raise UsageError(f"--time {text} is too short: a job is warned {WARNING_SECONDS} seconds before its end.")
    return minutes


def parse_memory(text: str) -> float:
    """GB of a memory size as Slurm writes it: 64G, 64000M, 1T, or a plain number of MB.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if match is None or not float(match[1]):
        raise UsageError(f"--mem {text}: write it as 64G or 64000M.")
    return float(match[1]) * {"K": 1 / 1024**2, "M": 1 / 1024, "": 1 / 1024, "G": 1.0, "T": 1024.0}[match[2]]


def require_slurm() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        MissingExtraError: submitit is not installed.
        UsageError: there is no Slurm here.
    """
    if require_submitit().SlurmExecutor.affinity() <= 0:
        raise UsageError(
            "There is no Slurm on this machine: the command srun was not found. Submit from the cluster's login node."
        )


def require_submitit() -> Any:
    """The submitit module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise MissingExtraError("submitit", "slurm", "--slurm") from None
    return submitit
