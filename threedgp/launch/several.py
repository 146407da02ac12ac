"""Training in several processes, on one machine or on many.

The launching process stays outside the computation: it starts the workers, asks them to stop, and when one fails says
which one and why.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict

from threedgp.errors import ThreeDGPError
from threedgp.launch.here import StopRequest
from threedgp.launch.options import LaunchOptions
from threedgp.launcher import NoMeeting, WorkersFailed, launch
from threedgp.runs.run import STOP_FILE, Run


def run_workers(run: Run, options: LaunchOptions, request: StopRequest, worker: Sequence[str]) -> None:
    """Start this machine's processes and wait for them; they hear of Ctrl-C through the run's stop file.

    Args:
        worker: command of a process; the run folder and the launch options as JSON are added to it.

    Raises:
        ThreeDGPError: a process failed or was killed, or the other machines did not come; says which and why.
        KeyboardInterrupt: a second Ctrl-C; the workers are ended.
    """
    folder = str(run.folder.resolve())
    command = [*worker, folder, json.dumps(asdict(options))]
    try:
        for _ in launch(command, options.processes, nodes=options.nodes, rendezvous=options.rendezvous):
            if request.signal is not None:
                (run.folder / STOP_FILE).touch()  # again, as workers that were starting removed it
    except (WorkersFailed, NoMeeting) as error:
        raise explain(error, run, options) from None
    finally:
        if request.signal is not None:
            (run.folder / STOP_FILE).unlink(missing_ok=True)


def explain(error: WorkersFailed | NoMeeting, run: Run, options: LaunchOptions) -> ThreeDGPError:
    """The error that people should see: the process that failed first, and what to do."""
    again = f"Continue from the last checkpoint with: 3dgp resume {run.name}"
    if isinstance(error, NoMeeting):
        return NoMeeting(
            f"The {options.nodes} machines did not meet: {error} Give the same --rendezvous HOST:PORT everywhere: a "
            "free port of one of the machines, which the others can reach."
        )
    failure = error.failures[0]
    kind, text = failure.report.get("kind"), failure.report.get("text")
    if kind == "error":
        explained = ThreeDGPError(text)
        explained.exit_code = failure.exitcode
        return explained
    if failure.exitcode < 0:
        cause = " That is how the system ends processes when memory runs out" if failure.exitcode == -9 else ""
        cause += ": fewer processes or a smaller training.batch_gpu need less." if cause else ""
        return ThreeDGPError(
            f"Training stopped because process {failure.rank} (pid {failure.pid}) was killed by "
            f"{signal.Signals(-failure.exitcode).name}.{cause} {again}"
        )
    if kind == "contact":
        return ThreeDGPError(
            f"Training stopped because process {failure.rank} lost contact with another one ({text}). If another "
            f"machine reports an error, that is the reason. {again}"
        )
    reason = text or f"exit code {failure.exitcode}, without a reason."
    return ThreeDGPError(f"Training stopped because process {failure.rank} failed: {reason} {again}")
