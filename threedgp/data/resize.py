"""Resize: the square, equally large images and depth maps that training reads, with their labels.

Centre crop, then Lanczos-3 by Pillow for images; depth maps go through the same filter in floating point and are
clipped once, never through 8 bits and never between the passes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from threedgp.data.images import encode_depth, encode_image, image_size, open_image
from threedgp.data.journal import Job, LeftOutError, Recorder
from threedgp.data.labels import CLASSES_JSON, DATASET_JSON, Labels, choose_labels
from threedgp.data.source import DEPTH_ENDING, depth_name_of, open_source, stem_of
from threedgp.data.stage import Policy, Stage
from threedgp.errors import UsageError
from threedgp.files import atomic_path, write_json
from threedgp.progress import NULL_PROGRESS, Progress, bar

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_SIZE = 8192
GREY_TOLERANCE = 2  # largest difference between channels that still counts as grey
GREY_SIDE = 64
FAST_REMAINDER = 2.5  # the factor that is left to Lanczos after reduced JPEG decoding: above 50 dB PSNR
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ResizeSettings:
    """All that decides the bytes of a resized image.

    Attributes:
        size: side in pixels.
        format: `png` or `jpg` (quality 95, 4:4:4); depth maps are 16-bit PNG always.
        drop_grey: leave out pictures without colour.
        min_size: leave out pictures whose shorter side is smaller (0 enlarges them).
        rename: number the images in order (00000000.png); the manifest keeps the original names.
        fast: decode large JPEGs at 1/2, 1/4 or 1/8 in the DCT where a factor of 2.5 is left for Lanczos: about twice
            as fast on 3-megapixel photos, above 50 dB PSNR from the exact result.
        labels: `auto`, `none` or a JSON file (see `choose_labels`).
    """

    size: int
    format: Literal["png", "jpg"] = "png"
    drop_grey: bool = False
    min_size: int = 0
    rename: bool = False
    fast: bool = False
    labels: str = "auto"


def resize(
    source: Path | str,
    output: Path | str,
    settings: ResizeSettings,
    *,
    classes: list[str] | None = None,
    pack: bool = False,
    **policy: Unpack[Policy],
) -> Stage:
    """Write every image of a folder or zip as `settings.size` squares, its depth map too, and the labels.

    If any image of the source has a depth map, images without one are skipped as broken: training needs pairs.

    Args:
        classes: names of the classes in the order of their numbers (default: the sorted folders of the source).
        pack: also write `<output>.zip` with the finished set, stored and byte-for-byte reproducible.

    Raises:
        UsageError: impossible settings, or see `Stage.begin`.
        DataError: the labels are incomplete, or too many files were broken.
    """
    if not 1 <= settings.size <= MAX_SIZE:
        raise UsageError(f"The size must be between 1 and {MAX_SIZE} pixels, not {settings.size}.")
    found = open_source(source)
    labels = choose_labels(found, settings.labels, classes)
    arguments = {**asdict(settings), "classes": classes}
    if settings.labels not in ("auto", "none"):
        arguments["labels"] = os.path.relpath(settings.labels, output)
    stage = Stage.begin("resize", found, output, arguments, **policy)
    stage.make(f"Resizing to {settings.size}", _plan(stage, settings), partial(_resize_one, settings))
    _write_labels(stage, labels, settings.size)
    report = stage.finish()
    if pack:
        report.extra["zip"] = str(pack_zip(stage.output, Path(f"{stage.output}.zip"), progress=stage.progress))
    return report


def centre_square(height: int, width: int) -> tuple[int, int, int]:
    """(top, left, side) of the largest centred square; halves are rounded to the even neighbour."""
    side = min(height, width)
    return round((height - side) / 2), round((width - side) / 2), side


def square_image(image: Image.Image, size: int) -> Image.Image:
    """Centre-crop an RGB image and bring it to size x size by Lanczos-3 (8-bit, rounded after each pass)."""
    top, left, side = centre_square(image.height, image.width)
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def square_depth(depth: np.ndarray, size: int) -> np.ndarray:
    """Centre-crop uint16 [H, W] and bring it to [size, size]: Lanczos-3 in float, clipped once, rounded."""
    top, left, side = centre_square(*depth.shape)
    square = depth[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    exact = Image.fromarray(square.astype(np.float32)).resize((size, size), Image.Resampling.LANCZOS)
    return np.rint(np.clip(np.asarray(exact), 0, 65535)).astype(np.uint16)


def square_image_fast(data: bytes, size: int) -> Image.Image:
    """Like decoding and `square_image`, with part of the reduction of a large JPEG done while it is decoded."""
    height, width = image_size(data)
    top, left, side = centre_square(height, width)
    reduce = next((step for step in (8, 4, 2) if side / step >= FAST_REMAINDER * size), 1)
    image = open_image(data, reduce=reduce)
    if image.size == (width, height):
        return square_image(image, size)
    box = (left / reduce, top / reduce, (left + side) / reduce, (top + side) / reduce)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def is_grey(image: Image.Image) -> bool:
    """True when no pixel of a 64-pixel thumbnail has colour."""
    small = image.copy()
    small.thumbnail((GREY_SIDE, GREY_SIDE))
    pixels = np.asarray(small).astype(np.int16)
    return int((pixels.max(-1) - pixels.min(-1)).max()) <= GREY_TOLERANCE


def pack_zip(folder: Path, archive: Path, *, progress: Progress = NULL_PROGRESS) -> Path:
    """Pack a finished set into a zip: sorted, stored (pictures are compressed already), the same bytes every time."""
    source = open_source(folder)
    extra = [name for name in (CLASSES_JSON, DATASET_JSON) if name in source]
    names = sorted([*source.names, *source.depth_names, *extra])
    packing = bar(progress, "Packing", len(names), "files")
    with packing, atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name in names:
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, source.read(name))
            progress.advance()
    return archive


def _plan(stage: Stage, settings: ResizeSettings) -> Iterator[Job]:
    """Jobs in discovery order; images without a depth map are skipped if any image has one."""
    found, maps, usable = stage.found, set(stage.found.depth_names), set(stage.usable())
    for number, name in enumerate(found.names):
        if name not in usable:
            continue
        if stem_of(name).endswith("_depth"):
            stage.skip(name, f"a name ending in _depth marks a depth map (as {DEPTH_ENDING}); rename the image")
        elif maps and depth_name_of(name) not in maps:
            stage.skip(name, "it has no depth map, though others of this set have one")
        else:
            folder = name.rpartition("/")[0]
            stem = f"{folder}/{number:08d}".lstrip("/") if settings.rename else stem_of(name)
            files = {f"{stem}.{settings.format}": name}
            yield stage.journal.job(files | ({stem + DEPTH_ENDING: depth_name_of(name)} if maps else {}))


def _resize_one(settings: ResizeSettings, job: Job, files: Recorder) -> None:
    """Make one image and its depth map. Runs in a worker."""
    data = files.read(job.name)
    height, width = image_size(data)
    if min(height, width) < settings.min_size:
        raise LeftOutError(f"{width}x{height} is smaller than {settings.min_size} pixels")
    size = settings.size
    image = square_image_fast(data, size) if settings.fast else square_image(open_image(data), size)
    if settings.drop_grey and is_grey(image):
        raise LeftOutError("it has no colour")
    target, *depth_target = job.files
    depth = [files.read_depth(job.files[name], height, width) for name in depth_target]
    files.write(target, encode_image(image, f".{settings.format}"))
    for name, pixels in zip(depth_target, depth, strict=True):
        files.write(name, encode_depth(square_depth(pixels, size)))


def _write_labels(stage: Stage, labels: Labels, size: int) -> None:
    """dataset.json for the images that were written, under their new names, and classes.json."""
    origins = {target: origin for target, origin in stage.files.items() if not target.endswith(DEPTH_ENDING)}

    def renamed(table: dict[str, Any] | None) -> dict[str, Any] | None:
        return table and {stem_of(target): table[stem_of(origin)] for target, origin in origins.items()}

    written = Labels(renamed(labels.values), labels.classes, renamed(labels.angles) or {})
    write_json(stage.output / DATASET_JSON, written.as_json(sorted(origins), size))
    if labels.classes is not None:
        write_json(stage.output / CLASSES_JSON, labels.classes)
    else:
        (stage.output / CLASSES_JSON).unlink(missing_ok=True)
