"""Runs images through feature extractors: sharded over processes, streamed, and resumable after a crash.

What has been seen is a mask over item numbers. Any set of saved parts can therefore be continued by any number of
processes with any batch size, and an item is never counted twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from threedgp.files import best_effort, write_tensors
from threedgp.metrics.fid import FeatureStatistics, require_finite
from threedgp.metrics.processes import SINGLE, Processes, together
from threedgp.pretrained.embedder import FeatureExtractor, InceptionExtractor
from threedgp.progress import NULL_PROGRESS, Progress

SAVE_SECONDS = 60.0
SAVE_SHARE = 0.05  # at most this share of the time goes into saving


class Images(Protocol):
    """Numbered images that can be had in any order."""

    def __len__(self) -> int: ...

    def batches(self, chunks: Sequence[list[int]]) -> Iterator[Iterable[tuple[list[int], torch.Tensor]]]:
        """For each chunk of item numbers: one or more (numbers, uint8 [n, 3, H, W]), without unreadable images."""
        ...


class Bank:
    """What one extractor says about the images seen so far.

    Args:
        extractor: the network.
        total: number of items.
        rows: also keep every feature row.
        logits: also keep every row of class scores (Inception only).

    Attributes:
        statistics: moments of all features.
        seen: bool [total], items that contributed.
        left_out: names of pictures that could not be read, as far as whoever filled the bank knows.
    """

    def __init__(self, extractor: FeatureExtractor, total: int, *, rows: bool = False, logits: bool = False):
        self.extractor, self.total = extractor, total
        self.keep_rows, self.keep_logits = rows, logits
        self.statistics = FeatureStatistics()
        self.seen = torch.zeros(total, dtype=torch.bool)
        self.left_out: list[str] = []
        self._index: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []

    def update(self, numbers: list[int], images: torch.Tensor) -> None:
        """Add images, uint8 [n, 3, H, W]."""
        if self.keep_logits:
            assert isinstance(self.extractor, InceptionExtractor)
            features, logits = self.extractor.features_and_logits(images)
            self._logits.append(logits.cpu())
        else:
            features = self.extractor(images)
        require_finite(features, numbers)
        self.statistics.update(features)
        index = torch.tensor(numbers)
        self.seen[index] = True
        if self.keep_rows or self.keep_logits:
            self._index.append(index)
        if self.keep_rows:
            self._rows.append(features.cpu())

    def rows(self) -> torch.Tensor:
        """float32 [seen, dim], in the order of item numbers."""
        return self._in_order(self._rows, self.extractor.dim)

    def logits(self) -> torch.Tensor:
        """float32 [seen, classes], in the order of item numbers."""
        return self._in_order(self._logits, 0)

    def _in_order(self, parts: list[torch.Tensor], width: int) -> torch.Tensor:
        if not parts:
            return torch.zeros(0, width)
        return torch.cat(parts)[torch.cat(self._index).argsort()]

    def state(self) -> dict[str, torch.Tensor]:
        """Everything as tensors."""
        tensors = {"seen": self.seen.clone(), **self.statistics.state()}
        for name, parts in (("index", self._index), ("rows", self._rows), ("logits", self._logits)):
            if parts:
                tensors[name] = torch.cat(parts)
        return tensors

    def fits(self, state: dict[str, torch.Tensor]) -> bool:
        """Whether a saved state answers everything this bank is asked."""
        needed = {name for name, kept in (("rows", self.keep_rows), ("logits", self.keep_logits)) if kept}
        return len(state["seen"]) == self.total and (int(state["count"]) == 0 or needed <= state.keys())

    def absorb(self, state: dict[str, torch.Tensor]) -> None:
        """Add a saved state of other items."""
        statistics = FeatureStatistics()
        statistics.load_state(state)
        self.statistics.merge(statistics)
        self.seen |= state["seen"]
        if (self.keep_rows or self.keep_logits) and "index" in state:
            self._index.append(state["index"])
        if self.keep_rows and "rows" in state:
            self._rows.append(state["rows"])
        if self.keep_logits and "logits" in state:
            self._logits.append(state["logits"])

    def reduce(self, world: Processes) -> None:
        """Make every process's bank that of all processes together."""
        if world.size == 1:
            return
        self.statistics.reduce(world, self.extractor.dim)
        widths = world.gather([part.shape[1] for part in (self._rows[:1] + self._logits[:1])])
        mine = self.seen.nonzero()[:, 0] if not self._index else torch.cat(self._index)
        self.seen = world.sum(self.seen.to(torch.int32)) > 0
        if not (self.keep_rows or self.keep_logits):
            return
        everywhere = self.seen.nonzero()[:, 0]
        found = max(widths, key=len)  # a process without any image knows no widths
        for kept, parts in ((self.keep_rows, self._rows), (self.keep_logits, self._logits)):
            if kept and found:
                table = torch.zeros(self.total, found.pop(0))
                if parts:
                    table[mine] = torch.cat(parts)
                parts[:] = [world.sum(table)[everywhere]]
        self._index = [everywhere]


def collect(
    images: Images,
    banks: Sequence[Bank],
    *,
    batch: int,
    world: Processes = SINGLE,
    parts: Path | None = None,
    label: str = "Features",
    progress: Progress = NULL_PROGRESS,
) -> None:
    """Show every image to every bank; afterwards all processes hold the banks of the whole set.

    Args:
        images: the items.
        banks: empty banks of `len(images)` items.
        batch: images at a time and process.
        world: the processes that share the work.
        parts: folder for unfinished work, which a later call with the same question continues; None: nothing is saved.
        label: what the progress bar says.
        progress: told on the first process only.
    """
    progress = progress if world.rank == 0 else NULL_PROGRESS
    done = torch.zeros(len(images), dtype=torch.bool)
    store = PartStore(parts, banks, progress) if parts is not None else None
    if store is not None and world.rank == 0:
        done = store.load(done)
    done = torch.tensor(world.share(done.nonzero()[:, 0].tolist()), dtype=torch.int64)
    todo = torch.ones(len(images), dtype=torch.bool)
    todo[done] = False
    numbers = todo.nonzero()[:, 0].tolist()
    chunks = [numbers[first : first + batch] for first in range(0, len(numbers), batch)]
    covered = ~todo if world.rank == 0 else torch.zeros_like(todo)
    progress.start(label, len(images))
    progress.advance(len(done))
    mine = chunks[world.rank :: world.size]

    def work() -> None:
        for chunk, groups in zip(mine, images.batches(mine), strict=True):
            for present, pixels in groups:
                for bank in banks:
                    bank.update(present, pixels)
            covered[chunk] = True
            progress.advance(min(len(chunk) * world.size, len(images)))
            if store is not None:
                store.save_sometimes(covered)

    try:
        together(world, work)
    except KeyboardInterrupt:
        if store is not None:
            store.save(covered)
        raise
    progress.finish()
    if store is not None and world.size > 1:
        store.save(covered)  # a process that fails later does not cost the others their work
    for bank in banks:
        bank.reduce(world)


class PartStore:
    """Unfinished work on disk: one file for each process that has ever worked on the question."""

    def __init__(self, folder: Path, banks: Sequence[Bank], progress: Progress = NULL_PROGRESS):
        self.folder, self.banks, self.progress = folder, banks, progress
        self.path = folder / f"part-{secrets.token_hex(6)}.safetensors"
        self.superseded: list[Path] = []
        self.last, self.cost = time.monotonic(), 0.0

    def load(self, done: torch.Tensor) -> torch.Tensor:
        """Absorb all saved parts into the banks; returns which items they cover, bool [total].

        Parts that overlap with a larger one are what a crash left behind and are passed over.
        """
        found = []
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                tensors = load_file(path)
                states = [_section(tensors, number) for number in range(len(self.banks))]
                if all(bank.fits(state) for bank, state in zip(self.banks, states, strict=True)):
                    found.append((tensors["covered"], states))
                self.superseded.append(path)
            except (SafetensorError, OSError, KeyError):
                continue
        for covered, states in sorted(found, key=lambda part: -int(part[0].sum())):
            if not (covered & done).any():
                done = done | covered
                for bank, state in zip(self.banks, states, strict=True):
                    bank.absorb(state)
        return done

    def save_sometimes(self, covered: torch.Tensor) -> None:
        """Save when enough time has passed."""
        if time.monotonic() - self.last >= max(SAVE_SECONDS, self.cost / SAVE_SHARE):
            self.save(covered)

    def save(self, covered: torch.Tensor) -> None:
        """Write this process's part; parts that it contains go only after it is safe."""
        begin = time.monotonic()
        tensors = {"covered": covered}
        for number, bank in enumerate(self.banks):
            tensors |= {f"{number}.{name}": value for name, value in bank.state().items()}
        with best_effort("Unfinished work", self.progress):
            write_tensors(self.path, tensors)
            for path in self.superseded:
                path.unlink(missing_ok=True)
            self.superseded = []
        self.last, self.cost = time.monotonic(), time.monotonic() - begin


def _section(tensors: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
