"""What all data stages share: the manifest, the policy for broken files, and resuming.

A stage reads one folder, writes another, and can be killed and started again: finished targets are kept, the rest is
made, and the result has the same bytes as an undisturbed run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from filelock import FileLock, Timeout

from threedgp import __version__
from threedgp.data.journal import Job, Journal, Made, Outcome, Recorder, digest, do_job
from threedgp.data.source import (
    MANIFEST,
    OWN_NAMES,
    FolderSource,
    ImageSource,
    open_source,
    read_manifest,
    refused_names,
)
from threedgp.data.workers import Backend, parallel
from threedgp.errors import DataError, UsageError
from threedgp.files import TEMPORARY_MARK, read_json, write_json
from threedgp.progress import NULL_PROGRESS, Progress, bar

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_ERRORS = 0.01
FREE_ERRORS = 10  # a small set may have this many broken files before the default share counts
NOTES = 20  # broken files named on the screen; the manifest names all


class Policy(TypedDict, total=False):
    """How a stage works, whatever it makes: what every stage takes by name.

    on_error: go on without a broken file (the default), or stop at the first.
    max_errors: more broken files than this make a stage fail at its end; below 1 it is a share of all files. None, the
        default, means 1 % but at least 10 files.
    overwrite: redo a folder that was made with other arguments instead of refusing it.
    jobs: worker processes (threads where a network works); None takes one a core.
    backend: where they run: here (`loky`), or on a cluster.
    """

    on_error: Literal["skip", "fail"]
    max_errors: float | None
    overwrite: bool
    jobs: int | None
    backend: Backend
    progress: Progress


@dataclass
class Stage:
    """The bookkeeping of one run of one stage; make it with `Stage.begin`, end it with `finish`.

    Attributes:
        name: the stage's command, `resize`.
        arguments: all that decides the bytes of the result (not the number of jobs). JSON values.
        manifest: its file name, for stages whose results share a folder.
        resume: True when targets that exist were made with the same arguments and may be kept.
        journal: what earlier runs with these arguments made from what. before: the files that they list.
        images: number of images finished so far, with all that belongs to them.
        files: {target: source} of finished files, both relative.
        skipped: {path: reason} of broken files. dropped: {path: reason} of files left out on request.
        extra: further entries for the manifest.
    """

    name: str
    found: ImageSource
    output: Path
    arguments: dict[str, Any]
    on_error: Literal["skip", "fail"] = "skip"
    max_errors: float | None = None
    overwrite: bool = False
    jobs: int | None = None
    backend: Backend = "loky"
    progress: Progress = NULL_PROGRESS
    manifest: str = MANIFEST

    def __post_init__(self) -> None:
        self.source = self.found.root
        self.read = listing(self.found)
        self.journal, self.resume = Journal(self.output), False
        self.before: list[str] = []
        self.images = 0
        self.files: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        # One lock a process: a run that failed may be tried again by the same process.
        path = self.output.absolute() / f".{Path(self.manifest).stem}.lock"
        self._lock = FileLock(path, is_singleton=True, thread_local=False)

    def as_json(self) -> dict[str, Any]:
        """What people want to see of a finished stage, as plain values for `--json`."""
        counts = {"images": self.images, "skipped": self.skipped, "dropped": self.dropped, "extra": self.extra}
        return {"stage": self.name, "source": str(self.source), "output": str(self.output), **counts}

    def claim(self) -> None:
        """Keep other processes out of the output until `finish`, or until this process ends, however it ends.

        Raises:
            UsageError: another process is at work there.
        """
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(f"{self.output} is a file, not a folder. Choose another output with -o.")
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"Another process is writing {self.output}. Wait until it is done, or choose another output with -o."
            ) from None

    @classmethod
    def begin(
        cls,
        name: str,
        found: ImageSource,
        output: Path | str,
        arguments: dict[str, Any],
        **policy: Unpack[Policy],
    ) -> Stage:
        """Claim the output folder and note what is going to be done there; see `Policy` for the arguments.

        Raises:
            UsageError: the output is the source, holds foreign files, or was made with other arguments.
        """
        output = Path(output)
        arguments = json.loads(json.dumps(arguments))  # as it will be read back: tuples become lists
        stage = cls(name, found, output, arguments, **policy)
        root, target = stage.source.resolve(), output.resolve()
        if target == root or root in target.parents:
            raise UsageError(f"The output {output} lies in the source {root}. Choose a folder beside it with -o.")
        for sentence in outdated(stage.source):
            stage.progress.note(sentence)
        stage.claim()
        earlier, manifest = stage._earlier(), stage._manifest(complete=False)
        stage.resume = all(earlier.get(key) == manifest[key] for key in ("source", "arguments"))
        if earlier and not stage.resume and not stage.overwrite:
            raise UsageError(
                f"{output} was made with other settings ({_changes(earlier, manifest)}). "
                "Add --overwrite to make it again, or choose another output with -o."
            )
        remove_leftovers(output)
        files = earlier.get("files")
        before: dict[str, Any] = files if isinstance(files, dict) else {}
        if stage.resume:
            stage.journal, stage.before = Journal.load(output), list(before)
        else:
            remove_files(output, before)
            stage.journal.path.unlink(missing_ok=True)
        # From here to `finish` nobody may take the folder for whole, and `before` must not be forgotten.
        write_json(output / MANIFEST, {**manifest, "files": before if stage.resume else {}})
        return stage

    def make(self, label: str, jobs: Iterable[Job], work: Callable[[Job, Recorder], None]) -> None:
        """Do all jobs in worker processes; those whose files still hold need not be done again.

        Args:
            label: of the progress bar, which shows all images of the source.
            work: reads and writes the files of one job; what it raises as `DataError` is the reason to skip it. It must
                be picklable.
        """
        task = partial(do_job, work, self.found.without_names(), self.output.absolute())
        with bar(self.progress, label, len(self.found.names) + len(self.found.problems)):
            self.record(parallel(task, jobs, jobs=self.jobs, backend=self.backend))

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Note what became of images, as it comes."""
        for job, made, reason, dropped in outcomes:
            if reason is None:
                self.done(job.files, made)
            elif not dropped:
                self.skip(job.name, reason)
            else:
                self.dropped[job.name] = reason
                self.progress.advance()

    def usable(self, used: Container[str] = ()) -> list[str]:
        """The images of the source in order, after skipping those that its listing shows to be of no use."""
        self.skip_problems(used)
        clashes = refused_names(self.found.names)
        for name, reason in clashes.items():
            self.skip(name, reason)
        return [name for name in self.found.names if name not in clashes and name not in self.found.problems]

    def skip_problems(self, used: Container[str] = ()) -> None:
        """Skip what looks like an image of the source but cannot be read or written, and name its other files.

        Args:
            used: other files that the stage does use.
        """
        for name, reason in self.found.problems.items():
            self.skip(name, reason)
        others = [name for name in self.found.left_out if name not in OWN_NAMES and name not in used]
        if others and read_manifest(self.source) is None:
            self.extra["other_files"] = others
            self.progress.note(f"{len(others)} files of {self.source} are no images and stay out (first: {others[0]})")

    def done(self, files: dict[str, str], made: Made | None = None) -> None:
        """Note one finished image: {target: source} of its files (the depth map too), and how they were made.

        Advances the progress bar.
        """
        if made is not None:
            self.journal.add(made)
        self.files.update(files)
        self.images += 1
        self.progress.advance()

    def skip(self, name: str, reason: str) -> None:
        """Note a broken file; with `on_error='fail'` raise `DataError` at once."""
        if self.on_error == "fail":
            raise DataError(f"{self.source / name}: {reason}. Mend or remove it, or use --on-error skip.")
        self.skipped[name] = reason
        if len(self.skipped) <= NOTES:
            self.progress.note(f"skipped {name}: {reason}")
        elif len(self.skipped) == NOTES + 1:
            self.progress.note(f"more files are skipped; all are listed in {self.output / self.manifest}")
        self.progress.advance()

    def finish(self, *, prune_stale: bool = True, total: int | None = None) -> Stage:
        """Write the manifest and judge the number of broken files.

        Args:
            prune_stale: remove the files of an earlier run that this one would not have made.
            total: images looked at, where a stage leaves good ones out on purpose.

        Raises:
            DataError: no file was usable, or more than `max_errors` were broken. The rest has been processed.
        """
        total = total or self.images + len(self.skipped) + len(self.dropped)
        if prune_stale:
            # What a killed run made stands in the journal only; what is the user's own stands nowhere.
            before = {*self.before, *(target for made in self.journal.jobs.values() for target in made.targets)}
            remove_files(self.output, before - self.files.keys())
        if self.journal.jobs:
            self.journal.keep(self.files)
        write_json(self.output / self.manifest, self._manifest(complete=True))
        if self.manifest == MANIFEST:
            self._tell_foreign_files()
        self._lock.release(force=True)
        name, reason = next(iter({**self.skipped, **self.dropped}.items()), ("", ""))
        if not self.files and total:
            raise DataError(f"None of the {total} images in {self.source} was used (first: {name}: {reason}).")
        limit = max(FREE_ERRORS, MAX_ERRORS * total) if self.max_errors is None else self.max_errors
        if self.max_errors is not None and self.max_errors < 1:
            limit = self.max_errors * total
        if len(self.skipped) > limit:
            raise DataError(
                f"{len(self.skipped)} of {total} files were broken (first: {name}: {reason}); the others are done. "
                f"See {self.output / self.manifest}, or allow more with --max-errors."
            )
        return self

    def _tell_foreign_files(self) -> None:
        """Pictures that somebody else put into the output stay there, and are said to."""
        there = FolderSource(self.output)
        foreign = [name for name in (*there.names, *there.depth_names) if name not in self.files]
        if foreign:
            self.progress.note(
                f"{len(foreign)} files in {self.output} were not made by '3dgp data {self.name}' and are left alone "
                f"(first: {foreign[0]})."
            )

    def _manifest(self, complete: bool) -> dict[str, Any]:
        """No times and no counts of resumed files: an interrupted and an undisturbed run must agree byte for byte."""
        return {
            "stage": self.name,
            "complete": complete,
            "version": __version__,
            "source": os.path.relpath(self.source, self.output).replace(os.sep, "/"),
            "read": self.read,
            "arguments": self.arguments,
            **dict(sorted(self.extra.items())),
            "counts": {"images": self.images, "skipped": len(self.skipped), "dropped": len(self.dropped)},
            "skipped": dict(sorted(self.skipped.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "files": dict(sorted(self.files.items())),
        }

    def _earlier(self) -> dict[str, Any]:
        """The manifest of an earlier run. Raises `UsageError` for a folder of somebody else or another stage."""
        if all(entry.name.startswith(".") for entry in self.output.iterdir()):
            return {}
        content = read_json(self.output / MANIFEST) if (self.output / MANIFEST).exists() else None
        if isinstance(content, dict) and content.get("stage") == self.name:
            return content
        raise UsageError(
            f"{self.output} holds files that '3dgp data {self.name}' did not write. "
            "Empty it or choose another output with -o."
        )


def _changes(earlier: dict[str, Any], manifest: dict[str, Any]) -> str:
    old = {"source": earlier.get("source"), **(earlier.get("arguments") or {})}
    new = {"source": manifest["source"], **manifest["arguments"]}
    return ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key))


def outdated(folder: Path) -> list[str]:
    """What has happened to the sources of a finished stage, and to theirs, since it ran; in sentences.

    Files added, removed or replaced, and a selection among them that this stage was not made from.
    """
    manifest = read_manifest(folder)
    if manifest is None or not isinstance(manifest.get("read"), dict):
        return []
    upstream = Path(os.path.normpath(folder / str(manifest["source"])))
    try:
        source = open_source(upstream, allow_empty=True)
    except DataError:
        return []  # its sources were moved away or removed, which is allowed
    now, found = listing(source), outdated(upstream)
    again = f"To take that in, run '3dgp data {manifest['stage']}' again."
    if now != manifest["read"]:
        found.append(
            f"{upstream} has changed since {folder} was made from it ({manifest['read'].get('images')} images then, "
            f"{now['images']} now). {again}"
        )
    changed = [name for made in Journal.load(folder).jobs.values() for name in made.changed(source)]
    if changed:
        found.append(f"{len(changed)} files have changed since {folder} was made (first: {changed[0]}). {again}")
    for other in sorted(path.parent for path in folder.parent.glob(f"*/{MANIFEST}")):
        choice = read_manifest(other) if other not in (folder, upstream) else None
        if choice and choice["stage"] == "select" and (other / str(choice["source"])).resolve() == upstream.resolve():
            found.append(f"{folder} was made from all of {upstream}, not from the selection in {other}. {again}")
    return found


def listing(source: ImageSource) -> dict[str, Any]:
    """How many images a source has, and a digest of their names: tells whether any came or went."""
    names = "\n".join([*source.names, *source.depth_names]).encode("utf-8", "surrogateescape")
    return {"images": len(source.names), "names": digest(names)}


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed run left anywhere below the folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and TEMPORARY_MARK in name:
                Path(parent, name).unlink(missing_ok=True)


def remove_files(output: Path, names: Iterable[str]) -> None:
    """Remove files that a stage wrote, by relative path, and the folders this empties; links are not followed."""
    for name in names:
        path = output / name
        if path.resolve().parent != output.resolve() / Path(name).parent or ".." in Path(name).parts:
            continue  # a folder on the way is a link, or the manifest names something outside
        path.unlink(missing_ok=True)
        for folder in Path(name).parents:
            if str(folder) == "." or not (output / folder).is_dir() or any((output / folder).iterdir()):
                break
            (output / folder).rmdir()
