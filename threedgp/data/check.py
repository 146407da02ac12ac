"""Check: everything that could stop training half-way, found beforehand and reported at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from threedgp.data.embeddings import Embeddings
from threedgp.data.images import decode_image, decode_usable_depth, read_header, verify_checksums
from threedgp.data.labels import CLASSES_JSON, DATASET_JSON, parse_labels
from threedgp.data.source import (
    START_BYTES,
    ImageSource,
    class_of,
    depth_name_of,
    embeddings_folder,
    open_source,
    refused_names,
    stem_of,
)
from threedgp.data.workers import parallel
from threedgp.errors import DataError
from threedgp.files import parse_json
from threedgp.progress import NULL_PROGRESS, Progress, bar


class Problem(NamedTuple):
    """One thing that is wrong: which file (relative to the set), and what."""

    path: str
    reason: str


@dataclass
class CheckReport:
    """What is in a set, and what is wrong with it.

    Attributes:
        images, depth_maps: how many there are.
        sizes: {"256x256": count} (width x height), modes and depth_modes: {"RGB": count}, as far as readable.
        classes: {name: images}, by dataset.json where there is one, else by folder.
        labels: number of labelled images, or None when the set has no labels.
        embeddings: {name: [rows, dim]}.
        decoded: whether every pixel was decoded, or only the headers read.
    """

    path: Path
    images: int = 0
    depth_maps: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    depth_modes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)
    labels: int | None = None
    embeddings: dict[str, list[int]] = field(default_factory=dict)
    decoded: bool = False
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, *paths: str) -> None:
        """Note what is wrong with these files."""
        self.problems += [Problem(path, reason) for path in paths]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**self.__dict__, "path": str(self.path), "problems": [p._asdict() for p in self.problems]}


class Seen(NamedTuple):
    """What one image and its depth map look like from the outside or inside."""

    size: str
    mode: str
    depth_mode: str
    problems: list[Problem]


def check(
    path: Path | str, *, decode: bool = False, jobs: int | None = None, progress: Progress = NULL_PROGRESS
) -> CheckReport:
    """Check a folder or zip of images: pairs, sizes, modes, labels, class counts and embeddings.

    A set that `resize` wrote must hold 8-bit RGB squares of its resolution, each with depth if any has it. Of other
    folders only what later stages need is asked: readable, unambiguous, depth as large as its image.

    Args:
        decode: decode every pixel and compare checksums, instead of reading headers.

    Raises:
        DataError: there is no image at all.
    """
    source = open_source(path)
    report = CheckReport(Path(path), len(source.names), len(source.depth_names), decoded=decode)
    _check_names(source, report)
    resolution = _check_labels(source, report)
    maps = set(source.depth_names)
    pairs = ((name, depth_name_of(name) if depth_name_of(name) in maps else None) for name in source.names)
    look = partial(_look, source.without_names(), decode, resolution)
    with bar(progress, "Decoding" if decode else "Reading headers", len(source.names)):
        for seen in parallel(look, pairs, jobs=jobs):
            report.sizes.update([seen.size] if seen.size else [])
            report.modes.update([seen.mode] if seen.mode else [])
            report.depth_modes.update([seen.depth_mode] if seen.depth_mode else [])
            report.problems += seen.problems
            progress.advance()
    _check_embeddings(source, report)
    report.problems.sort()
    return report


def _check_names(source: ImageSource, report: CheckReport) -> None:
    """Pairs and names, without opening a file."""
    for name, reason in {**source.problems, **refused_names(source.names)}.items():
        report.add(reason, name)
    maps, wanted = set(source.depth_names), {depth_name_of(name) for name in source.names}
    alone = [name for name in source.names if maps and depth_name_of(name) not in maps]
    report.add("has no depth map, though others of this set have one", *alone)
    odd = [name for name in source.names if stem_of(name).endswith("_depth")]
    report.add("its name ends in _depth, which marks depth maps", *odd)
    report.add("is a depth map without an image", *(name for name in source.depth_names if name not in wanted))


def _check_labels(source: ImageSource, report: CheckReport) -> int | None:
    """Count the classes; returns the resolution that dataset.json promises."""
    report.classes = dict(sorted(Counter(class_of(name) or "." for name in source.names).items()))
    if DATASET_JSON not in source:
        return None
    try:
        content = parse_json(source.read(DATASET_JSON))
        labels = parse_labels(content, "it")
    except (DataError, ValueError) as error:
        report.add(str(error), DATASET_JSON)
        return None
    stems = {stem_of(name): name for name in source.names}
    for what, table in (("label", labels.values), ("camera_angles", labels.angles or None)):
        if table is not None:
            report.add(f"has no {what} in {DATASET_JSON}", *(name for stem, name in stems.items() if stem not in table))
    gone = [stem for stem in (labels.values if labels.values is not None else labels.angles) if stem not in stems]
    if gone:
        report.add(f"names {len(gone)} images that are not there (first: {gone[0]})", DATASET_JSON)
    if labels.values is not None:
        used = [labels.values[stem] for stem in stems if stem in labels.values]
        report.labels = len(used)
        counts = Counter(value for value in used if isinstance(value, int))
        if counts or labels.classes:
            names = labels.classes or [str(number) for number in range(max(counts) + 1)]
            report.classes = {name: counts[number] for number, name in enumerate(names)}
    if labels.values is not None and CLASSES_JSON in source:
        try:
            if parse_json(source.read(CLASSES_JSON)) != labels.classes:
                report.add(f"names other classes than {DATASET_JSON}", CLASSES_JSON)
        except (DataError, ValueError) as error:
            report.add(f"is not valid JSON ({error})", CLASSES_JSON)
    resolution = content.get("resolution")
    return resolution if isinstance(resolution, int) else None


def _look(source: ImageSource, decode: bool, resolution: int | None, pair: tuple[str, str | None]) -> Seen:
    """Look at one image and its depth map. Runs in a worker."""
    name, depth = pair
    problems: list[Problem] = []
    size = mode = depth_mode = ""
    try:
        size, mode = _look_at(source, name, decode, is_depth=False)
        if resolution is not None and size != f"{resolution}x{resolution}":
            problems.append(Problem(name, f"is {size} instead of {resolution}x{resolution}"))
        if resolution is not None and mode != "RGB":
            problems.append(Problem(name, f"has pixels of mode {mode} instead of RGB"))
    except DataError as error:
        problems.append(Problem(name, str(error)))
    if depth is not None:
        try:
            depth_size, depth_mode = _look_at(source, depth, decode, is_depth=True)
            if size and depth_size != size:
                problems.append(Problem(depth, f"is {depth_size}, its image {size}"))
        except DataError as error:
            problems.append(Problem(depth, str(error)))
    return Seen(size, mode, depth_mode, problems)


def _look_at(source: ImageSource, name: str, decode: bool, is_depth: bool) -> tuple[str, str]:
    """Size ("WxH") and mode of a picture or depth map; with `decode` all of it is read."""
    if decode:
        data = source.read(name)
        header = read_header(data)
        pixels = decode_usable_depth(data) if is_depth else decode_image(data)
        verify_checksums(data)
        return f"{pixels.shape[1]}x{pixels.shape[0]}", header.mode
    try:
        header = read_header(source.read(name, START_BYTES))
    except DataError:  # a format that keeps its header elsewhere, or a broken file
        header = read_header(source.read(name))
    if is_depth and header.mode != "L" and not header.mode.startswith("I"):
        raise DataError(f"a depth map needs one channel of 8 or 16 bits, this file has mode {header.mode}")
    return f"{header.width}x{header.height}", header.mode


def _check_embeddings(source: ImageSource, report: CheckReport) -> None:
    for path in sorted(embeddings_folder(source.root).glob("[!.]*.memmap")):
        where = f"embeddings/{path.name}"
        try:
            embeddings = Embeddings.open(path)
        except (DataError, OSError) as error:
            report.add(str(error), where)
            continue
        report.embeddings[path.stem] = list(embeddings.rows.shape)
        missing = [image for image in source.names if image not in embeddings.row_of]
        if missing:
            report.add(f"has no row for {len(missing)} images (first: {missing[0]})", where)
        gone = set(embeddings.row_of).difference(source.names)
        if gone:
            report.add(f"has rows for {len(gone)} images that are not there", where)
        bad = embeddings.non_finite() if report.decoded else []
        if bad:
            report.add(f"holds NaN or Inf for {len(bad)} images (first: {bad[0]})", where)
