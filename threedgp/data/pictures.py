"""The feature engine of stages and scores: numbered images are shown to whoever wants them, shared out and resumable.

What is finished is known by item number. Any number of processes with any batch size can therefore go on with
unfinished work, and no item is shown twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from threedgp.data.images import open_image
from threedgp.data.resize import square_image
from threedgp.data.source import ImageSource, open_source
from threedgp.data.workers import map_ahead
from threedgp.errors import DataError, ThreeDGPError
from threedgp.processes import SINGLE, World, together
from threedgp.progress import NULL_PROGRESS, Progress

Group = tuple[list[int], torch.Tensor]  # item numbers and their images, uint8 [n, 3, H, W]


class Images(Protocol):
    """Numbered images that can be had in any order."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> str | None:
        """Changes with everything that decides the images; None: unfinished work cannot be continued."""
        ...

    def batches(self, chunks: Sequence[list[int]]) -> Iterator[Iterable[Group]]:
        """For each chunk of item numbers one or more groups of equal size, without unreadable images."""
        ...


class Sink(Protocol):
    """What becomes of the images."""

    def finished(self) -> list[int]:
        """Numbers of the items that need not be shown."""
        ...

    def add(self, numbers: list[int], images: torch.Tensor) -> None:
        """Take a group, uint8 [n, 3, H, W]."""
        ...

    def close(self, chunk: list[int]) -> None:
        """All that can be read of a chunk has been added."""
        ...


def collect(
    images: Images,
    sink: Sink,
    *,
    batch: int,
    world: World = SINGLE,
    label: str = "Features",
    progress: Progress = NULL_PROGRESS,
) -> None:
    """Show every unfinished image to `sink`.

    Args:
        batch: images at a time and process.
        world: the processes that share the work, each with a sink of its own; the first one's says what is finished.
        progress: told on the first process only.
    """
    done = set(world.share(sink.finished() if world.is_main else None))
    numbers = [number for number in range(len(images)) if number not in done]
    chunks = [numbers[first : first + batch] for first in range(0, len(numbers), batch)][world.rank :: world.size]
    progress = progress if world.is_main else NULL_PROGRESS

    def work() -> None:
        try:
            for chunk, groups in zip(chunks, images.batches(chunks), strict=True):
                for present, pixels in groups:
                    sink.add(present, pixels)
                    progress.advance(min(len(present) * world.size, len(images)))
                sink.close(chunk)
        except torch.OutOfMemoryError:
            raise ThreeDGPError("The device ran out of memory: choose a smaller batch (--batch).") from None

    progress.start(label, len(images), done=len(done))
    try:
        together(world, work)
    finally:
        progress.finish()


class Pictures:
    """The pictures of a folder or zip, in the order of their paths.

    Item i and, when mirrored, item N+i show picture i and its left-right flip.

    Args:
        source: folder or zip, or one that is open.
        square: centre-crop and Lanczos-resize every picture to this side; None: as it is.
        resolution: every picture must be a square of this side; None: any sizes.
        mirror: double the set by flipped copies.
        limit: use a random part of this many items; None: all.
        seed: of that choice.
        threads: that read and decode.

    Attributes:
        problems: {path: reason} of pictures that could not be decoded so far; they are left out.

    Raises:
        DataError: the set does not exist or is empty.
    """

    def __init__(
        self,
        source: ImageSource | Path | str,
        *,
        square: int | None = None,
        resolution: int | None = None,
        mirror: bool = False,
        limit: int | None = None,
        seed: int = 0,
        threads: int = 4,
    ):
        self.source: ImageSource = open_source(source) if isinstance(source, (str, Path)) else source
        self.square, self.resolution, self.mirror, self.seed = square, resolution, mirror, seed
        self.threads = threads
        self.names = self.source.names
        count = len(self.names) * (2 if mirror else 1)
        self.limit = None if limit is None or limit >= count else limit
        self._items = np.arange(count)
        if self.limit is not None:
            self._items = np.sort(np.random.default_rng(seed).permutation(count)[: self.limit])
        self.problems: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def path(self) -> Path:
        return self.source.root

    @cached_property
    def identity(self) -> str:
        part = "" if self.limit is None else f" {self.limit} of seed {self.seed}"
        return f"{fingerprint(self.source)} resolution {self.resolution} mirror {self.mirror}{part}"

    def name(self, number: int) -> str:
        """The picture that an item shows."""
        return self.names[int(self._items[number]) % len(self.names)]

    def read(self, number: int) -> torch.Tensor | None:
        """One picture, uint8 [3, H, W]; None if it cannot be decoded.

        Raises:
            DataError: it does not have the required size.
        """
        name = self.name(number)
        try:
            picture = open_image(self.source.read(name))
            pixels = np.array(picture if self.square is None else square_image(picture, self.square))
        except DataError as error:
            self.problems[name] = str(error)
            return None
        height, width = pixels.shape[:2]
        if self.resolution is not None and (height, width) != (self.resolution, self.resolution):
            raise DataError(
                f"{self.path}: {name} is {width}x{height}, but the model makes {self.resolution}x{self.resolution} "
                f"images. Prepare the set first: 3dgp data resize -s {self.resolution}"
            )
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return image.flip(-1) if self._items[number] >= len(self.names) else image

    def batches(self, chunks: Sequence[list[int]]) -> Iterator[list[Group]]:
        """See `Images`. Decodes ahead in threads."""
        window = 2 * len(chunks[0]) + self.threads if chunks else 1
        images = map_ahead(self.read, (number for chunk in chunks for number in chunk), self.threads, window)
        for chunk in chunks:
            sizes: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
            for number in chunk:
                image = next(images)
                if image is not None:
                    sizes.setdefault(image.shape, []).append((number, image))
            yield [([n for n, _ in members], torch.stack([i for _, i in members])) for members in sizes.values()]


def fingerprint(source: ImageSource) -> str:
    """SHA-256 over the name, size and modification time (in a zip: checksum) of every picture."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(f"{name}\0{source.stamp(name)}\n".encode())
    return digest.hexdigest()
