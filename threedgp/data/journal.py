"""What each finished file of a stage was made from, so that the next run knows which of them still hold.

A stage keeps `.made.jsonl` in its output, a line for each finished job: the files it read and the files it wrote, each
with a stamp (what the file system says: size, times, inode) and a digest of its content. A file with the same stamp is
the same file; one with another stamp (copied, unpacked, touched, replaced) is compared by its content. Dates are never
compared as older or newer: `cp -p`, `mv`, `tar` and `rsync` bring new photos with old dates.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from threedgp.data.images import decode_usable_depth, write_bytes
from threedgp.data.source import UNREADABLE, ImageSource, file_stamp, read_file
from threedgp.errors import DataError
from threedgp.files import append_json_line, atomic_open, read_json_lines

JOURNAL = ".made.jsonl"


class Mark(NamedTuple):
    """One state of a file: its stamp, and the digest of its bytes."""

    stamp: str
    digest: str


class Made(NamedTuple):
    """One finished job: marks of what it read, by name in the source, and of what it wrote, by relative path."""

    sources: dict[str, Mark]
    targets: dict[str, Mark]

    def changed(self, source: ImageSource) -> list[str]:
        """Inputs whose content is another now. Missing ones do not count."""
        return [
            name
            for name, mark in self.sources.items()
            if source.stamp(name) != UNREADABLE and _confirm(mark, source.stamp(name), source.read, name) is None
        ]


class Job(NamedTuple):
    """One image of a stage, with all that belongs to it: everything is written, or nothing.

    Attributes:
        files: {target: source} of what is written, the image (or what stands for it) first.
        before: how an earlier run made them.
    """

    files: dict[str, str]
    before: Made | None = None

    @property
    def name(self) -> str:
        """The image in the source."""
        return next(iter(self.files.values()))

    def kept(self, source: ImageSource, output: Path) -> Made | None:
        """How the targets were made, with today's stamps, if they and what they were made from are as they were."""
        if self.before is None:
            return None
        now = Made({}, {})
        for name, mark in self.before.sources.items():
            if new := _confirm(mark, source.stamp(name), source.read, name):
                now.sources[name] = new
        for target, mark in self.before.targets.items():
            if new := _confirm(mark, file_stamp(output / target), read_file, output / target):
                now.targets[target] = new
        same = now.sources.keys() == set(self.files.values()) and now.targets.keys() == self.files.keys()
        return now if same else None


class Outcome(NamedTuple):
    """What became of a job: how it was made, or the reason why it was not, and whether the user asked for that."""

    job: Job
    made: Made | None = None
    reason: str | None = None
    dropped: bool = False


class LeftOutError(DataError):
    """The user asked for images like this one to be left out."""


class Recorder:
    """Reads a job's inputs and writes its outputs, and remembers the marks of both."""

    def __init__(self, source: ImageSource, output: Path):
        self.source, self.output = source, output
        self.made = Made({}, {})

    def read(self, name: str) -> bytes:
        """The whole input. Raises `DataError` with the reason when it cannot be read."""
        stamp = self.source.stamp(name)  # taken before, so that a change while it is read shows up later
        data = self.source.read(name)
        self.made.sources[name] = Mark(stamp, digest(data))
        return data

    def read_depth(self, name: str, height: int, width: int) -> Any:
        """The depth map, uint16 [height, width]. Raises `DataError` when it cannot be trained on."""
        what = f"its depth map {name.rsplit('/', 1)[-1]}"
        try:
            depth = decode_usable_depth(self.read(name))
        except DataError as error:
            raise DataError(f"{what}: {error}") from None
        if depth.shape != (height, width):
            raise DataError(f"{what} is {depth.shape[1]}x{depth.shape[0]}, the image {width}x{height}")
        return depth

    def write(self, target: str, data: bytes) -> None:
        """Write a whole file by atomic rename."""
        path = make_place(self.output, target)
        write_bytes(path, data)
        self.made.targets[target] = Mark(file_stamp(path), digest(data))


def do_job(work: Callable[[Job, Recorder], None], source: ImageSource, output: Path, job: Job) -> Outcome:
    """Let `work` read and write the files of a job, unless they still hold."""
    made = job.kept(source, output)
    if made is not None:
        return Outcome(job, made)
    files = Recorder(source, output)
    try:
        work(job, files)
    except DataError as error:
        return Outcome(job, None, str(error), isinstance(error, LeftOutError))
    return Outcome(job, files.made)


class Journal:
    """The finished jobs of an output folder by their first target."""

    def __init__(self, folder: Path):
        self.path = folder / JOURNAL
        self.jobs: dict[str, Made] = {}

    @classmethod
    def load(cls, folder: Path) -> Journal:
        """What earlier runs have noted; lines that a kill cut are passed over."""
        journal = cls(folder)
        for line in read_json_lines(journal.path):
            made = _parse_made(line)
            if made is not None and made.targets:
                journal.jobs[next(iter(made.targets))] = made
        return journal

    def job(self, files: dict[str, str]) -> Job:
        """The job of writing {target: source}, with what is known of it."""
        return Job(files, self.jobs.get(next(iter(files))))

    def add(self, made: Made) -> None:
        """Note a finished job, if it is news."""
        key = next(iter(made.targets))
        if self.jobs.get(key) != made:
            self.jobs[key] = made
            append_json_line(self.path, made._asdict())

    def keep(self, targets: Iterable[str]) -> None:
        """Write the journal anew with those jobs only all of whose targets are among these, in their order."""
        kept = set(targets)
        self.jobs = {key: made for key, made in sorted(self.jobs.items()) if kept.issuperset(made.targets)}
        with atomic_open(self.path, "w", encoding="utf-8") as file:
            for made in self.jobs.values():
                file.write(json.dumps(made._asdict(), ensure_ascii=False) + "\n")


def make_place(output: Path, target: str) -> Path:
    """The path of a target whose folder now exists. Raises `DataError` where a link would lead out of the output."""
    path = output / target
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{path.parent} is a link that leads out of {output}. Remove it and run this again.")
    return path


def digest(data: bytes) -> str:
    """128 bits of BLAKE2b in hexadecimal: enough to tell contents apart."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with `/` between folders."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _confirm(mark: Mark, stamp: str, read: Callable[[Any], bytes], what: Any) -> Mark | None:
    """The mark with today's stamp if the content is still the same; looked at only if the stamp is another."""
    if stamp == mark.stamp:
        return mark
    try:
        return Mark(stamp, mark.digest) if digest(read(what)) == mark.digest else None
    except DataError:
        return None


def _parse_made(value: Any) -> Made | None:
    try:
        return Made(*({str(k): Mark(*map(str, mark)) for k, mark in value[name].items()} for name in Made._fields))
    except (KeyError, TypeError, AttributeError):
        return None
