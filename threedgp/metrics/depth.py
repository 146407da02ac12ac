"""The non-flatness score of a generator or of a folder of depth maps; see `threedgp.metrics.nfs` for the formula."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import threedgp
from threedgp.config.metric_names import MetricSpec
from threedgp.data.images import decode_depth
from threedgp.data.source import open_source
from threedgp.errors import DataError
from threedgp.metrics.evaluate import Result
from threedgp.metrics.nfs import NUM_BINS, QUANTILE_GROUP, depth_entropy, non_flatness
from threedgp.metrics.processes import SINGLE, Processes, together
from threedgp.metrics.samples import Sampler, require_depth
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class DepthScores:
    """Non-flatness image by image.

    Attributes:
        entropy: float64 [N], nats.
        clamped: float64 [N], share of pixels outside the ray bounds.
        histogram: float64 [bins], mean over the images.
        classes: int64 [N], -1 without classes.
        near, far: bounds of the histogram.
    """

    entropy: torch.Tensor
    clamped: torch.Tensor
    histogram: torch.Tensor
    classes: torch.Tensor
    near: float
    far: float

    @property
    def values(self) -> list[float]:
        """Score, mean entropy, share of clamped pixels: the order of `MetricSpec.values`."""
        return [non_flatness(self.entropy), float(self.entropy.mean()), float(self.clamped.mean())]

    def by_class(self) -> dict[int, tuple[float, int]]:
        """Class -> (score, number of images), without unlabelled images."""
        found = {}
        for index in self.classes.unique().tolist():
            if index >= 0:
                members = self.entropy[self.classes == index]
                found[index] = non_flatness(members), len(members)
        return found


def score_depth(
    spec: MetricSpec,
    sampler: Sampler,
    *,
    adaptor: bool = True,
    world: Processes = SINGLE,
    progress: Progress = NULL_PROGRESS,
) -> tuple[Result, DepthScores]:
    """Non-flatness score of a generator (3DGP, arXiv 2303.01416, Sec. 4.1).

    Samples form groups of four, each with its own density quantile; the groups, not samples, are shared out over the
    processes, so neither batch size nor number of processes changes anything.

    Args:
        spec: an nfs metric.
        sampler: draws the scenes.
        adaptor: False leaves the camera exactly frontal instead of moving it as learned.

    Raises:
        UsageError: a 2D model.
        DataError: depth that is not finite.
    """
    require_depth(sampler.generator)
    begin = time.monotonic()
    progress = progress if world.rank == 0 else NULL_PROGRESS
    camera = sampler.profile.camera
    size = 1 if spec.per_image else QUANTILE_GROUP
    groups = -(-spec.num_gen // size)
    table = torch.zeros(groups * size, 3 + NUM_BINS, dtype=torch.float64)
    progress.start("Depth maps", spec.num_gen)

    def work() -> None:
        for group in range(world.rank, groups, world.size):
            numbers = list(range(group * size, (group + 1) * size))
            scores = depth_entropy(sampler.frontal_depths(numbers, adaptor=adaptor).cpu(), camera.near, camera.far)
            c = sampler.latents(numbers).c
            classes = c.argmax(dim=1) if c.shape[1] else torch.full((size,), -1)
            columns = [scores.entropy, scores.clamped, classes.double()]
            table[numbers] = torch.cat([torch.stack(columns, dim=1), scores.histogram], dim=1)
            progress.advance(min(size * world.size, spec.num_gen))

    together(world, work)
    progress.finish()
    table = world.sum(table)[: spec.num_gen]
    depths = DepthScores(
        table[:, 0], table[:, 1], table[:, 3:].mean(dim=0), table[:, 2].long(), camera.near, camera.far
    )
    settings = {
        "num_gen": spec.num_gen,
        "resolution": sampler.generator.img_resolution,
        "adaptor": adaptor,
        "seed": sampler.seed,
        "time": time.monotonic() - begin,
        "num_processes": world.size,
        "version": threedgp.__version__,
    }
    values = dict(zip(spec.values, depths.values, strict=True))
    return Result(spec.name, spec.label, values, settings), depths


def score_depth_folder(
    path: Path | str,
    *,
    near: float = 0.0,
    far: float = 65535.0,
    class_of: Callable[[str], str | None] = lambda name: None,
    progress: Progress = NULL_PROGRESS,
) -> tuple[DepthScores, list[str]]:
    """Non-flatness of depth maps on disk: `*_depth.png` where there are any, else every picture.

    Args:
        path: folder or zip of one-channel 8- or 16-bit maps.
        near, far: bounds of the histogram in stored units.
        class_of: name of a map -> its class.

    Returns:
        The scores, and the class names that their `classes` count through.

    Raises:
        DataError: no depth map that can be read.
    """
    source = open_source(path, allow_empty=True)
    names = source.depth_names or source.names
    if not names:
        raise DataError(f"{path} holds no depth maps (*_depth.png, or other 8- or 16-bit one-channel images).")
    class_names = sorted({label for name in names if (label := class_of(name)) is not None})
    entropy, clamped, histograms, classes = [], [], [], []
    failed: dict[str, str] = {}
    progress.start("Depth maps", len(names))
    for name in names:
        progress.advance()
        try:
            depth = torch.from_numpy(decode_depth(source.read(name)).astype("float64"))[None]
        except DataError as error:
            failed[name] = str(error)
            continue
        scores = depth_entropy(depth, near, far)
        entropy.append(scores.entropy)
        clamped.append(scores.clamped)
        histograms.append(scores.histogram)
        label = class_of(name)
        classes.append(class_names.index(label) if label is not None else -1)
    progress.finish()
    if failed:
        name, reason = next(iter(failed.items()))
        progress.note(f"{len(failed)} files could not be read and do not count, among them {name}: {reason}.")
    if not entropy:
        raise DataError(f"None of the {len(names)} depth maps in {path} could be read.")
    scores = DepthScores(
        torch.cat(entropy), torch.cat(clamped), torch.cat(histograms).mean(dim=0), torch.tensor(classes), near, far
    )
    return scores, class_names
