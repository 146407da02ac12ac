"""Merge: put every photo beside its depth map.

Photos and depth maps are matched by folder and stem, whatever extension or depth naming (LeReS, MiDaS and ZoeDepth
styles) they come with, and only pairs of equal size go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from threedgp.data.images import encode_depth, image_size
from threedgp.data.journal import Job, Recorder, relative
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
from threedgp.data.stage import Policy, Stage
from threedgp.errors import DataError, UsageError
from threedgp.files import write_json
from threedgp.pretrained.disparity import depth_of_disparity, quantize

if TYPE_CHECKING:
    from typing_extensions import Unpack

DepthIs = Literal["far-large", "near-large"]
# Endings of depth maps after the image's stem, best first, in any case. A plain picture counts only in a folder of its
# own, and last, because LeReS leaves a copy of the photo beside its depth map.
MARKED_ENDINGS = (
    DEPTH_ENDING, "-depth_raw.png", ".-depth_raw.png", "._depth.png", "_depth.tif", "_depth.tiff", "_depth.npy", ".npy",
)  # fmt: skip
PLAIN_ENDINGS = (".png", ".tif", ".tiff")


def merge(
    source: Path | str,
    depth: Path | str,
    output: Path | str,
    *,
    depth_is: DepthIs = "far-large",
    **policy: Unpack[Policy],
) -> Stage:
    """Write each photo under its own name and its depth map as 16-bit `<stem>_depth.png` into `output`.

    Args:
        source: folder of photos. depth: folder of depth maps (one-channel 8- or 16-bit PNG or TIFF, or uint16
            `.npy`).
        depth_is: which way round the maps are. `far-large`: larger is farther (LeReS, metric depth, `3dgp data depth`).
            `near-large`: larger is nearer (MiDaS, Depth-Anything); they are turned round, see `depth_of_disparity`.
        output: folder to write.

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
    maps, orphans = match(photos, Path(depth).absolute())
    if not maps:
        raise DataError(
            f"None of the {len(photos.names)} images in {source} has a depth map in {depth}. A photo a/1.jpg needs "
            f"a depth map a/1_depth.png there."
        )
    labels, unmatched = read_labels(photos), [name for name in photos.names if name not in maps]
    arguments = {"depth": relative(Path(depth), Path(output)), "depth_is": depth_is}
    stage = Stage.begin("merge", photos, output, arguments, **policy)
    stage.extra = {"images_without_depth": len(unmatched), "depth_without_image": len(orphans)}
    for what, names in (("images have no depth map", unmatched), ("depth maps have no image", orphans)):
        if names:
            stage.progress.note(f"{len(names)} {what} and are left out (first: {names[0]})")
    stage.dropped |= dict.fromkeys(unmatched, "it has no depth map")
    stage.dropped |= {relative(Path(depth) / name, photos.root): "no image belongs to this map" for name in orphans}
    if depth_is == "near-large":
        stage.progress.note(f"The maps in {depth} are taken as near-large (larger is nearer) and turned round.")
    elif not ours:
        stage.progress.note(
            f"The maps in {depth} are taken as far-large: larger is farther. If larger is nearer there (MiDaS, "
            "Depth-Anything), add --depth-is near-large."
        )
    stage.make("Merging", _plan(stage, maps), partial(_merge_one, depth_is))
    if labels is not None:
        write_json(stage.output / DATASET_JSON, labels.as_json(name for name in photos.names if name in stage.files))
    return stage.finish(total=stage.images + len(stage.skipped))


def match(photos: FolderSource, depth: Path) -> tuple[dict[str, str], list[str]]:
    """Each image's depth map, as seen from the photos, and maps without an image, as seen from the depth folder."""
    apart = depth.resolve() != photos.root.resolve()
    available = [name for name in list_files(depth, {}) if name.lower().endswith((".png", ".tif", ".tiff", ".npy"))]
    if not apart:
        available = sorted(set(available).difference(photos.names))
    inside = _by_stem(available, MARKED_ENDINGS + PLAIN_ENDINGS if apart else MARKED_ENDINGS)
    beside = _by_stem([*photos.depth_names, *photos.left_out], MARKED_ENDINGS)
    maps, used = {}, set()
    for name in photos.names:
        stem = stem_of(name)
        if stem in inside:
            used.add(inside[stem])
            maps[name] = relative(depth / inside[stem], photos.root)
        elif stem in beside:
            maps[name] = beside[stem]
    return maps, sorted(set(available) - used)


def _by_stem(files: list[str], endings: tuple[str, ...]) -> dict[str, str]:
    """{stem of the image: its best depth map}."""
    best: dict[str, str] = {}
    for ending in reversed(endings):
        best |= {name[: -len(ending)]: name for name in files if name.lower().endswith(ending)}
    return best


def _plan(stage: Stage, maps: dict[str, str]) -> Iterator[Job]:
    for name in stage.usable(used=set(maps.values())):
        if name in maps:
            yield stage.journal.job({name: name, depth_name_of(name): maps[name]})
        else:
            stage.progress.advance()


def _merge_one(depth_is: DepthIs, job: Job, files: Recorder) -> None:
    """Copy one photo and bring its depth map into shape. Runs in a worker."""
    target, depth_target = job.files
    photo = files.read(job.name)
    depth = files.read_depth(job.files[depth_target], *image_size(photo))
    if depth_is == "near-large":
        turned = depth_of_disparity(depth)
        depth = quantize(turned - turned.min() + np.float32(0.01))  # near 0, far 60000, as `3dgp data depth` stores it
    files.write(target, photo)
    files.write(depth_target, encode_depth(depth))
