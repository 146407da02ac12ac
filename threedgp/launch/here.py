"""Training in this process, and the ways to ask it to stop.

The run folder says everything a process needs. Stopping is a request, not a kill: all processes finish the iteration,
write a checkpoint together and end normally. `threedgp.launch.several` starts several processes,
`threedgp.launch.slurm` jobs on a cluster.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from threedgp.config.workspace import Workspace
from threedgp.data.dataset import open_training_set
from threedgp.errors import UsageError
from threedgp.launch.options import LaunchOptions
from threedgp.ops.allocator import keep_memory
from threedgp.processes import join_world
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.run import DONE_FILE, STOP_FILE, Run
from threedgp.runs.training_set import record_data, require_same_data, training_data
from threedgp.training.log import RunLog
from threedgp.training.trainer import Trainer, TrainingResult

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class StopRequest:
    """Asks a running training loop to write a checkpoint and end; remembers which signal asked for it.

    Args:
        file: its existence is a request too.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None or (self.file is not None and self.file.exists())


@contextmanager
def stop_on_signals(request: StopRequest, announce: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn Ctrl-C, a closed terminal and a scheduler's warning signals into a stop request.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that were ignored before (nohup) stay ignored.

    Args:
        announce: called in a thread of its own when the first signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    owner = os.getpid()

    def on_signal(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a data loading process, forked with this handler: its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if request.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        request.signal = number
        if number == signal.SIGHUP:
            _forget_terminal()
        threading.Thread(target=announce, daemon=True).start()  # a handler must not write to a stream in use

    previous = {
        number: signal.signal(number, on_signal)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_here(
    run: Run, options: LaunchOptions, request: StopRequest, progress: Progress = NULL_PROGRESS
) -> TrainingResult:
    """Train in this process, as the only one or as one of several.

    Continues from the newest intact checkpoint if the run has one, so the same command can be repeated.

    Raises:
        ThreeDGPError: of any kind: the data or the checkpoint does not fit the profile, the run is in use, the disk is
            full, training diverged beyond repair.
    """
    with join_world(options.device) as world:
        set_precision(run.profile.precision, deterministic=run.profile.deterministic)
        if world.device.type == "cpu":
            keep_memory()
        with run.lock() if world.is_main else nullcontext():
            data = training_data(Workspace(run.folder.resolve().parents[1]), run.profile, run, options.data)
            dataset = open_training_set(run.profile, data)
            if world.is_main:
                require_same_data(run, dataset, options.data)
                dataset.require_finite_embeddings()
                record_data(run, data, dataset.identity())
                for name in (STOP_FILE, DONE_FILE):  # of an earlier start
                    (run.folder / name).unlink(missing_ok=True)
            world.barrier()
            log = None
            if world.is_main:
                log = RunLog(run.folder, wandb_project=options.wandb, name=run.name, progress=progress)
            try:
                trainer = Trainer(run, world, dataset, log=log, should_stop=request, progress=progress)
                trainer.restore()
                result = trainer.train()
            finally:
                progress.finish()
                if log is not None:
                    log.close()
            if world.is_main:
                (run.folder / STOP_FILE).unlink(missing_ok=True)
                if result.finished:
                    (run.folder / DONE_FILE).touch()
            return result


def require_free(run: Run) -> None:
    """Refuse a run that another process is training.

    Raises:
        UsageError: says which process on which host, and how to stop it.
    """
    owner = run.holder()
    if owner is not None:
        name = f"process {owner['pid']} on host {owner['host']}" if "pid" in owner else "another process"
        raise UsageError(
            f"Run '{run.name}' is being trained by {name}. Let it finish, or ask it for a checkpoint and to stop with: "
            f"touch {run.folder / STOP_FILE}"
        )


def set_precision(precision: str, *, deterministic: bool = False) -> None:
    """Choose how matrix products and convolutions of float32 numbers are computed on a GPU.

    Args:
        precision: `fp32` for all digits; else some of them are traded for speed.
        deterministic: the same sums in the same order every time. Without it the fastest algorithms are looked for, and
            several threads add to one number in any order. An operation that cannot do it says so. CPUs always do.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic and torch.cuda.is_available(), warn_only=True)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used


def _forget_terminal() -> None:
    """Send output nowhere: writing to a closed terminal would fail before the checkpoint is written."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if os.isatty(stream):
            os.dup2(null, stream)
    os.close(null)
