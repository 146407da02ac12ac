"""Features of a whole set in one file: a raw float32 table and a JSON description, made in pieces that survive kills.

`NAME.memmap` holds [num, dim] little-endian float32 rows in discovery order without a header, `NAME_desc.json` says
`{"shape": [num, dim], "filepath_to_idx": {path: row}, ...}`. Instance selection caches features in this form, and the
embeddings that training reads are such files. Rows go straight to disk, so memory does not grow with the set.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from threedgp.data.ahead import map_ahead
from threedgp.data.images import decode_image, open_image
from threedgp.data.resize import square_image
from threedgp.data.source import ImageSource
from threedgp.errors import DataError, ThreeDGPError
from threedgp.files import append_json_line, atomic_open, read_json, read_json_lines, sha256_of, write_json
from threedgp.pretrained.names import canonical_name
from threedgp.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from threedgp.pretrained.embedder import FeatureExtractor

COPY_ROWS = 65536


@dataclass(frozen=True)
class FeatureTable:
    """A finished table.

    Attributes:
        path: the `.memmap` file.
        names: the pictures, row by row.
        dim: features a row.
        skipped: {path: reason} of pictures that could not be decoded and have no row.
        identity: what made the rows: model, weights_sha256, weights_verified, transform, square, batch.
    """

    path: Path
    names: list[str]
    dim: int
    skipped: dict[str, str]
    identity: dict[str, Any]

    def rows(self) -> np.ndarray:
        """float32 [num, dim], read from disk on access."""
        if not self.names:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.memmap(self.path, dtype="<f4", mode="r", shape=(len(self.names), self.dim))


def find_features(source: ImageSource, path: Path | str, wanted: dict[str, Any]) -> FeatureTable | None:
    """The finished table at `path` if it is whole, made as `wanted`, and its source has not changed since.

    Args:
        wanted: entries that the table's identity must have, e.g. {"model": "inception", "square": 256}.
    """
    path = Path(path)
    try:
        seen, description = read_json(_mark_path(path)), read_json(description_path(path))
        num, dim = description["shape"]
        if any(seen["identity"].get(key) != value for key, value in wanted.items()):
            return None
        if path.stat().st_size != num * dim * 4 or len(description["filepath_to_idx"]) != num:
            return None
        if seen["fingerprint"] != fingerprint(source):
            return None
    except (DataError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    names = sorted(description["filepath_to_idx"], key=description["filepath_to_idx"].get)
    return FeatureTable(path, names, dim, seen["skipped"], seen["identity"])


def find_or_build(
    source: ImageSource,
    path: Path | str,
    model: str,
    weights: Path | str | None = None,
    *,
    square: int | None = None,
    device: str | None = None,
    download: bool = False,
    allow_unverified: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> FeatureTable | FeatureExtractor:
    """The finished table of `model`, else the network that can make it. Writes nothing.

    A network is only built (and PyTorch only imported) when there is work for it. See `build_extractor` for the
    arguments and errors.
    """
    wanted: dict[str, Any] = {"model": canonical_name(model), "square": square}
    if weights is not None and Path(weights).is_file():
        wanted["weights_sha256"] = sha256_of(weights)
    table = find_features(source, path, wanted)
    if table is not None:
        return table
    from threedgp.pretrained import embedder
    from threedgp.processes import choose_device

    return embedder.build_extractor(
        model,
        weights,
        download=download,
        device=str(choose_device(device)),
        allow_unverified=allow_unverified,
        progress=progress,
    )


def compute_features(
    source: ImageSource,
    path: Path | str,
    found: FeatureTable | FeatureExtractor,
    *,
    square: int | None = None,
    batch_size: int = 32,
    jobs: int = 1,
    on_skip: Callable[[str, str], None],
    label: str = "Computing features",
    progress: Progress = NULL_PROGRESS,
) -> FeatureTable:
    """Compute the features of every picture of `source` into a table at `path`, unless it is there.

    A killed run leaves `.NAME.partial/` beside `path`; the next one goes on there and ends with the same bytes,
    because the batches are cut the same way.

    Args:
        path: the `.memmap` file; its description will lie beside it.
        found: what `find_or_build` returned. A finished table is only reported.
        square: centre-crop and Lanczos-resize pictures to this side first; None to take them as they are.
        batch_size: pictures shown to the network at once; part of the identity.
        jobs: threads that read and decode.
        on_skip: called with (name, reason) for each picture that cannot be decoded, and advances the progress by it;
            may raise to stop.

    Raises:
        DataError: nothing could be decoded, the network returned NaN.
    """
    if isinstance(found, FeatureTable):
        _report_finished(found, on_skip, progress)
        return found
    extractor, path, names = found, Path(path), source.names
    identity = {
        "model": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "weights_verified": extractor.weights_verified,
        "transform": extractor.preprocess,
        "square": square,
        "batch": batch_size,
    }
    mark = fingerprint(source)
    work = _Partial(path, {**identity, "fingerprint": mark, "dim": extractor.dim}, len(names), batch_size)
    _fill(work, source, extractor, square, jobs, on_skip, label, progress)
    return work.publish(path, names, identity, mark)


def _fill(
    work: _Partial,
    source: ImageSource,
    extractor: FeatureExtractor,
    square: int | None,
    jobs: int,
    on_skip: Callable[[str, str], None],
    label: str,
    progress: Progress,
) -> None:
    """Compute the batches that are still open."""
    names, batch_size = source.names, work.batch_size
    progress.start(label, len(names))
    try:
        progress.advance(work.num_done - len(work.skipped))
        for name, reason in work.skipped.items():
            on_skip(name, reason)
        for batch, pictures in _read_batches(source, work.open_batches(), batch_size, square, jobs):
            broken = {names[batch * batch_size + i]: why for i, why in enumerate(pictures) if isinstance(why, str)}
            for name, reason in broken.items():
                on_skip(name, reason)
            rows = np.zeros((len(pictures), extractor.dim), dtype="<f4")
            for group in _same_size(pictures):
                rows[group] = _extract(extractor, [pictures[index] for index in group])
            work.store(batch, rows, broken)
            progress.advance(len(pictures) - len(broken))
    finally:
        progress.finish()


def fingerprint(source: ImageSource) -> str:
    """SHA-256 over the name, size and modification time (in a zip: checksum) of every picture."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(f"{name}\0{source.stamp(name)}\n".encode())
    return digest.hexdigest()


def description_path(path: Path) -> Path:
    """`NAME.memmap` -> `NAME_desc.json`."""
    return path.with_name(path.name.removesuffix(".memmap") + "_desc.json")


def _report_finished(table: FeatureTable, on_skip: Callable[[str, str], None], progress: Progress) -> None:
    """Tell of a table that was there before what `compute_features` would have told."""
    progress.start(f"{table.path.stem} features are up to date", len(table.names) + len(table.skipped))
    for name, reason in table.skipped.items():
        on_skip(name, reason)
    progress.advance(len(table.names))
    progress.finish()
    shutil.rmtree(_partial_folder(table.path), ignore_errors=True)  # of a run killed while it tidied up


def _extract(extractor: FeatureExtractor, pictures: list[np.ndarray]) -> np.ndarray:
    import torch

    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [group, 3, H, W]
    try:
        rows = extractor(images).cpu().numpy()
    except torch.OutOfMemoryError:
        raise ThreeDGPError(f"The {extractor.device} ran out of memory: choose a smaller --batch.") from None
    if not np.isfinite(rows).all():
        raise DataError(f"The network {extractor.name} returned values that are not finite: check its weights.")
    return rows


def _read_batches(
    source: ImageSource, batches: list[int], batch_size: int, square: int | None, jobs: int
) -> Iterator[tuple[int, list[np.ndarray | str]]]:
    """Decoded batches in order, read ahead by threads: a picture is uint8 [H, W, 3] or the reason why it is not."""

    def read(name: str) -> np.ndarray | str:
        try:
            data = source.read(name)
            return decode_image(data) if square is None else np.array(square_image(open_image(data), square))
        except DataError as error:
            return str(error)

    names = [source.names[batch * batch_size : (batch + 1) * batch_size] for batch in batches]
    pictures = map_ahead(read, (name for group in names for name in group), jobs, window=2 * batch_size + jobs)
    for batch, group in zip(batches, names, strict=True):
        yield batch, [next(pictures) for _ in group]


def _same_size(pictures: list[np.ndarray | str]) -> list[list[int]]:
    """Indices of the decoded pictures, grouped by size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        if not isinstance(picture, str):
            groups.setdefault(picture.shape, []).append(index)
    return list(groups.values())


def _mark_path(path: Path) -> Path:
    """Hidden file that remembers which state of the source a finished table describes."""
    return path.with_name(f".{path.name.removesuffix('.memmap')}_source.json")


def _partial_folder(path: Path) -> Path:
    return path.with_name(f".{path.name.removesuffix('.memmap')}.partial")


class _Partial:
    """An unfinished table: `.NAME.partial/` with the rows so far, one byte per finished batch, and the skipped."""

    def __init__(self, path: Path, identity: dict[str, Any], num: int, batch_size: int):
        self.folder = _partial_folder(path)
        self.rows_path, self.done_path = self.folder / "rows.bin", self.folder / "done.bin"
        self.num, self.dim, self.batch_size = num, identity["dim"], batch_size
        num_batches = -(-num // batch_size)
        if not self._continues(identity, num_batches, path):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.rows_path.touch()
            self.done_path.write_bytes(bytes(num_batches))
            write_json(self.folder / "identity.json", identity)  # last: it vouches for the others
        self.done = bytearray(self.done_path.read_bytes())
        lines = read_json_lines(self.folder / "skipped.jsonl")
        self.skipped = {line["name"]: line["reason"] for line in lines if self.done[line["batch"]]}

    def _continues(self, identity: dict[str, Any], num_batches: int, path: Path) -> bool:
        """Whether the folder holds an earlier piece of exactly this work."""
        try:
            same = read_json(self.folder / "identity.json") == identity
            done = self.done_path.read_bytes()
        except (DataError, OSError):
            return False
        if not same or len(done) != num_batches:
            return False
        return self.rows_path.exists() or (all(done) and path.exists())  # killed between rename and description

    @property
    def num_done(self) -> int:
        """Pictures in finished batches."""
        return sum(min(self.batch_size, self.num - b * self.batch_size) for b, done in enumerate(self.done) if done)

    def open_batches(self) -> list[int]:
        return [batch for batch, done in enumerate(self.done) if not done]

    def store(self, batch: int, rows: np.ndarray, broken: dict[str, str]) -> None:
        """Write a batch's rows, then mark it: a kill in between repeats the batch."""
        self.skipped.update(broken)
        for name, reason in broken.items():
            append_json_line(self.folder / "skipped.jsonl", {"batch": batch, "name": name, "reason": reason})
        with open(self.rows_path, "r+b") as file:
            file.seek(batch * self.batch_size * self.dim * 4)
            file.write(rows.tobytes())
        with open(self.done_path, "r+b") as file:
            file.seek(batch)
            file.write(b"\1")
        self.done[batch] = 1

    def publish(self, path: Path, names: list[str], identity: dict[str, Any], mark: str) -> FeatureTable:
        """Turn the work into the finished table. Repeating it after a kill gives the same files."""
        kept = [name for name in names if name not in self.skipped]
        if not kept:
            shutil.rmtree(self.folder)
            raise DataError(f"None of the {len(names)} pictures could be decoded.")
        description_path(path).unlink(missing_ok=True)  # never a new table under an old description
        if self.rows_path.exists():
            if self.skipped:
                self._write_kept_rows(path, names)
            else:
                self.rows_path.replace(path)
        description = {
            "shape": [len(kept), self.dim],
            "filepath_to_idx": {name: row for row, name in enumerate(kept)},
            "model": identity["model"],
            "weights_sha256": identity["weights_sha256"],
            "transform": identity["transform"],
            "dtype": "float32",
        }
        write_json(description_path(path), description)
        skipped = {name: self.skipped[name] for name in sorted(self.skipped)}
        write_json(_mark_path(path), {"fingerprint": mark, "identity": identity, "skipped": skipped})
        shutil.rmtree(self.folder)
        return FeatureTable(path, kept, self.dim, skipped, identity)

    def _write_kept_rows(self, path: Path, names: list[str]) -> None:
        """Copy the rows without the holes of skipped pictures."""
        rows = np.memmap(self.rows_path, dtype="<f4", mode="r").reshape(-1, self.dim)
        keep = np.fromiter((name not in self.skipped for name in names), dtype=bool, count=len(names))
        with atomic_open(path) as file:
            for start in range(0, len(names), COPY_ROWS):
                piece = rows[start : start + COPY_ROWS]
                file.write(piece[keep[start : start + COPY_ROWS][: len(piece)]].tobytes())
