"""`3dgp data depth`: one depth map for every photo, as `<stem>_depth.png` with 16 bits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from threedgp.colormap import depth_colormap
from threedgp.cores import available_cores
from threedgp.data.ahead import map_ahead
from threedgp.data.images import decode_image, encode_depth, write_image
from threedgp.data.journal import Journal, Made, Recorder, parse_made, still_holds
from threedgp.data.shards import run_shards
from threedgp.data.source import ImageSource, depth_name_of, open_source
from threedgp.data.stage import Stage, StageReport, plain_os_errors
from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from threedgp.pretrained.depth_estimators import DepthEstimator, EstimatorSpec

WORKER_MODULE = "threedgp.data.depth_worker"
SHARDS_FOLDER = ".shards"


class Outcome(NamedTuple):
    """What became of a photo: how its map was made, or the reason why it was not."""

    name: str
    reason: str | None = None
    made: Made | None = None


class _Photo(NamedTuple):
    """A photo on its way through the network."""

    name: str
    size: tuple[int, int]
    input: Tensor
    files: Recorder


def run_depth(
    source: Path | str,
    target: Path | str,
    spec: EstimatorSpec,
    *,
    device: str | None = None,
    gpus: int = 1,
    batch_size: int = 8,
    colormap: bool = False,
    jobs: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    max_errors: float | None = None,
    overwrite: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> StageReport:
    """Estimate depth for every photo of a folder or zip.

    Values are scaled to 0 (near) .. 60000 (farthest pixel) per photo. Maps whose photo has not changed are kept.
    Batches are cut from the whole list, so that a kill changes no byte and neither does sharing the work (beyond the
    rounding of a network that runs with another number of CPU threads).

    Args:
        spec: the estimator, from `choose_estimator`.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        gpus: processes that share the work, one a GPU (or all on the CPU).
        batch_size: photos at a time; another size may change single grey levels.
        colormap: also write colour pictures of the maps into `<target>-preview`.
        jobs: threads that read and write, for each process; None takes one a core.

    Raises:
        UsageError: impossible arguments, or a target made with other ones.
        WeightsError: the network cannot be loaded; nothing has been written.
        DataError: too many broken photos, or the disk is full.
    """
    if batch_size < 1 or gpus < 1:
        raise UsageError("The batch and the number of processes must be at least 1.")
    from threedgp.processes import choose_device  # brings PyTorch

    device = str(choose_device(device))
    _check_devices(device, gpus)
    photos, target = open_source(source), Path(target)
    estimator = spec.build(device) if gpus == 1 else None

    stage = Stage.begin(
        "depth",
        source,
        target,
        spec.identity(),
        overwrite=overwrite,
        on_error=on_error,
        max_errors=max_errors,
        progress=progress,
    )
    if spec.synthetic:
        stage.extra["synthetic"] = True
        progress.note("The depth is made up (synthetic): good for trying the pipeline, not for results.")
    elif spec.name != "leres":
        larger = "nearer, which is turned round" if spec.output == "disparity" else "farther"
        progress.note(f"{spec.name} is taken to return {spec.output} (larger is {larger}); --prediction changes that.")
    progress.start("Estimating depth", len(photos.names) + len(photos.problems))
    try:
        names = stage.usable(photos)
        if estimator is not None:
            threads = jobs or available_cores()
            outcomes = estimate(photos, names, stage.journal, estimator, batch_size, colormap, threads)
        else:
            job = {"names": names, "device": device, "batch_size": batch_size, "colormap": colormap, "jobs": jobs}
            outcomes = _estimate_shared(Path(source), target, spec, gpus, job)
        with plain_os_errors():
            for outcome in outcomes:
                if outcome.reason is None:
                    stage.done({depth_name_of(outcome.name): outcome.name}, outcome.made)
                else:
                    stage.skip(outcome.name, outcome.reason)
    finally:
        progress.finish()
    shutil.rmtree(target / SHARDS_FOLDER, ignore_errors=True)  # of this run, or of a killed one
    return stage.finish()


def estimate(
    photos: ImageSource,
    names: list[str],
    journal: Journal,
    estimator: DepthEstimator,
    batch_size: int,
    colormap: bool,
    jobs: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Outcome]:
    """Make the missing maps of every `world_size`-th batch, starting with `rank`; yields what became of each photo.

    Reading, the network and writing overlap.

    Args:
        journal: of the target folder: which maps are there, and from what.
    """
    target = journal.path.parent
    batches = [names[start : start + batch_size] for start in range(0, len(names), batch_size)][rank::world_size]
    open_batches: list[list[str]] = []
    ready: dict[str, Made] = {}
    for batch in batches:
        found = {name: _existing(photos, journal, name) for name in batch}
        ready |= {name: made for name, made in found.items() if made is not None}
        if all(found.values()):
            yield from (Outcome(name, made=made) for name, made in found.items())
        else:
            open_batches.append(batch)

    def read(name: str) -> _Photo | Outcome:
        files = Recorder({name: (photos, name)}, target)
        try:
            image = decode_image(files.read(name))
            return _Photo(name, image.shape[:2], estimator.prepare(image), files)
        except DataError as error:
            return Outcome(name, str(error))

    def write(item: tuple[_Photo, Tensor]) -> Outcome:
        photo, prediction = item
        return _store(photo, prediction, colormap)

    with ThreadPoolExecutor(max_workers=jobs) as writers:
        photos_ahead = map_ahead(read, (name for batch in open_batches for name in batch), jobs, 2 * batch_size + jobs)
        writing: list = []
        for batch in open_batches:
            read_batch = [next(photos_ahead) for _ in batch]
            missing = set(batch) - ready.keys()
            yield from (photo for photo in read_batch if isinstance(photo, Outcome))
            good = [photo for photo in read_batch if isinstance(photo, _Photo)]
            predicted: list[tuple[_Photo, Tensor]] = []
            for group in _same_shape(good):
                if any(photo.name in missing for photo in group):
                    predicted += zip(group, _predict(estimator, group), strict=True)
            yield from (Outcome(photo.name, made=ready[photo.name]) for photo in good if photo.name not in missing)
            yield from (future.result() for future in writing)  # of the batch before
            writing = [writers.submit(write, item) for item in predicted if item[0].name in missing]
        yield from (future.result() for future in writing)


def _estimate_shared(
    source: Path, target: Path, spec: EstimatorSpec, processes: int, options: dict[str, Any]
) -> Iterator[Outcome]:
    """`estimate` by several processes; see `depth_worker` for the other side."""
    job = options | {"source": str(source.resolve()), "target": str(target.resolve()), "spec": asdict(spec)}
    job["jobs"] = options["jobs"] or max(1, available_cores() // processes)
    for line in run_shards(WORKER_MODULE, job, processes, target / SHARDS_FOLDER):
        yield Outcome(line["name"], line["reason"], parse_made(line["made"]))


def _check_devices(device: str, gpus: int) -> None:
    if not device.startswith("cuda"):
        return
    import torch

    available = torch.cuda.device_count()
    if gpus > available:
        raise UsageError(f"{gpus} GPUs are asked for, but this machine has {available}. Use --gpus or --device cpu.")


def _existing(photos: ImageSource, journal: Journal, name: str) -> Made | None:
    """How the photo's map was made, if it is there and still holds."""
    target = depth_name_of(name)
    return still_holds(journal.jobs.get(target), {name: (photos, name)}, journal.path.parent, [target])


def _same_shape(photos: list[_Photo]) -> list[list[_Photo]]:
    """Groups that can share a batch."""
    groups: dict[tuple[int, ...], list[_Photo]] = {}
    for photo in photos:
        groups.setdefault(tuple(photo.input.shape), []).append(photo)
    return list(groups.values())


def _predict(estimator: DepthEstimator, group: list[_Photo]) -> list[Tensor]:
    import torch

    try:
        return estimator.predict(torch.stack([photo.input for photo in group]), [photo.size for photo in group])
    except torch.OutOfMemoryError:
        raise ThreeDGPError("The GPU ran out of memory: choose a smaller --batch.") from None


def _store(photo: _Photo, prediction: Tensor, colormap: bool) -> Outcome:
    """Scale and write one map; the preview first, because the map says that both are done."""
    from threedgp.pretrained.leres import postprocess

    try:
        depth = postprocess(prediction, *photo.size)
    except DataError as error:
        return Outcome(photo.name, str(error))
    name, target = depth_name_of(photo.name), photo.files.output
    if colormap:
        preview = target.with_name(target.name + "-preview") / name
        write_image(preview.with_suffix(".jpg"), depth_colormap(1 - depth / np.float32(depth.max() or 1)))
    photo.files.write(name, encode_depth(depth))
    return Outcome(photo.name, made=photo.files.made())
