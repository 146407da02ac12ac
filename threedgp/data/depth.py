"""`3dgp data depth`: one depth map for every photo, as `<stem>_depth.png` with 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from threedgp.colormap import depth_colormap
from threedgp.cores import available_cores
from threedgp.data.images import decode_image, encode_depth, write_image
from threedgp.data.journal import Job, Made, Outcome, Recorder
from threedgp.data.source import depth_name_of, open_source
from threedgp.data.stage import Policy, Stage
from threedgp.data.workers import map_ahead
from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.progress import bar

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from threedgp.pretrained.depth_estimators import DepthEstimator, EstimatorSpec


class _Photo(NamedTuple):
    """A photo on its way through the network; `made`: its map is there, and only its neighbours' are wanted."""

    job: Job
    files: Recorder
    size: tuple[int, int]
    input: Tensor
    made: Made | None


def run_depth(
    source: Path | str,
    target: Path | str,
    spec: EstimatorSpec,
    *,
    device: str | None = None,
    gpus: int = 1,
    batch_size: int = 8,
    colormap: bool = False,
    **policy: Unpack[Policy],
) -> Stage:
    """Estimate depth for every photo of a folder or zip.

    Values are scaled to 0 (near) .. 60000 (farthest pixel) per photo. Maps whose photo has not changed are kept.
    Batches are cut from the whole list, so that a kill changes no byte and neither does sharing the work.

    Args:
        spec: the estimator, from `choose_estimator`.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        gpus: GPUs that share the work.
        batch_size: photos at a time; another size may change single grey levels.
        colormap: also write colour pictures of the maps into `<target>-preview`.

    Raises:
        UsageError: impossible arguments, or a target made with other ones.
        WeightsError: the network cannot be loaded; nothing has been written.
        DataError: too many broken photos.
    """
    import torch

    from threedgp.processes import choose_device

    device = str(choose_device(device))
    if device.startswith("cuda") and gpus > torch.cuda.device_count():
        raise UsageError(
            f"{gpus} GPUs are asked for, but this machine has {torch.cuda.device_count()}. Use --gpus or --device cpu."
        )
    several = gpus > 1 and device.startswith("cuda")
    photos = open_source(source)
    estimators = [spec.build(f"cuda:{index}" if several else device) for index in range(gpus)]

    stage = Stage.begin("depth", photos, target, spec.identity(), **policy)
    if spec.synthetic:
        stage.extra["synthetic"] = True
        stage.progress.note("The depth is made up (synthetic): good for trying the pipeline, not for results.")
    elif spec.name != "leres":
        larger = "nearer, which is turned round" if spec.output == "disparity" else "farther"
        stage.progress.note(
            f"{spec.name} is taken to return {spec.output} (larger is {larger}); --prediction changes that."
        )
    # Real float32 and the same algorithms every time; these switches are the whole process's, not a thread's.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with bar(stage.progress, "Estimating depth", len(photos.names) + len(photos.problems)), exact:
        names = stage.usable()
        batches = [
            [stage.journal.job({depth_name_of(name): name}) for name in names[start : start + batch_size]]
            for start in range(0, len(names), batch_size)
        ]
        stage.record(_estimate(stage, batches, estimators, colormap))
    return stage.finish()


def _estimate(
    stage: Stage, batches: list[list[Job]], estimators: list[DepthEstimator], colormap: bool
) -> Iterator[Outcome]:
    """Make the maps that are missing. Reading, the networks and writing overlap.

    A batch with one missing map is read whole: what a network says of a photo depends on its neighbours' number.
    """
    photos, output = stage.found, stage.output
    threads = stage.jobs or available_cores()
    kept: dict[str, Made | None] = {}
    still_open = []
    for batch in batches:
        kept |= {job.name: job.kept(photos, output) for job in batch}
        if all(kept[job.name] for job in batch):
            yield from (Outcome(job, kept[job.name]) for job in batch)
        else:
            still_open.append(batch)
    idle: SimpleQueue[DepthEstimator] = SimpleQueue()
    for estimator in estimators:
        idle.put(estimator)

    def read(job: Job) -> _Photo | Outcome:
        files = Recorder(photos, output)
        try:
            image = decode_image(files.read(job.name))
            return _Photo(job, files, image.shape[:2], estimators[0].prepare(image), kept[job.name])
        except DataError as error:
            return Outcome(job, None, str(error))

    def predict(batch: list[_Photo | Outcome]) -> list[tuple[_Photo, Tensor] | Outcome]:
        groups: dict[tuple[int, ...], list[_Photo]] = {}
        for photo in batch:
            if isinstance(photo, _Photo):
                groups.setdefault(tuple(photo.input.shape), []).append(photo)
        done: list[tuple[_Photo, Tensor] | Outcome] = [photo for photo in batch if isinstance(photo, Outcome)]
        estimator = idle.get()
        try:
            for group in groups.values():
                done += [Outcome(photo.job, photo.made) for photo in group if photo.made]
                if not all(photo.made for photo in group):
                    maps = zip(group, _predict(estimator, group), strict=True)
                    done += [(photo, prediction) for photo, prediction in maps if not photo.made]
        finally:
            idle.put(estimator)
        return done

    def write(item: tuple[_Photo, Tensor] | Outcome) -> Outcome:
        return item if isinstance(item, Outcome) else _store(*item, colormap)

    read_ahead = 2 * len(estimators) * max(map(len, batches), default=0) + threads
    read_photos = map_ahead(read, (job for batch in still_open for job in batch), threads, read_ahead)
    read_batches = ([next(read_photos) for _ in batch] for batch in still_open)
    predicted = map_ahead(predict, read_batches, len(estimators), 2 * len(estimators))
    yield from map_ahead(write, (item for batch in predicted for item in batch), threads, read_ahead)


def _predict(estimator: DepthEstimator, group: list[_Photo]) -> list[Tensor]:
    import torch

    try:
        return estimator.predict(torch.stack([photo.input for photo in group]), [photo.size for photo in group])
    except torch.OutOfMemoryError:
        raise ThreeDGPError("The GPU ran out of memory: choose a smaller --batch.") from None


def _store(photo: _Photo, prediction: Tensor, colormap: bool) -> Outcome:
    """Scale and write one map; the preview first, because the map says that both are done."""
    from threedgp.pretrained.leres import postprocess

    (target,) = photo.job.files
    try:
        depth = postprocess(prediction, *photo.size)
        if colormap:
            preview = photo.files.output.with_name(photo.files.output.name + "-preview") / target
            write_image(preview.with_suffix(".jpg"), depth_colormap(1 - depth / np.float32(depth.max() or 1)))
        photo.files.write(target, encode_depth(depth))
    except DataError as error:
        return Outcome(photo.job, None, str(error))
    return Outcome(photo.job, photo.files.made)
