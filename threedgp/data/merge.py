"""Merge: put every photo beside its depth map.

Photos and depth maps are matched by folder and stem, whatever extension or depth naming (LeReS, MiDaS and ZoeDepth
styles) they come with, and only pairs of equal size go on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from threedgp.data.images import decode_depth, encode_depth, image_size
from threedgp.data.journal import Made, Recorder, relative, still_holds
from threedgp.data.labels import DATASET_JSON, read_labels
from threedgp.data.source import (
    DEPTH_ENDING,
    FolderSource,
    clash_reason,
    depth_name_of,
    list_files,
    open_source,
    require_finished,
    same_stems,
    stem_of,
)
from threedgp.data.stage import Stage, StageReport
from threedgp.data.workers import Backend, parallel
from threedgp.errors import DataError
from threedgp.files import write_json
from threedgp.progress import NULL_PROGRESS, Progress

# Endings of depth maps after the image's stem, best first. A plain `.png` counts only in a folder of its own, and
# last, because LeReS leaves a copy of the photo beside its depth map.
DEPTH_ENDINGS = (DEPTH_ENDING, "-depth_raw.png", ".-depth_raw.png", "._depth.png", "_depth.npy", ".npy", ".png")


class Pair(NamedTuple):
    """One job: a photo, the depth map that was found for it, and how an earlier run made their copies."""

    name: str
    depth: Path
    before: Made | None = None


def merge(
    source: Path | str,
    depth: Path | str,
    output: Path | str,
    *,
    on_error: Literal["skip", "fail"] = "skip",
    max_errors: float | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    backend: Backend = "loky",
    progress: Progress = NULL_PROGRESS,
) -> StageReport:
    """Write each photo under its own name and its depth map as 16-bit `<stem>_depth.png` into `output`.

    Args:
        source: folder of photos. depth: folder of depth maps (one-channel 8- or 16-bit PNG, or uint16 `.npy`).
        output: folder to write. See `Stage.begin` for the other arguments.

    Returns:
        The report; `extra` counts `images_without_depth` and `depth_without_image`.

    Raises:
        DataError: nothing matched, or too many pairs were broken.
    """
    photos = open_source(source)
    if not isinstance(photos, FolderSource):
        raise DataError(f"{source} is an archive; merge needs a folder of photos.")
    if not Path(depth).is_dir():
        raise DataError(f"The depth folder {depth} does not exist. Make it with: 3dgp data depth")
    require_finished(Path(depth))
    pairs, unmatched, orphans = match(photos, Path(depth).absolute())
    if not pairs:
        raise DataError(
            f"None of the {len(photos.names)} images in {source} has a depth map in {depth}. A photo a/1.jpg needs "
            f"a depth map a/1_depth.png there."
        )
    labels = read_labels(photos)
    stage = Stage.begin(
        "merge",
        source,
        output,
        {"depth": relative(Path(depth), Path(output))},
        overwrite=overwrite,
        on_error=on_error,
        max_errors=max_errors,
        progress=progress,
    )
    stage.extra = {"images_without_depth": len(unmatched), "depth_without_image": len(orphans)}
    for what, names in (("images have no depth map", unmatched), ("depth maps have no image", orphans)):
        if names:
            progress.note(f"{len(names)} {what} and are left out (first: {names[0]})")
    progress.start("Merging", len(pairs))
    try:
        doubles = same_stems([pair.name for pair in pairs])
        for name, reason in {
            **photos.problems,
            **{name: clash_reason(first) for name, first in doubles.items()},
        }.items():
            stage.skip(name, reason)
        todo = (pair._replace(before=stage.journal.jobs.get(pair.name)) for pair in pairs if pair.name not in doubles)
        work = partial(_merge_one, photos.without_names(), stage.output.absolute())
        for pair, made in parallel(work, todo, jobs=jobs, backend=backend):
            if isinstance(made, str):
                stage.skip(pair.name, made)
            else:
                files = {pair.name: pair.name, depth_name_of(pair.name): relative(pair.depth, Path(depth))}
                stage.done(files, made)
    finally:
        progress.finish()
    if labels is not None:
        write_json(stage.output / DATASET_JSON, labels.as_json(name for name in photos.names if name in stage.files))
    return stage.finish()


def match(photos: FolderSource, depth: Path) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs in order, images without a depth map, and depth maps without an image (relative to the depth folder)."""
    available = set(list_files(depth, lambda name: name.endswith((".png", ".npy"))))
    if depth.resolve() == photos.root.resolve():
        available -= set(photos.names)
    pairs, unmatched, used = [], [], set()
    for name in photos.names:
        stem = stem_of(name)
        inside = next((stem + ending for ending in DEPTH_ENDINGS if stem + ending in available), None)
        if inside is not None:
            used.add(inside)
            pairs.append(Pair(name, depth / inside))
            continue
        beside = next((stem + end for end in DEPTH_ENDINGS[:-1] if stem + end in photos), None)
        if beside is not None:
            pairs.append(Pair(name, photos.root.absolute() / beside))
        else:
            unmatched.append(name)
    return pairs, unmatched, sorted(available - used)


def _merge_one(photos: FolderSource, output: Path, pair: Pair) -> tuple[Pair, Made | str]:
    """Copy one pair; returns how it was made, or the reason when it is not usable. Runs in a worker."""
    beside = FolderSource.only_to_read(pair.depth.parent)
    inputs = {"photo": (photos, pair.name), "depth": (beside, pair.depth.name)}
    made = still_holds(pair.before, inputs, output, (pair.name, depth_name_of(pair.name)))
    if made is not None:
        return pair, made
    files = Recorder(inputs, output)
    try:
        photo = files.read("photo")
        height, width = image_size(photo)
    except DataError as error:
        return pair, str(error)
    try:
        pixels = decode_depth(files.read("depth"))
    except DataError as error:
        return pair, f"its depth map {pair.depth.name}: {error}"
    if pixels.shape != (height, width):
        return pair, (
            f"its depth map {pair.depth.name} is {pixels.shape[1]}x{pixels.shape[0]}, the image {width}x{height}"
        )
    files.write(pair.name, photo)
    files.write(depth_name_of(pair.name), encode_depth(pixels))
    return pair, files.made()
