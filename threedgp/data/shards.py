"""Several processes of one stage on one machine, started by torchrun, each with its share of the work.

The processes do not talk to each other: each appends a line per finished item to a file of its own, and whoever
started them follows these files.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from threedgp.data.ahead import available_cores
from threedgp.errors import ThreeDGPError
from threedgp.files import append_json_line, read_json, write_json

POLL_SECONDS = 0.2
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def run_shards(module: str, job: dict[str, Any], processes: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Run `python -m module folder` in several processes and yield the lines they write, as they come.

    Args:
        job: what to do; the processes read it from `folder/job.json`.
        folder: scratch folder, emptied first.

    Raises:
        ThreeDGPError: what a process reported, or that it was killed. The others are stopped.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "job.json", job)
    threads = max(1, available_cores() // processes)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "-m", module, str(folder),
    ]  # fmt: skip
    with open(folder / "messages.txt", "wb") as messages:
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=messages,
            stderr=messages,
            preexec_fn=_end_with_parent,
        )
        try:
            yield from _follow(process, folder, processes)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()


def shard_main(work: Callable[[dict[str, Any], int, int], Iterator[dict[str, Any]]]) -> None:
    """Main function of a worker module: `work(job, rank, world_size)` yields lines; errors become a line, too."""
    folder = Path(sys.argv[1])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    journal = _journal(folder, rank)
    try:
        for line in work(read_json(folder / "job.json"), rank, world_size):
            append_json_line(journal, line)
    except ThreeDGPError as error:
        append_json_line(journal, {"error": str(error)})


def _follow(process: subprocess.Popen, folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    seen = [0] * processes
    while True:
        ended = process.poll() is not None  # asked before reading, so that the last lines are read after the end
        for rank in range(processes):
            lines, seen[rank] = _new_lines(_journal(folder, rank), seen[rank])
            for line in lines:
                if "error" in line:
                    raise ThreeDGPError(line["error"])
                yield line
        if ended:
            break
        time.sleep(POLL_SECONDS)
    if process.returncode != 0:
        raise ThreeDGPError(
            f"A worker process ended with code {process.returncode}, perhaps because memory ran out. Finished work is "
            f"kept: run the command again, with a smaller --batch. Details: {folder / 'messages.txt'}"
        )


def _new_lines(journal: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after byte `start`, and where the next one begins."""
    if not journal.exists():
        return [], start
    with open(journal, "rb") as file:
        file.seek(start)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines()], start + end


def _journal(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.jsonl"


def _end_with_parent() -> None:
    """In the child: be told to end when the parent dies, even by kill -9 (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
