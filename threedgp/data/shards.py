"""Several processes of one stage on this machine, each with its share of the work.

The processes do not talk to each other: each appends a line per finished item to a file of its own, and whoever
started them follows these files.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from threedgp.errors import ThreeDGPError
from threedgp.files import append_json_line, read_json, write_json
from threedgp.launcher import WorkersFailed, launch, place, report_failure


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
    seen = [0] * processes

    def news() -> Iterator[dict[str, Any]]:
        for rank in range(processes):
            lines, seen[rank] = _new_lines(_journal(folder, rank), seen[rank])
            yield from lines

    try:
        with open(folder / "messages.txt", "wb") as messages:
            for _ in launch([sys.executable, "-m", module, str(folder)], processes, output=messages):
                yield from news()
    except WorkersFailed as error:
        first = error.failures[0]
        if first.report.get("kind") == "error":
            raise ThreeDGPError(first.report["text"]) from None
        raise ThreeDGPError(
            f"A worker process ended with code {first.exitcode}, perhaps because memory ran out. Finished work is "
            f"kept: run the command again, with a smaller --batch. Details: {folder / 'messages.txt'}"
        ) from None
    yield from news()


def shard_main(work: Callable[[dict[str, Any], int, int], Iterator[dict[str, Any]]]) -> None:
    """Main function of a worker module: `work(job, rank, world_size)` yields lines."""
    folder, here = Path(sys.argv[1]), place()
    try:
        for line in work(read_json(folder / "job.json"), here.rank, here.size):
            append_json_line(_journal(folder, here.rank), line)
    except Exception as error:
        report_failure(error)
        raise


def _new_lines(journal: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after byte `start`, and where the next one begins."""
    if not journal.exists():
        return [], start
    with open(journal, "rb") as file:
        file.seek(start)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].split(b"\n") if line], start + end


def _journal(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.jsonl"
