"""Do generated images show the class that was asked for: as they are, turned, and in their depth?

For sets with labels. The judge is `threedgp.metrics.own_judge`, trained on three quarters of the real images or on
another set of the same classes; what it has not learned from says how good it is, and how far apart real images are.
The depth correlation compares rendered depth with the real depth of the class that the judge sees, against the flat
baseline of one depth map for all classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threedgp.data.dataset import TrainingSet
from threedgp.errors import UsageError
from threedgp.metrics.evaluate import Result
from threedgp.metrics.fid import FeatureStatistics, frechet_distance
from threedgp.metrics.own_judge import STEPS, smaller, train_judge
from threedgp.metrics.scored_samples import Sampler
from threedgp.progress import NULL_PROGRESS, Progress

TURN = 0.4  # radians to either side
BATCH = 32
HELD_OUT = 4  # every fourth real image is kept from the judge
MOST_REAL = 20_000  # real images that are read


def score_classes(
    sampler: Sampler,
    dataset: TrainingSet,
    *,
    learn_from: TrainingSet | None = None,
    count: int = 512,
    steps: int = STEPS,
    progress: Progress = NULL_PROGRESS,
) -> Result:
    """Ask a classifier, trained on real images, about generated ones.

    Args:
        sampler: of a conditional 3D generator.
        dataset: its training set, with labels; with depth maps the depth is compared too.
        learn_from: another set of the same classes to train the judge on; None: three quarters of `dataset`.
        count: generated samples.
        steps: of the judge's training.

    Returns:
        class_accuracy: share of samples recognised as the class they were asked to be.
        class_accuracy_turned: the same from cameras turned left and right, averaged.
        class_accuracy_real: share of real images recognised that the judge has not learned from, the ceiling.
        own_distance: Frechet distance to those images in the judge's features.
        own_distance_real: the same between two halves of them.
        own_variety: how much the features vary within a class, relative to real images: 1 is right, less means too much
            alike, more broken shapes.
        class_depth: mean correlation of rendered depth with the real depth of the class seen, if there are depth maps.
        class_depth_flat: the same with the mean depth of all classes, the baseline.

    Raises:
        UsageError: an unconditional or 2D model, or a set of other classes.
    """
    classes = dataset.num_classes
    if classes < 2:
        raise UsageError("Class scores need a model with classes (data.num_classes of at least 2).")
    if learn_from is not None and (learn_from.num_classes, learn_from.classes) != (classes, dataset.classes):
        raise UsageError(
            f"The judge's set {learn_from.source.root} must have the classes of the training set "
            f"{dataset.source.root}, with the same names in the same order: see dataset.json in both."
        )
    images, labels, real_depth = _real_side(dataset, progress)
    lesson, shown, shown_labels = (images, labels), images, labels
    if learn_from is None:
        held = torch.arange(len(labels)) % HELD_OUT == 0
        lesson, shown, shown_labels = (images[~held], labels[~held]), images[held], labels[held]
    else:
        lesson = _real_side(learn_from, progress)[:2]
    judge = train_judge(*lesson, classes, steps=steps, device=sampler.device, progress=progress)
    real, real_seen = judge.look(shown)

    asked, depths, features = [], [], []
    seen: dict[float, list[Tensor]] = {0.0: [], -TURN: [], TURN: []}
    progress.start("Classes of generated images", count)
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        asked.append(sampler.latents(numbers).c.argmax(dim=1).cpu())
        for turn, (pictures, depth) in zip(seen, sampler.turned_views(numbers, list(seen)), strict=True):
            rows, found = judge.look(pictures)
            seen[turn].append(found)
            if turn == 0:
                depths.append(depth.cpu())
                features.append(rows)
        progress.advance(len(numbers))
    progress.finish()
    wanted = torch.cat(asked)
    accuracy = {turn: _share(torch.cat(found), wanted) for turn, found in seen.items()}
    results = {
        "class_accuracy": accuracy[0.0],
        "class_accuracy_turned": (accuracy[-TURN] + accuracy[TURN]) / 2,
        "class_accuracy_real": _share(real_seen, shown_labels),
        "own_distance": _distance(torch.cat(features), real),
        "own_distance_real": _distance(real[::2], real[1::2]),
        "own_variety": _variety(torch.cat(features), wanted, classes) / _variety(real, shown_labels, classes),
    }
    if real_depth is not None:
        per_class = class_depth(real_depth, labels, classes)
        results["class_depth"], results["class_depth_flat"] = depth_fit(
            torch.cat(depths), torch.cat(seen[0.0]), per_class
        )
    settings = {"num_gen": count, "num_real": len(real), "seed": sampler.seed, "chance": 1 / classes}
    return Result("class_accuracy", "Class accuracy", results, settings)


def _share(found: Tensor, wanted: Tensor) -> float:
    return (found == wanted).double().mean().item()


def _distance(first: Tensor, second: Tensor) -> float:
    moments = []
    for features in (first, second):
        statistics = FeatureStatistics()
        statistics.update(features)
        moments.append(statistics.moments())
    return frechet_distance(*moments)


def _variety(features: Tensor, labels: Tensor, classes: int) -> float:
    """Variance of features [N, d] about their class's mean, averaged over the classes with at least two of them."""
    groups = [features[labels == k].double() for k in range(classes)]
    return torch.stack([group.var(dim=0).sum() for group in groups if len(group) > 1]).mean().item()


def _real_side(dataset: TrainingSet, progress: Progress) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images uint8 [N, 3, S, S] of at most 64 pixels a side, classes [N] and depth [N, R, R]: of all real images, or of
    20,000 evenly spaced ones.
    """
    images, labels, depth = [], [], []
    rows = range(0, len(dataset.names), math.ceil(len(dataset.names) / MOST_REAL))
    progress.start("Real images", len(rows))
    for row in rows:
        item = dataset[row]
        images.append(smaller(item.image[None]))
        labels.append(item.label.argmax())
        if dataset.use_depth:
            depth.append(item.depth.float())
        progress.advance()
    progress.finish()
    return torch.cat(images), torch.stack(labels), torch.cat(depth) if depth else None


def class_depth(depth: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean real depth map of each class, [classes, h, w], of standardised maps.

    Args:
        depth: [N, h, w] in any unit, larger is farther; only its form counts.
        labels: int64 [N].
    """
    maps = _standardize(depth)
    return torch.stack([maps[labels == k].mean(0) if (labels == k).any() else maps.mean(0) for k in range(classes)])


def depth_fit(depth: Tensor, seen: Tensor, per_class: Tensor) -> tuple[float, float]:
    """Mean correlation of rendered depth with the real depth of its class, and with the mean of all classes.

    Args:
        depth: [N, h, w] rendered, larger is farther.
        seen: int64 [N], the class the classifier sees in each image.
        per_class: [classes, h, w] of `class_depth`.
    """
    maps, reference = _standardize(depth), _standardize(per_class)
    flat = _standardize(per_class.mean(0, keepdim=True))
    return (maps * reference[seen]).mean(dim=(1, 2)).mean().item(), (maps * flat).mean(dim=(1, 2)).mean().item()


def _standardize(maps: Tensor) -> Tensor:
    maps = maps.double()
    maps = maps - maps.mean(dim=(1, 2), keepdim=True)
    return maps / (maps.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-9)
