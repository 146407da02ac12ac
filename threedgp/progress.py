"""How library code tells whoever called it how far it is, without knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """A listener for one piece of long work at a time; this one says nothing, the command line's draws a bar.

    Call `start` once (`done` items were finished before and do not count for the rate), `advance` per finished item,
    `status` for a few words beside the bar (the newest losses), `note` for a sentence worth reading (a skipped file, a
    fallback), `finish` at the end.
    """

    def start(self, label: str, total: int | None = None, unit: str = "images", done: int = 0) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def status(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


NULL_PROGRESS = Progress()


@contextmanager
def bar(progress: Progress, label: str, total: int | None = None, unit: str = "images") -> Iterator[None]:
    """Start a piece of work, and finish it however it ends."""
    progress.start(label, total, unit)
    try:
        yield
    finally:
        progress.finish()
