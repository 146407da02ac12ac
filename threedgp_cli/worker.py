"""One of the processes that torchrun starts for a run; people use `3dgp train` instead."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from threedgp_cli.console import progress, show_error


def main(folder: str, options: str) -> int:
    """Train the run in `folder`; returns the exit code."""
    from threedgp.errors import ThreeDGPError
    from threedgp.progress import NULL_PROGRESS
    from threedgp.runs.run import Run
    from threedgp.training.launch import STOP_FILE, LaunchOptions, StopRequest, stop_on_signals, train_here

    run = Run(Path(folder))
    rank = int(os.environ.get("RANK", "0"))
    with stop_on_signals(StopRequest(run.folder / STOP_FILE)) as request:
        try:
            train_here(run, LaunchOptions(**json.loads(options)), request, progress() if rank == 0 else NULL_PROGRESS)
        except ThreeDGPError as error:
            if rank == 0:
                show_error(str(error))
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
