"""One process at a time works on a run; the system lets go of the lock when that process dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.files import open_regular, parse_json

_held: set[IO[str]] = set()


def _let_go() -> None:
    """Children such as loader workers inherit open files: theirs would hold the lock when this process has died."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` (made if missing) while the block runs; the file says who holds it.

    Raises:
        UsageError: `what` is in use by another process; says which one on which host.
        ThreeDGPError: the file system knows no locks.
    """
    with open(path, "a+", encoding="utf-8") as file:
        for _ in range(10):  # whoever calls `holder` has the lock for a moment
            if _take(file, fcntl.LOCK_EX):
                break
            time.sleep(0.05)
        else:
            owner = _read(file)
            name = f"process {owner['pid']} on host {owner['host']}" if "pid" in owner else "another process"
            raise UsageError(f"{what} is in use by {name}. Wait until it is done, or stop it first.")
        _held.add(file)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, file)
        file.flush()
        try:
            yield
        finally:
            _held.discard(file)
            file.truncate(0)


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock: {"pid", "host", "since"}, empty if it does not say, or None if nobody does."""
    try:
        with open_regular(path) as file:
            return None if _take(file, fcntl.LOCK_SH) else _read(file)
    except (DataError, FileNotFoundError, PermissionError, IsADirectoryError):  # nobody's, whatever it is
        return None


def _take(file: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ThreeDGPError(f"{file.name} cannot be locked ({error.strerror}): use a disk that has locks.") from None
    return True


def _read(file: IO[Any]) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = parse_json(file.read(10_000))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {"pid", "host"} <= owner.keys() else {}
