"""What networks say about a set of images: moments, rows and class scores.

Unfinished banks are kept safe while they are filled, those of real images between evaluations.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from threedgp.data.pictures import Images, Pictures, collect
from threedgp.files import best_effort, cache_folder, write_tensors
from threedgp.metrics.fid import FeatureStatistics, require_finite
from threedgp.pretrained.embedder import FeatureExtractor, InceptionExtractor
from threedgp.processes import SINGLE, World
from threedgp.progress import NULL_PROGRESS, Progress

VERSION = 1  # raise when the meaning of stored numbers changes
SAVE_SECONDS = 60.0
SAVE_SHARE = 0.05  # at most this share of the time goes into saving


class Bank:
    """What one extractor says about the images seen so far.

    Args:
        extractor: the network.
        total: number of items.
        kept: of `rows` (features) and `logits` (class scores, Inception only) what is kept beside the moments.

    Attributes:
        statistics: moments of all features.
        seen: bool [total], items that contributed.
        left_out: names of pictures that could not be read, as far as whoever filled the bank knows.
    """

    def __init__(self, extractor: FeatureExtractor, total: int, kept: Sequence[str] = ()):
        self.extractor, self.total, self.kept = extractor, total, kept
        self.statistics = FeatureStatistics()
        self.seen = torch.zeros(total, dtype=torch.bool)
        self.left_out: list[str] = []
        self._tables: dict[str, list[torch.Tensor]] = {name: [] for name in (("index", *kept) if kept else ())}

    def update(self, numbers: list[int], images: torch.Tensor) -> None:
        """Add images, uint8 [n, 3, H, W]."""
        found = {"index": torch.tensor(numbers)}
        if "logits" in self.kept:
            assert isinstance(self.extractor, InceptionExtractor)
            features, found["logits"] = self.extractor.features_and_logits(images)
        else:
            features = self.extractor(images)
        require_finite(features, numbers)
        self.statistics.update(features)
        self.seen[found["index"]] = True
        found["rows"] = features
        for name, parts in self._tables.items():
            parts.append(found[name].cpu())

    def table(self, name: str) -> torch.Tensor:
        """The `rows` or `logits`, float32 [seen, width], in the order of item numbers."""
        if not self._tables[name]:
            return torch.zeros(0, self.extractor.dim)
        return torch.cat(self._tables[name])[torch.cat(self._tables["index"]).argsort()]

    def state(self) -> dict[str, torch.Tensor]:
        """Everything as tensors."""
        tables = {name: torch.cat(parts) for name, parts in self._tables.items() if parts}
        return {"seen": self.seen.clone(), **self.statistics.state(), **tables}

    def fits(self, state: dict[str, torch.Tensor]) -> bool:
        """Whether a saved state answers everything this bank is asked."""
        return len(state["seen"]) == self.total and (int(state["count"]) == 0 or state.keys() >= set(self.kept))

    def absorb(self, state: dict[str, torch.Tensor]) -> None:
        """Add a saved state of other items."""
        self.statistics.merge(FeatureStatistics.of(state))
        self.seen |= state["seen"]
        for name, parts in self._tables.items():
            if name in state:
                parts.append(state[name])

    def reduce(self, world: World) -> None:
        """Make every process's bank that of all processes together."""
        if world.size == 1:
            return
        self.statistics.reduce(world, self.extractor.dim)
        self.seen = world.sum(self.seen.to(torch.int32)) > 0
        everywhere = self.seen.nonzero()[:, 0]
        for name in self.kept:
            parts = self._tables[name]
            width = max(world.gather(parts[0].shape[1] if parts else 0))  # a process without any image knows none
            table = torch.zeros(self.total, width)
            if parts:
                table[torch.cat(self._tables["index"])] = torch.cat(parts)
            parts[:] = [world.sum(table)[everywhere]]
        if self.kept:
            self._tables["index"] = [everywhere]


def fill(
    images: Images,
    banks: Sequence[Bank],
    *,
    batch: int,
    world: World = SINGLE,
    parts: Path | None = None,
    label: str = "Features",
    progress: Progress = NULL_PROGRESS,
) -> None:
    """Show every image to every bank; afterwards all processes hold the banks of the whole set.

    Args:
        banks: empty banks of `len(images)` items.
        batch, world, progress: see `collect`.
        parts: folder for unfinished work, which a later call with the same question continues; None: nothing is saved.
        label: what the progress bar says.
    """
    store = Parts(parts, banks, progress)
    try:
        collect(images, store, batch=batch, world=world, label=label, progress=progress)
    except KeyboardInterrupt:
        store.save()
        raise
    if world.size > 1:
        store.save()  # a process that fails later does not cost the others their work
    for bank in banks:
        bank.reduce(world)


class Parts:
    """Banks while they are filled, and on disk a file for each process that has ever worked on them; a `Sink`."""

    def __init__(self, folder: Path | None, banks: Sequence[Bank], progress: Progress = NULL_PROGRESS):
        self.folder, self.banks, self.progress = folder, banks, progress
        self.covered = torch.zeros(banks[0].total, dtype=torch.bool)
        self.name = f"part-{secrets.token_hex(6)}.safetensors"
        self.superseded: list[Path] = []
        self.last, self.cost = time.monotonic(), 0.0

    def finished(self) -> list[int]:
        """Absorb all saved parts; those that overlap with a larger one are what a crash left behind and passed over."""
        found = []
        for path in sorted(self.folder.glob("part-*.safetensors")) if self.folder else []:
            try:
                tensors = load_file(path)
                states = [_section(tensors, number) for number in range(len(self.banks))]
                if all(bank.fits(state) for bank, state in zip(self.banks, states, strict=True)):
                    found.append((tensors["covered"], states))
                self.superseded.append(path)
            except (SafetensorError, OSError, KeyError):
                continue
        for covered, states in sorted(found, key=lambda part: -int(part[0].sum())):
            if not (covered & self.covered).any():
                self.covered |= covered
                for bank, state in zip(self.banks, states, strict=True):
                    bank.absorb(state)
        return self.covered.nonzero()[:, 0].tolist()

    def add(self, numbers: list[int], images: torch.Tensor) -> None:
        for bank in self.banks:
            bank.update(numbers, images)

    def close(self, chunk: list[int]) -> None:
        self.covered[chunk] = True
        if time.monotonic() - self.last >= max(SAVE_SECONDS, self.cost / SAVE_SHARE):
            self.save()

    def save(self) -> None:
        """Write this process's part; parts that it contains go only after it is safe."""
        if self.folder is None:
            return
        begin = time.monotonic()
        tensors = {"covered": self.covered}
        for number, bank in enumerate(self.banks):
            tensors |= {f"{number}.{name}": value for name, value in bank.state().items()}
        with best_effort("Unfinished work", self.progress):
            write_tensors(self.folder / self.name, tensors)
            for path in self.superseded:
                path.unlink(missing_ok=True)
            self.superseded = []
        self.last, self.cost = time.monotonic(), time.monotonic() - begin


def _section(tensors: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(value: Any) -> str:
    """A short name for anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def extractor_key(extractor: FeatureExtractor) -> dict[str, Any]:
    """What decides an extractor's output."""
    return {
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "preprocess": extractor.preprocess,
        "version": VERSION,
    }


def real_key(images: Pictures, extractor: FeatureExtractor) -> str:
    """Name of the statistics of one set under one extractor."""
    return _digest({**extractor_key(extractor), "images": images.identity})


class StatisticsCache:
    """A folder of finished banks, and of unfinished ones.

    Args:
        folder: made when something is stored; None: $THREEDGP_CACHE/metrics, by default ~/.cache/threedgp/metrics.
        progress: told once if nothing can be.
    """

    def __init__(self, folder: Path | None = None, progress: Progress = NULL_PROGRESS):
        self.folder, self.progress = folder or cache_folder("metrics"), progress

    def load(self, key: str, bank: Bank) -> bool:
        """Fill an empty bank; False if nothing (or not enough) is stored or the file is damaged."""
        try:
            state = load_file(self._path(key))
            if not bank.fits(state):
                return False
            bank.absorb(state)
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def save(self, key: str, bank: Bank) -> None:
        """Store a bank that has seen its whole set."""
        with best_effort("Statistics of real images", self.progress):
            write_tensors(self._path(key), bank.state())

    def parts(self, question: Any) -> Path:
        """Folder for the unfinished work on a question."""
        return self.folder / f"unfinished-{_digest(question)}"

    def forget(self, parts: Path | None) -> None:
        """Remove the folder of work that is finished."""
        if parts is not None:
            shutil.rmtree(parts, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
