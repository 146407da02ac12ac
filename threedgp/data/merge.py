"""Merge: put every photo beside its depth map.

Photos and depth maps are matched by folder and stem, whatever extension or depth naming (LeReS, MiDaS and ZoeDepth
styles) they come with, and only pairs of equal size go on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from threedgp.data.images import decode_usable_depth, encode_depth, image_size
from threedgp.data.journal import Inputs, Made, Recorder, relative, still_holds
from threedgp.data.labels import DATASET_JSON, read_labels
from threedgp.data.source import (
    DEPTH_ENDING,
    FolderSource,
    depth_name_of,
    list_files,
    open_source,
    read_manifest,
    require_finished,
    stem_of,
)
from threedgp.data.stage import Stage, StageReport
from threedgp.data.workers import Backend, parallel
from threedgp.errors import DataError, UsageError
from threedgp.files import write_json
from threedgp.pretrained.disparity import depth_of_disparity, quantize
from threedgp.progress import NULL_PROGRESS, Progress

DepthIs = Literal["far-large", "near-large"]
# Endings of depth maps after the image's stem, best first, in any case. A plain picture counts only in a folder of its
# own, and last, because LeReS leaves a copy of the photo beside its depth map.
MARKED_ENDINGS = (
    DEPTH_ENDING, "-depth_raw.png", ".-depth_raw.png", "._depth.png", "_depth.tif", "_depth.tiff", "_depth.npy", ".npy",
)  # fmt: skip
PLAIN_ENDINGS = (".png", ".tif", ".tiff")


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
    depth_is: DepthIs = "far-large",
    on_error: Literal["skip", "fail"] = "skip",
    max_errors: float | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    backend: Backend = "loky",
    progress: Progress = NULL_PROGRESS,
) -> StageReport:
    """Write each photo under its own name and its depth map as 16-bit `<stem>_depth.png` into `output`.

    Args:
        source: folder of photos. depth: folder of depth maps (one-channel 8- or 16-bit PNG or TIFF, or uint16
            `.npy`).
        depth_is: which way round the maps are. `far-large`: larger is farther (LeReS, metric depth, `3dgp data depth`).
            `near-large`: larger is nearer (MiDaS, Depth-Anything); they are turned round, see `depth_of_disparity`.
        output: folder to write. See `Stage.begin` for the other arguments.

    Returns:
        The report; `extra` counts `images_without_depth` and `depth_without_image`, `dropped` names them.

    Raises:
        DataError: nothing matched, or too many pairs were broken.
        UsageError: `near-large` for maps that `3dgp data depth` made.
    """
    photos = open_source(source)
    if not isinstance(photos, FolderSource):
        raise DataError(f"{source} is an archive; merge needs a folder of photos.")
    if not Path(depth).is_dir():
        raise DataError(f"The depth folder {depth} does not exist. Make it with: 3dgp data depth")
    require_finished(Path(depth))
    ours = (read_manifest(Path(depth)) or {}).get("stage") == "depth"
    if ours and depth_is != "far-large":
        raise UsageError(f"The maps in {depth} come from '3dgp data depth' and are far-large: drop --depth-is.")
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
        {"depth": relative(Path(depth), Path(output)), "depth_is": depth_is},
        overwrite=overwrite,
        on_error=on_error,
        max_errors=max_errors,
        progress=progress,
    )
    stage.extra = {"images_without_depth": len(unmatched), "depth_without_image": len(orphans)}
    for what, names in (("images have no depth map", unmatched), ("depth maps have no image", orphans)):
        if names:
            progress.note(f"{len(names)} {what} and are left out (first: {names[0]})")
    stage.dropped |= dict.fromkeys(unmatched, "it has no depth map")
    stage.dropped |= {relative(Path(depth) / name, Path(source)): "no image belongs to this map" for name in orphans}
    if depth_is == "near-large":
        progress.note(f"The maps in {depth} are taken as near-large (larger is nearer) and turned round.")
    elif not ours:
        progress.note(
            f"The maps in {depth} are taken as far-large: larger is farther. If larger is nearer there (MiDaS, "
            "Depth-Anything), add --depth-is near-large."
        )
    progress.start("Merging", len(pairs) + len(photos.problems))
    try:
        maps = {relative(pair.depth, photos.root) for pair in pairs}
        usable = set(stage.usable(photos, used=maps))
        todo = (pair._replace(before=stage.journal.jobs.get(pair.name)) for pair in pairs if pair.name in usable)
        work = partial(_merge_one, photos.without_names(), stage.output.absolute(), depth_is)
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
    return stage.finish(total=stage.images + len(stage.skipped))


def match(photos: FolderSource, depth: Path) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs in order, images without a depth map, and depth maps without an image (relative to the depth folder)."""
    own_folder = depth.resolve() != photos.root.resolve()
    available = list_files(depth, lambda name: name.lower().endswith((".png", ".tif", ".tiff", ".npy")))
    if not own_folder:
        available = sorted(set(available).difference(photos.names))
    inside = _by_stem(available, MARKED_ENDINGS + PLAIN_ENDINGS if own_folder else MARKED_ENDINGS)
    beside = _by_stem([*photos.depth_names, *photos.left_out], MARKED_ENDINGS)
    pairs, unmatched, used = [], [], set()
    for name in photos.names:
        stem = stem_of(name)
        if stem in inside:
            used.add(inside[stem])
            pairs.append(Pair(name, depth / inside[stem]))
        elif stem in beside:
            pairs.append(Pair(name, photos.root.absolute() / beside[stem]))
        else:
            unmatched.append(name)
    return pairs, unmatched, sorted(set(available) - used)


def _by_stem(files: list[str], endings: tuple[str, ...]) -> dict[str, str]:
    """{stem of the image: its best depth map}."""
    best: dict[str, str] = {}
    for ending in reversed(endings):
        best |= {name[: -len(ending)]: name for name in files if name.lower().endswith(ending)}
    return best


def _merge_one(photos: FolderSource, output: Path, depth_is: DepthIs, pair: Pair) -> tuple[Pair, Made | str]:
    """Copy one pair; returns how it was made, or the reason when it is not usable. Runs in a worker."""
    depth = relative(pair.depth, photos.root)
    inputs: Inputs = {pair.name: (photos, pair.name), depth: (photos, depth)}
    made = still_holds(pair.before, inputs, output, (pair.name, depth_name_of(pair.name)))
    if made is not None:
        return pair, made
    files = Recorder(inputs, output)
    try:
        photo = files.read(pair.name)
        height, width = image_size(photo)
    except DataError as error:
        return pair, str(error)
    try:
        pixels = decode_usable_depth(files.read(depth))
    except DataError as error:
        return pair, f"its depth map {pair.depth.name}: {error}"
    if pixels.shape != (height, width):
        return pair, (
            f"its depth map {pair.depth.name} is {pixels.shape[1]}x{pixels.shape[0]}, the image {width}x{height}"
        )
    if depth_is == "near-large":
        turned = depth_of_disparity(pixels)
        pixels = quantize(turned - turned.min() + np.float32(0.01))  # near 0, far 60000, as `3dgp data depth` stores it
    files.write(pair.name, photo)
    files.write(depth_name_of(pair.name), encode_depth(pixels))
    return pair, files.made()
