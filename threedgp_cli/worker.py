"""One of the processes that share a run's training; people use `3dgp train` instead."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from threedgp.cores import share_cores
from threedgp.launcher import place, report_failure
from threedgp_cli.console import progress


def main(folder: str, options: str = "{}") -> int:
    """Train the run in `folder` with the launch options given as JSON; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", str(share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))

    from threedgp.errors import ThreeDGPError
    from threedgp.launch.here import StopRequest, stop_on_signals, train_here
    from threedgp.launch.options import LaunchOptions
    from threedgp.progress import NULL_PROGRESS
    from threedgp.runs.run import STOP_FILE, Run

    run = Run(Path(folder))
    shown = progress() if place().rank == 0 else NULL_PROGRESS
    with stop_on_signals(StopRequest(run.folder / STOP_FILE)) as request:
        try:
            train_here(run, LaunchOptions(**json.loads(options)), request, shown)
        except Exception as error:
            report_failure(error)
            if os.environ.get("THREEDGP_DEBUG"):
                raise
            return error.exit_code if isinstance(error, ThreeDGPError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
