"""Fetch one file over HTTP: continued where a cut connection left it, checked, and named only when whole."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from threedgp.errors import WeightsError
from threedgp.files import sha256_of
from threedgp.progress import NULL_PROGRESS, Progress

BLOCK = 1 << 18
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 5  # consecutive attempts that bring nothing; one that brings bytes starts the count again


def download_file(
    address: str,
    target: Path | str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    label: str | None = None,
    progress: Progress = NULL_PROGRESS,
    pause_seconds: float = 1.0,
) -> None:
    """Download `address` to `target`.

    The bytes gather in `<target>.part`; a cut connection, or a killed process, continues from its end with a Range
    request. `target` appears by rename after size and checksum agreed.

    Args:
        size: expected bytes, None if not known.
        sha256: expected checksum or its first digits, None to accept any.
        pause_seconds: wait before the second attempt, doubled for each further one.

    Raises:
        WeightsError: the server refused, could not be reached, or sent something else than expected.
    """
    target = Path(target)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target.with_name(f".{target.name}.lock")):
            if target.is_file() and _fits(target, size, sha256):
                return  # another process was faster
            _fetch_all(address, part, size, label or target.name, progress, pause_seconds)
            _check(part, size, sha256, address)
            os.replace(part, target)
    except OSError as error:
        raise WeightsError(
            f"{target} could not be written ({error.strerror or error}). Set $THREEDGP_CACHE to a folder that can be."
        ) from error


def _fetch_all(address: str, part: Path, size: int | None, label: str, progress: Progress, pause: float) -> None:
    """Bring the part file to full length, over as many connections as it takes."""
    failures = 0
    progress.start(f"Downloading {label}", size, unit="bytes")
    progress.advance(part.stat().st_size if part.exists() else 0)
    try:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _fetch_once(address, part, progress):
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code != 429:
                    raise WeightsError(f"{address} answered {error.code} {error.reason}.") from None
                reason = f"the server answered {error.code}"
            except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures >= ATTEMPTS:
                raise WeightsError(
                    f"{address} could not be downloaded ({reason}). Check the network and run the command again (it "
                    "continues where it stopped), or fetch the file on another machine and give its path."
                )
            time.sleep(pause * 2 ** (failures - 1))
    finally:
        progress.finish()


def _fetch_once(address: str, part: Path, progress: Progress) -> bool:
    """One request, continued from the part's end. True if the body came to its announced end."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "threedgp"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond the part: it is whole, or not this file
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return True
            part.unlink()
            progress.advance(-start)
            return False
        raise
    with response:
        continued = response.status == 206 and _range_start(response.headers.get("Content-Range")) == start
        if start and not continued:
            progress.advance(-start)  # the server knows no ranges: from the beginning
        length = response.headers.get("Content-Length")
        received = 0
        with open(part, "ab" if continued else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                received += len(block)
                progress.advance(len(block))
    return length is None or received == int(length)


def _range_start(header: str | None) -> int | None:
    """The first byte of a `Content-Range: bytes 100-199/200` header."""
    try:
        return int((header or "").removeprefix("bytes ").split("-")[0])
    except ValueError:
        return None


def _fits(path: Path, size: int | None, sha256: str | None) -> bool:
    return (size is None or path.stat().st_size == size) and (sha256 is None or sha256_of(path).startswith(sha256))


def _check(part: Path, size: int | None, sha256: str | None, address: str) -> None:
    """Refuse and delete a part that is not what was promised (a login page, another version)."""
    actual = part.stat().st_size
    if size is not None and actual != size:
        part.unlink()
        raise WeightsError(f"{address} sent {actual:,} bytes instead of {size:,}: it is not the published file.")
    if sha256 is not None:
        digest = sha256_of(part)
        if not digest.startswith(sha256):
            part.unlink()
            raise WeightsError(f"{address} sent a file with SHA-256 {digest}, expected {sha256}. It was deleted.")


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Let one process at a time write the part file (no locks on systems without flock)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
