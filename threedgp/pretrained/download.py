"""Fetch one file over HTTP: continued where a cut connection left it, checked, and named only when whole."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from threedgp.errors import WeightsError
from threedgp.files import sha256_of
from threedgp.progress import NULL_PROGRESS, Progress, bar

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
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file() and _problem(target, size, sha256) is None:
                return  # another process was faster
            with bar(progress, f"Downloading {label or target.name}", size, "bytes"):
                _fetch_all(address, part, progress, pause_seconds)
            problem = _problem(part, size, sha256)
            if problem is not None:  # a login page, another version
                part.unlink()
                raise WeightsError(f"{address} sent {problem}. It was deleted.")
            os.replace(part, target)
    except OSError as error:
        raise WeightsError(
            f"{target} could not be written ({error.strerror or error}). Set $THREEDGP_CACHE to a folder that can be."
        ) from error


def _fetch_all(address: str, part: Path, progress: Progress, pause: float) -> None:
    """Bring the part file to full length, over as many connections as it takes."""
    failures = 0
    progress.advance(_length(part))
    while True:
        before = _length(part)
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
        failures = 1 if _length(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise WeightsError(
                f"{address} could not be downloaded ({reason}). Check the network and run the command again (it "
                "continues where it stopped), or fetch the file on another machine and give its path."
            )
        time.sleep(pause * 2 ** (failures - 1))


def _fetch_once(address: str, part: Path, progress: Progress) -> bool:
    """One request, continued from the part's end. True if the body came to its announced end."""
    start = _length(part)
    request = urllib.request.Request(address, headers={"User-Agent": "threedgp"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return True
        part.unlink()  # nothing lies beyond it, and it is not this file
        progress.advance(-start)
        return False
    with response:
        range_header = response.headers.get("Content-Range", "")
        continued = response.status == 206 and range_header.startswith(f"bytes {start}-")
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


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _problem(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What a file is instead of the one that was promised."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"{actual:,} bytes instead of {size:,}"
    if sha256 is not None and not (digest := sha256_of(path)).startswith(sha256):
        return f"a file with SHA-256 {digest}, expected {sha256}"
    return None
