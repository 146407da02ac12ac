"""Non-flatness score: how many depths a generator's scenes really use (3DGP, arXiv 2303.01416, Sec. 4.1, App. F)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from threedgp.config.metric_names import MetricSpec
from threedgp.data.images import decode_depth
from threedgp.data.source import class_of, classes_of, open_source
from threedgp.errors import DataError, NotFiniteError
from threedgp.metrics.scored_samples import QUANTILE_GROUP, Sampler, require_depth
from threedgp.processes import SINGLE, World, together
from threedgp.progress import NULL_PROGRESS, Progress, bar

NUM_BINS = 64


class DepthEntropy(NamedTuple):
    """Per-image results of a batch of depth maps.

    Attributes:
        histogram: float64 [N, bins], shares that sum to 1.
        entropy: float64 [N], nats, in [0, ln bins].
        clamped: float64 [N], share of pixels outside [near, far].
    """

    histogram: torch.Tensor
    entropy: torch.Tensor
    clamped: torch.Tensor


def depth_entropy(depth: torch.Tensor, near: float, far: float, bins: int = NUM_BINS) -> DepthEntropy:
    """Entropy of the depth histogram of each image (3DGP, arXiv 2303.01416, App. F).

    Args:
        depth: ray distances [N, ...]; values outside [near, far] count as the bound.
        near, far: bounds of the histogram, near < far.
        bins: equal bins on [near, far]; `far` itself falls into the last.

    Raises:
        DataError: bounds in the wrong order, or a depth that is not finite.
    """
    if not near < far:
        raise DataError(f"The depth histogram needs near < far, not near={near:g}, far={far:g}.")
    depth = depth.flatten(1)
    if not torch.isfinite(depth).all():
        raise NotFiniteError("A rendered depth map is not finite: the checkpoint has probably diverged.")
    clamped = ((depth < near) | (depth > far)).double().mean(dim=1)
    # The position inside the range is computed in the depth's own precision, like torch.histc on float32 maps.
    position = (depth.clamp(near, far) - near) / (far - near) * bins
    index = position.long().clamp(0, bins - 1)
    histogram = torch.zeros(depth.shape[0], bins, dtype=torch.float64, device=depth.device)
    histogram.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    histogram /= depth.shape[1]
    entropy = -(histogram * (histogram + 1e-12).log()).sum(dim=1).clamp(max=0)  # the 1e-12 must not make it negative
    return DepthEntropy(histogram, entropy, clamped)


def non_flatness(entropy: torch.Tensor) -> float:
    """Mean over images of exp(entropy): 1 for constant depth, the number of bins for uniformly used depth."""
    if entropy.numel() == 0:
        raise DataError("The non-flatness score needs at least one depth map.")
    return float(entropy.double().exp().mean())


@dataclass(frozen=True)
class DepthScores:
    """Non-flatness image by image.

    Attributes:
        entropy, clamped: float64 [N], see `DepthEntropy`.
        histogram: float64 [bins], mean over the images.
        classes: int64 [N], -1 without classes.
        near, far: bounds of the histogram.
        class_names: of the classes, where they have any.
    """

    entropy: torch.Tensor
    clamped: torch.Tensor
    histogram: torch.Tensor
    classes: torch.Tensor
    near: float
    far: float
    class_names: Sequence[str] = ()

    @property
    def values(self) -> list[float]:
        """Score, mean entropy, share of clamped pixels: the order of `MetricSpec.values`."""
        return [non_flatness(self.entropy), float(self.entropy.mean()), float(self.clamped.mean())]

    def by_class(self) -> list[tuple[str, float, int]]:
        """(class, score, number of images), flattest class last, without unlabelled images."""
        rows = []
        for index in self.classes.unique().tolist():
            members = self.entropy[self.classes == index]
            if index >= 0:
                name = self.class_names[index] if index < len(self.class_names) else str(index)
                rows.append((name, non_flatness(members), len(members)))
        return sorted(rows, key=lambda row: -row[1])


def score_depth(
    spec: MetricSpec,
    sampler: Sampler,
    *,
    adaptor: bool = True,
    world: World = SINGLE,
    progress: Progress = NULL_PROGRESS,
) -> DepthScores:
    """Non-flatness of a generator's scenes.

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
    camera = sampler.profile.camera
    size = 1 if spec.per_image else QUANTILE_GROUP
    groups = -(-spec.num_gen // size)
    table = torch.zeros(groups * size, 3 + NUM_BINS, dtype=torch.float64)

    def work() -> None:
        for group in range(world.rank, groups, world.size):
            numbers = list(range(group * size, (group + 1) * size))
            scores = depth_entropy(sampler.frontal_depths(numbers, adaptor=adaptor).cpu(), camera.near, camera.far)
            c = sampler.latents(numbers).c
            classes = c.argmax(dim=1) if c.shape[1] else torch.full((size,), -1)
            columns = [scores.entropy, scores.clamped, classes.double()]
            table[numbers] = torch.cat([torch.stack(columns, dim=1), scores.histogram], dim=1)
            progress.advance(min(size * world.size, spec.num_gen))

    with bar(progress, "Depth maps", spec.num_gen):
        together(world, work)
    table = world.sum(table)[: spec.num_gen]
    histogram, classes = table[:, 3:].mean(dim=0), table[:, 2].long()
    names = getattr(sampler.labels, "classes", None) or ()
    return DepthScores(table[:, 0], table[:, 1], histogram, classes, camera.near, camera.far, names)


def score_depth_folder(
    path: Path | str, *, near: float = 0.0, far: float = 65535.0, progress: Progress = NULL_PROGRESS
) -> DepthScores:
    """Non-flatness of depth maps on disk: `*_depth.png` where there are any, else every picture.

    Args:
        path: folder or zip of one-channel 8- or 16-bit maps; its first folders are classes.
        near, far: bounds of the histogram in stored units.

    Raises:
        DataError: no depth map that can be read.
    """
    source = open_source(path, allow_empty=True)
    names = source.depth_names or source.names
    if not names:
        raise DataError(f"{path} holds no depth maps (*_depth.png, or other 8- or 16-bit one-channel images).")
    class_names = classes_of(names)
    found: list[DepthEntropy] = []
    classes = []
    failed: dict[str, str] = {}
    with bar(progress, "Depth maps", len(names)):
        for name in names:
            progress.advance()
            try:
                depth = torch.from_numpy(decode_depth(source.read(name)).astype("float64"))[None]
            except DataError as error:
                failed[name] = str(error)
                continue
            found.append(depth_entropy(depth, near, far))
            label = class_of(name)
            classes.append(class_names.index(label) if label is not None else -1)
    if failed:
        name, reason = next(iter(failed.items()))
        progress.note(f"{len(failed)} files could not be read and do not count, among them {name}: {reason}.")
    if not found:
        raise DataError(f"None of the {len(names)} depth maps in {path} could be read.")
    histogram, entropy, clamped = (torch.cat(column) for column in zip(*found, strict=True))
    return DepthScores(entropy, clamped, histogram.mean(dim=0), torch.tensor(classes), near, far, class_names)
