"""Features of a whole set in one file, made in pieces that survive kills.

Instance selection caches features in this form (see `threedgp.data.embeddings` for it), and the embeddings that
training reads are such files. Rows go straight to disk, so memory does not grow with the set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgp.cores import available_cores
from threedgp.data.embeddings import Embeddings, description_path
from threedgp.data.pictures import Pictures, collect, fingerprint
from threedgp.data.source import ImageSource
from threedgp.data.stage import Stage
from threedgp.errors import DataError
from threedgp.files import append_json_line, read_json, read_json_lines, sha256_of, write_json
from threedgp.pretrained import embedder
from threedgp.processes import choose_device
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class FeatureTable(Embeddings):
    """A finished table and how it came about.

    Attributes:
        skipped: {path: reason} of pictures that could not be decoded and have no row.
        identity: what made the rows: model, weights_sha256, weights_verified, transform, square, batch.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


def find_features(source: ImageSource, path: Path, wanted: dict[str, Any]) -> FeatureTable | None:
    """The finished table at `path` if it is whole, made as `wanted`, and its source has not changed since.

    Args:
        wanted: entries that the table's identity must have, e.g. {"model": "inception", "square": 256}.
    """
    try:
        mark, table = read_json(_mark_path(path)), Embeddings.open(path)
        if any(mark["identity"].get(key) != value for key, value in wanted.items()):
            return None
        if mark["fingerprint"] != fingerprint(source):
            return None
        return FeatureTable(table.path, table.rows, table.row_of, mark["skipped"], mark["identity"])
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return None


def find_or_build(
    source: ImageSource,
    path: Path,
    model: str,
    weights: Path | str | None = None,
    *,
    square: int | None = None,
    device: str | None = None,
    download: bool = False,
    allow_unverified: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> FeatureTable | embedder.FeatureExtractor:
    """The finished table of `model`, else the network that can make it (see `build_extractor`). Writes nothing."""
    wanted: dict[str, Any] = {"model": embedder.canonical_name(model), "square": square}
    if weights is not None and Path(weights).is_file():
        wanted["weights_sha256"] = sha256_of(weights)
    return find_features(source, path, wanted) or embedder.build_extractor(
        model,
        weights,
        download=download,
        device=choose_device(device),
        allow_unverified=allow_unverified,
        progress=progress,
    )


def compute_features(
    stage: Stage,
    path: Path,
    found: FeatureTable | embedder.FeatureExtractor,
    *,
    square: int | None = None,
    batch_size: int = 32,
    label: str = "Computing features",
) -> FeatureTable:
    """Compute the features of every picture of a stage's source into a table at `path`, unless it is there.

    A killed run leaves `.NAME.partial/` beside `path`; the next one goes on there and ends with the same bytes,
    because the batches are cut the same way.

    Args:
        path: the `.memmap` file; its description will lie beside it.
        found: what `find_or_build` returned.
        square: centre-crop and Lanczos-resize pictures to this side first; None to take them as they are.
        batch_size: pictures shown to the network at once; part of the identity.

    Raises:
        DataError: nothing could be decoded, or the network returned NaN.
    """
    if isinstance(found, FeatureTable):
        for name, reason in found.skipped.items():
            stage.skip(name, reason)
        shutil.rmtree(_partial_folder(path), ignore_errors=True)  # of a run killed while it tidied up
        return found
    pictures = Pictures(stage.found, square=square, threads=stage.jobs or available_cores())
    work = _UnfinishedTable(path, found, pictures, batch_size, stage.skip)
    collect(pictures, work, batch=batch_size, label=label, progress=stage.progress)
    return work.publish()


def _mark_path(path: Path) -> Path:
    """Hidden file that remembers which state of the source a finished table describes."""
    return path.with_name(f".{path.name.removesuffix('.memmap')}_source.json")


def _partial_folder(path: Path) -> Path:
    return path.with_name(f".{path.name.removesuffix('.memmap')}.partial")


class _UnfinishedTable:
    """`.NAME.partial/` with the rows so far and a line for each finished batch, in order; see `pictures.Sink`."""

    def __init__(
        self,
        path: Path,
        extractor: embedder.FeatureExtractor,
        pictures: Pictures,
        batch_size: int,
        on_skip: Callable[[str, str], None],
    ):
        self.path, self.extractor, self.pictures, self.on_skip = path, extractor, pictures, on_skip
        self.identity = {
            "model": extractor.name,
            "weights_sha256": extractor.weights_sha256,
            "weights_verified": extractor.weights_verified,
            "transform": extractor.preprocess,
            "square": pictures.square,
            "batch": batch_size,
        }
        self.mark = fingerprint(pictures.source)
        self.folder = _partial_folder(path)
        self.rows_path, self.log_path = self.folder / "rows.bin", self.folder / "batches.jsonl"
        self.pending: dict[int, np.ndarray] = {}
        lines = self._lines_before(batch_size)
        self.done = min(len(lines) * batch_size, len(pictures))
        self.skipped: dict[str, str] = {}
        for line in lines:
            self._skip(line["skipped"])

    def _lines_before(self, batch_size: int) -> list[dict[str, Any]]:
        """The batches that an earlier piece of exactly this work has finished; begins anew where there is none."""
        question = {**self.identity, "fingerprint": self.mark, "dim": self.extractor.dim}
        try:
            if read_json(self.folder / "identity.json") == question:
                lines = read_json_lines(self.log_path)
                size = sum(line["rows"] for line in lines) * 4 * self.extractor.dim
                if self.rows_path.exists() and self.rows_path.stat().st_size >= size:
                    os.truncate(self.rows_path, size)
                    return lines
                if len(lines) * batch_size >= len(self.pictures) and self.path.stat().st_size == size:
                    return lines  # killed between the rows' new name and their description
        except (DataError, OSError):
            pass
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.rows_path.touch()
        write_json(self.folder / "identity.json", question)
        return []

    def finished(self) -> list[int]:
        return list(range(self.done))

    def add(self, numbers: list[int], images: torch.Tensor) -> None:
        rows = self.extractor(images).cpu().numpy().astype("<f4")
        if not np.isfinite(rows).all():
            raise DataError(
                f"The network {self.extractor.name} returned values that are not finite: check its weights."
            )
        self.pending.update(zip(numbers, rows, strict=True))

    def close(self, chunk: list[int]) -> None:
        """Write a batch's rows, then its line: a kill in between repeats the batch."""
        broken = [self.pictures.name(number) for number in chunk if number not in self.pending]
        reasons = {name: self.pictures.problems[name] for name in broken}
        self._skip(reasons)
        with open(self.rows_path, "ab") as file:
            file.write(b"".join(self.pending[number].tobytes() for number in sorted(self.pending)))
        append_json_line(self.log_path, {"rows": len(self.pending), "skipped": reasons})
        self.pending = {}

    def _skip(self, reasons: dict[str, str]) -> None:
        self.skipped |= reasons
        for name, reason in reasons.items():
            self.on_skip(name, reason)

    def publish(self) -> FeatureTable:
        """Turn the work into the finished table. Repeating it after a kill gives the same files."""
        names = [name for name in self.pictures.names if name not in self.skipped]
        if not names:
            shutil.rmtree(self.folder)
            raise DataError(f"None of the {len(self.pictures)} pictures could be decoded.")
        description_path(self.path).unlink(missing_ok=True)  # never a new table under an old description
        if self.rows_path.exists():
            self.rows_path.replace(self.path)
        description = {
            "shape": [len(names), self.extractor.dim],
            "filepath_to_idx": {name: row for row, name in enumerate(names)},
            "model": self.identity["model"],
            "weights_sha256": self.identity["weights_sha256"],
            "transform": self.identity["transform"],
            "dtype": "float32",
        }
        write_json(description_path(self.path), description)
        skipped = dict(sorted(self.skipped.items()))
        write_json(_mark_path(self.path), {"fingerprint": self.mark, "identity": self.identity, "skipped": skipped})
        shutil.rmtree(self.folder)
        table = Embeddings.open(self.path)
        return FeatureTable(table.path, table.rows, table.row_of, skipped, self.identity)
