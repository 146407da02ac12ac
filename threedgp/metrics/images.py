"""Real images for the metrics: a folder or zip, mirrored or not, whole or a seeded random part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from threedgp.data.features import fingerprint
from threedgp.data.images import decode_image
from threedgp.data.source import ImageSource, open_source
from threedgp.errors import DataError

READ_AHEAD = 3  # chunks decoded while the extractor works


class RealImages:
    """The pictures of a folder or zip, in the order of their paths.

    Item i and, when mirrored, item N+i show picture i and its left-right flip.

    Args:
        path: folder or zip.
        resolution: every picture must be a square of this side; None: any sizes.
        mirror: double the set by flipped copies.
        limit: use a random part of this many items; None: all.
        seed: of that choice.
        threads: decoders.

    Attributes:
        problems: {path: reason} of pictures that could not be decoded so far; they are left out.

    Raises:
        DataError: the set does not exist or is empty.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        resolution: int | None = None,
        mirror: bool = False,
        limit: int | None = None,
        seed: int = 0,
        threads: int = 4,
    ):
        self.source: ImageSource = open_source(path)
        self.resolution, self.mirror, self.seed, self.threads = resolution, mirror, seed, threads
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
    def identity(self) -> str:
        """Changes with everything that decides the images."""
        part = "" if self.limit is None else f" {self.limit} of seed {self.seed}"
        return f"{fingerprint(self.source)} resolution {self.resolution} mirror {self.mirror}{part}"

    @property
    def path(self) -> Path:
        return self.source.root

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
            pixels = decode_image(self.source.read(name))  # [H, W, 3]
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

    def batches(self, chunks: Sequence[list[int]]) -> Iterator[list[tuple[list[int], torch.Tensor]]]:
        """See `threedgp.metrics.features.Images`; runs of equal size share a batch. Decodes ahead in threads."""
        with ThreadPoolExecutor(self.threads) as pool:
            pending: list[list[Future]] = []
            waiting = iter(chunks)
            try:
                for chunk in chunks:
                    while len(pending) <= READ_AHEAD and (ahead := next(waiting, None)) is not None:
                        pending.append([pool.submit(self.read, number) for number in ahead])
                    images = [future.result() for future in pending.pop(0)]
                    yield _group([(n, image) for n, image in zip(chunk, images, strict=True) if image is not None])
            finally:
                for future in (future for futures in pending for future in futures):
                    future.cancel()


def _group(images: list[tuple[int, torch.Tensor]]) -> list[tuple[list[int], torch.Tensor]]:
    groups = []
    for _, members in groupby(images, key=lambda pair: pair[1].shape):
        numbers, pixels = zip(*members, strict=True)
        groups.append((list(numbers), torch.stack(pixels)))
    return groups
