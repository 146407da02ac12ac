"""Runs the same command in several processes, with errors shown as usual."""

from __future__ import annotations

import sys

from threedgp.launcher import WorkersFailed, launch, place


def is_worker() -> bool:
    """Whether this process is one of several that share a command."""
    return place().size > 1


def is_first() -> bool:
    """Whether this process is the one that talks to people."""
    return place().rank == 0


def run_in_processes(count: int) -> int:
    """Start this very command in `count` processes on this machine and wait; returns the exit code."""
    try:
        for _ in launch([sys.executable, "-m", "threedgp_cli.main", *sys.argv[1:]], count):
            pass
    except WorkersFailed as error:  # a failed worker has already shown its error
        return max(error.failures[0].exitcode, 1)
    return 0
