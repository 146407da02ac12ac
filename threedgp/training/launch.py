"""Starting a run's processes: in this one, or several through torchrun, on one machine or many.

The run folder says everything the processes need. Stopping is a request, not a kill: whoever started the run leaves a
file in the run folder, all processes write a checkpoint together and end normally.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.data.dataset import open_training_set
from threedgp.errors import DataError, ThreeDGPError
from threedgp.files import read_json, write_json
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.run import Run
from threedgp.training.distributed import join_world
from threedgp.training.log import RunLog
from threedgp.training.trainer import Trainer, TrainingResult

STOP_FILE = "stop"  # in the run folder: asks the processes to write a checkpoint and end
DONE_FILE = "DONE"  # in the run folder: the run has reached its end; a chain of jobs stops here
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DATA_FILE = "data.json"  # in the run folder: which training set it uses
WORKER_MODULE = "threedgp_cli.worker"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class LaunchOptions:
    """How to start a run.

    Attributes:
        processes: processes on this machine.
        device: `cpu` or `cuda`.
        nodes: machines; each starts the same command.
        rendezvous: `host:port` of one of the machines when there are several.
        data: training set folder or zip, if not the workspace's.
        wandb: Weights & Biases project, if wanted.
        threads: CPU threads of each process; None: cores divided by processes.
    """

    processes: int = 1
    device: str = "cpu"
    nodes: int = 1
    rendezvous: str | None = None
    data: str | None = None
    wandb: str | None = None
    threads: int | None = None

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes


class StopRequest:
    """Asks a running training loop to write a checkpoint and end; remembers why."""

    def __init__(self, file: Path | None = None):
        self.file = file
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None or (self.file is not None and self.file.exists())


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[StopRequest]:
    """Turn Ctrl-C and a scheduler's warning signals into a stop request; a second Ctrl-C interrupts at once."""

    def on_signal(number: int, frame: object) -> None:
        if number == signal.SIGINT and request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number
        if request.file is not None:
            request.file.touch()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, *STOP_SIGNALS)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_here(
    run: Run, options: LaunchOptions, request: StopRequest, progress: Progress = NULL_PROGRESS
) -> TrainingResult:
    """Train in this process, as the only one or as one of those torchrun started.

    Continues from the newest intact checkpoint if the run has one, so the same command can be repeated.

    Raises:
        ThreeDGPError: of any kind: the data or the checkpoint does not fit the profile, the run is in use, the disk is
            full, training diverged beyond repair.
    """
    with join_world(options.device) as world:
        set_precision(run.profile.precision)
        lock = run.lock() if world.is_main else nullcontext()
        data = training_data(Workspace(run.folder.resolve().parents[1]), run.profile, run, options.data)
        dataset = open_training_set(run.profile, data)
        if world.is_main:
            dataset.require_finite_embeddings()
            record_data(run, data)
        with lock:
            log = RunLog(run.folder, wandb_project=options.wandb, name=run.name) if world.is_main else None
            try:
                trainer = Trainer(run, world, dataset, log=log, should_stop=request, progress=progress)
                trainer.restore()
                result = trainer.train()
            finally:
                if log is not None:
                    log.close()
        if world.is_main and result.finished:
            (run.folder / DONE_FILE).touch()
        return result


def training_data(workspace: Workspace, profile: Profile, run: Run | None, given: str | None = None) -> Path:
    """The training set to use: as given, else the one the run has used so far, else the workspace's of that size.

    Raises:
        DataError: there is none; says which command makes it.
    """
    if given is not None:
        return Path(given)
    if run is not None and (run.folder / DATA_FILE).is_file():
        return Path(read_json(run.folder / DATA_FILE)["path"])
    dataset = workspace.dataset(profile.data.dataset)
    path = dataset.resized(profile.data.resolution)
    packed = path.with_name(f"{path.name}.zip")
    if not path.is_dir() and not packed.is_file():
        chosen = f" --dataset {dataset.name}" if len(workspace.datasets()) > 1 else ""
        raise DataError(
            f"There is no training set {path}. Make it with: 3dgp data resize -s {profile.data.resolution}{chosen}"
        )
    return path if path.is_dir() else packed


def record_data(run: Run, path: Path) -> None:
    """Remember a run's training set."""
    write_json(run.folder / DATA_FILE, {"path": str(path.resolve())})


def set_precision(precision: str) -> None:
    """Choose how matrix products and convolutions of float32 numbers are computed on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True


def worker_command(run: Run, options: LaunchOptions) -> list[str]:
    """The torchrun command that starts this machine's processes."""
    if options.nodes > 1:
        meeting = [f"--nnodes={options.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={options.rendezvous}"]
        meeting += [f"--rdzv-id={run.name}"]
    else:
        meeting = ["--standalone"]
    return [
        sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={options.processes}",
        "-m", WORKER_MODULE, str(run.folder.resolve()), json.dumps(asdict(options)),
    ]  # fmt: skip


def run_workers(run: Run, options: LaunchOptions, request: StopRequest) -> None:
    """Start this machine's processes and wait for them.

    They run in a session of their own, so that Ctrl-C reaches only this process, which then asks them to stop. If this
    process dies, they are asked to stop as well.

    Raises:
        ThreeDGPError: a process failed or was killed; its own message stands above.
    """
    (run.folder / STOP_FILE).unlink(missing_ok=True)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        worker_command(run, options), env=environment, start_new_session=True, preexec_fn=_end_with_parent
    )
    try:
        code = wait_for(process)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        (run.folder / STOP_FILE).unlink(missing_ok=True)
    if code != 0:
        raise ThreeDGPError(
            f"Training stopped because one of its processes failed (exit code {code}); the reason stands above. "
            f"Continue from the last checkpoint with: 3dgp resume {run.name}"
        )


def wait_for(process: subprocess.Popen, poll: Callable[[], None] = lambda: None) -> int:
    """Wait for a process while signals can still be handled; returns its exit code."""
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            poll()
            time.sleep(0)


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the parent dies, even by kill -9 (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
