"""Several training processes through torchrun's launcher, on one machine or on many.

The launching process stays outside the computation: it starts the workers, asks them to stop, and when one fails says
which one and why. Workers end with it, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from threedgp.errors import ThreeDGPError
from threedgp.launch.here import LaunchOptions, StopRequest
from threedgp.runs.run import STOP_FILE, Run

WORKER_MODULE = "threedgp_cli.worker"
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
REPORT_VARIABLE = "TORCHELASTIC_ERROR_FILE"  # torchrun tells a worker where to leave the reason of its failure


def run_workers(run: Run, options: LaunchOptions, request: StopRequest) -> None:
    """Start this machine's processes and wait for them.

    torchrun's agent works in a thread, so that signals stay with the caller's `stop_on_signals`; the workers are in
    sessions of their own and hear of Ctrl-C only through the run's stop file.

    Raises:
        ThreeDGPError: a process failed or was killed, or the other machines did not come; says which and why.
        KeyboardInterrupt: a second Ctrl-C; the workers die with this process.
    """
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    errors: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="3dgp-", ignore_cleanup_errors=True) as reports:
        launcher = elastic_launch(launch_config(run, options, reports), sys.executable)

        def launch() -> None:
            try:
                launcher("-u", "-m", WORKER_MODULE, str(run.folder.resolve()), json.dumps(asdict(options)))
            except BaseException as error:
                errors.append(error)

        agent = threading.Thread(target=launch, name="torchrun", daemon=True)
        agent.start()
        while agent.is_alive():
            agent.join(POLL_SECONDS)
            if request.signal is not None and agent.is_alive():
                (run.folder / STOP_FILE).touch()  # again, as workers that were starting removed it
    if request.signal is not None:
        (run.folder / STOP_FILE).unlink(missing_ok=True)
    if errors:
        raise explain(errors[0], run, options) from errors[0]


def launch_config(run: Run, options: LaunchOptions, reports: str) -> LaunchConfig:
    """torchrun's settings; processes that fail are not started again here, `3dgp resume` does that.

    Args:
        reports: folder where failing workers leave their reasons.
    """
    return LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=options.processes,
        run_id=run.name,
        rdzv_backend="c10d",
        rdzv_endpoint=options.rendezvous or "localhost:0",
        # Alone, this process must keep the meeting point; a host name that resolves elsewhere would mislead it.
        rdzv_configs={"is_host": True} if options.nodes == 1 else {},
        local_addr="localhost" if options.nodes == 1 else None,
        max_restarts=0,
        monitor_interval=POLL_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=reports),
    )


def explain(error: BaseException, run: Run, options: LaunchOptions) -> BaseException:
    """The error that people should see instead of torchrun's: the process that failed first, and what to do."""
    again = f"Continue from the last checkpoint with: 3dgp resume {run.name}"
    if isinstance(error, ChildFailedError):
        rank, failure = min(error.failures.items(), key=lambda item: _blame(item[1]))
        report = _report_of(failure)
        if report.get("kind") == "error":
            explained = ThreeDGPError(report["text"])
            explained.exit_code = failure.exitcode
            return explained
        if failure.exitcode < 0:
            cause = " That is how the system ends processes when memory runs out" if failure.exitcode == -9 else ""
            cause += ": fewer processes or a smaller training.batch_gpu need less." if cause else ""
            return ThreeDGPError(
                f"Training stopped because process {rank} (pid {failure.pid}) was killed by {failure.signal_name()}."
                f"{cause} {again}"
            )
        text = report.get("text", f"exit code {failure.exitcode}, without a reason")
        if report.get("kind") == "contact":
            return ThreeDGPError(
                f"Training stopped because process {rank} lost contact with another one ({text}). If another machine "
                f"reports an error, that is the reason. {again}"
            )
        return ThreeDGPError(f"Training stopped because process {rank} failed: {text} {again}")
    if isinstance(error, RendezvousError):
        return ThreeDGPError(
            f"The {options.nodes} machines did not meet at {options.rendezvous} ({error}). Give the same --rendezvous "
            "HOST:PORT everywhere: a free port of one of the machines, which the others can reach."
        )
    if options.nodes > 1 and isinstance(error, dist.DistError):
        return ThreeDGPError(
            f"Training stopped because contact with another machine was lost; if that one reports an error, it is the "
            f"reason. {again}, on all machines."
        )
    return error


def _blame(failure: ProcessFailure) -> tuple[int, float]:
    """Sort key: the process that caused the others to fail comes first."""
    report = _report_of(failure)
    if report.get("kind") == "error":
        order = 0
    elif failure.exitcode == -signal.SIGTERM or report.get("kind") == "contact":
        order = 2  # ended by the agent, or left alone by the one that failed
    else:
        order = 1
    return order, float(report.get("timestamp", failure.timestamp))


def _report_of(failure: ProcessFailure) -> dict:
    message = failure.error_file_data.get("message")
    return message["extraInfo"] if isinstance(message, dict) and "extraInfo" in message else {}


# --------------------------------------------------------------------------------------------------------- in a worker


def report_failure(error: Exception) -> None:
    """Leave the reason of this worker's failure where torchrun's agent finds it; print nothing."""
    path = os.environ.get(REPORT_VARIABLE)
    if path is None:
        return
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" (in {os.path.basename(last[0].filename)}, line {last[0].lineno})" if last else ""
    known = isinstance(error, ThreeDGPError)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    info = {
        "timestamp": time.time(),
        "kind": "error" if known else "contact" if lost_contact(error) else "crash",
        "text": str(error) if known else f"{type(error).__name__}: {first}{place}.",
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": info["text"], "extraInfo": info}}, file)


def lost_contact(error: Exception) -> bool:
    """Whether an error only says that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def end_with_parent() -> None:
    """Die at once when the launching process does, even by kill -9 (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
