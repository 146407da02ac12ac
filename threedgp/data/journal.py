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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from threedgp.data.source import UNREADABLE, ImageSource, file_stamp, read_file
from threedgp.errors import DataError
from threedgp.files import append_json_line, atomic_open, read_json_lines

JOURNAL = ".made.jsonl"

Inputs = dict[str, tuple[ImageSource, str]]
"""What a job reads: for each path, as seen from the stage's source, an image source and the name in it."""


class Mark(NamedTuple):
    """One state of a file: its stamp, and the digest of its bytes."""

    stamp: str
    digest: str


class Made(NamedTuple):
    """One finished job: marks of what it read, by label, and of what it wrote, by relative path."""

    sources: dict[str, Mark]
    targets: dict[str, Mark]

    def changed(self, source: ImageSource) -> list[str]:
        """Inputs whose content is another now; labels are names as seen from the source. Missing ones do not count."""
        return [
            name
            for name, mark in self.sources.items()
            if (stamp := source.stamp(name)) != UNREADABLE
            and _confirm(mark, stamp, lambda name=name: source.read(name)) is None
        ]


class Recorder:
    """Reads a job's inputs and writes its outputs, and remembers the marks of both.

    Args:
        inputs: see `Inputs`.
        output: the stage's folder.
    """

    def __init__(self, inputs: Inputs, output: Path):
        self.inputs, self.output = inputs, output
        self.sources: dict[str, Mark] = {}
        self.targets: dict[str, Mark] = {}

    def read(self, label: str) -> bytes:
        """The whole input. Raises `DataError` with the reason when it cannot be read."""
        source, name = self.inputs[label]
        stamp = source.stamp(name)  # taken before, so that a change while it is read shows up later
        data = source.read(name)
        self.sources[label] = Mark(stamp, digest(data))
        return data

    def write(self, target: str, data: bytes) -> None:
        """Write a whole file by atomic rename."""
        path = make_place(self.output, target)
        with atomic_open(path) as file:
            file.write(data)
        self.targets[target] = Mark(file_stamp(path), digest(data))

    def made(self) -> Made:
        return Made(self.sources, self.targets)


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
            made = parse_made(line)
            if made is not None and made.targets:
                journal.jobs[next(iter(made.targets))] = made
        return journal

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


def still_holds(made: Made | None, inputs: Inputs, output: Path, targets: Iterable[str]) -> Made | None:
    """The job with today's stamps if it read exactly these inputs and its targets are as it left them, else None."""
    if made is None or made.sources.keys() != inputs.keys() or set(made.targets) != set(targets):
        return None
    sources, written = {}, {}
    for label, (source, name) in inputs.items():
        mark = _confirm(made.sources[label], source.stamp(name), lambda s=source, n=name: s.read(n))
        if mark is None:
            return None
        sources[label] = mark
    for target, old in made.targets.items():
        path = output / target
        mark = _confirm(old, file_stamp(path), lambda p=path: read_file(p))
        if mark is None:
            return None
        written[target] = mark
    return Made(sources, written)


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


def _confirm(mark: Mark, stamp: str, read: Any) -> Mark | None:
    if stamp == mark.stamp:
        return mark
    try:
        return Mark(stamp, mark.digest) if digest(read()) == mark.digest else None
    except DataError:
        return None


def parse_made(value: Any) -> Made | None:
    """A `Made` from its JSON, as an object or as a list; None when it is none."""
    try:
        parts = value if isinstance(value, list) else [value[name] for name in Made._fields]
        return Made(*({str(key): Mark(*map(str, mark)) for key, mark in part.items()} for part in parts))
    except (KeyError, TypeError, AttributeError):
        return None


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with `/` between folders."""
    return os.path.relpath(path, folder).replace(os.sep, "/")
