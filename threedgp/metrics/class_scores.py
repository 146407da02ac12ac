"""Do generated images show the class that was asked for: as they are, turned, and in their depth?

A linear classifier is trained on deep features of the real images and asked about generated ones. Its accuracy says
whether a conditional model draws what it was asked for; asked about the same samples from turned cameras, it says
whether the objects hold together in 3D. The depth correlation compares rendered depth with the real depth of the class
that the classifier sees, against the flat baseline of one depth map for all classes. Meant for small labelled sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threedgp.data.dataset import TrainingSet
from threedgp.errors import DataError, UsageError
from threedgp.metrics.evaluate import Result
from threedgp.metrics.scored_samples import Sampler
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.progress import NULL_PROGRESS, Progress

TURN = 0.4  # radians to either side
BATCH = 32
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # candidates, relative to the mean variance of the features
HELD_OUT = 5  # every fifth image chooses the ridge


@torch.no_grad()
def score_classes(
    sampler: Sampler,
    dataset: TrainingSet,
    extractor: FeatureExtractor,
    *,
    count: int = 512,
    progress: Progress = NULL_PROGRESS,
) -> Result:
    """Ask a linear classifier, trained on the real images of `dataset`, about generated ones.

    Args:
        sampler: of a conditional 3D generator.
        dataset: its training set, with labels; with depth maps the depth is compared too.
        extractor: whose features the classifier sees.
        count: generated samples.

    Returns:
        class_accuracy: share of samples recognised as the class they were asked to be; class_accuracy_turned: the same
        from cameras turned left and right, averaged; class_accuracy_real: share of held-out real images recognised,
        the ceiling; class_depth: mean correlation of rendered depth with the real depth of the class seen;
        class_depth_flat: the same with the mean depth of all classes, the baseline. The last two only with depth maps.

    Raises:
        UsageError: an unconditional or 2D model.
    """
    classes = dataset.num_classes
    if classes < 2:
        raise UsageError("Class scores need a model with classes (data.num_classes of at least 2).")
    features, labels, real_depth = _real_side(dataset, extractor, progress)
    probe = fit_probe(features, labels)

    asked, depths = [], []
    seen: dict[float, list[Tensor]] = {0.0: [], -TURN: [], TURN: []}
    progress.start("Classes of generated images", count)
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        asked.append(sampler.latents(numbers).c.argmax(dim=1))
        for turn, (images, depth) in zip(seen, sampler.turned_views(numbers, list(seen)), strict=True):
            seen[turn].append(probe.classify(extractor(images).cpu()))
            if turn == 0:
                depths.append(depth.cpu())
        progress.advance(len(numbers))
    progress.finish()
    wanted = torch.cat(asked)
    accuracy = {turn: (torch.cat(found) == wanted).double().mean().item() for turn, found in seen.items()}
    results = {
        "class_accuracy": accuracy[0.0],
        "class_accuracy_turned": (accuracy[-TURN] + accuracy[TURN]) / 2,
        "class_accuracy_real": probe.real_accuracy,
    }
    if real_depth is not None:
        per_class = class_depth(real_depth, labels, classes)
        results["class_depth"], results["class_depth_flat"] = depth_fit(
            torch.cat(depths), torch.cat(seen[0.0]), per_class
        )
    settings = {"extractor": extractor.name, "num_gen": count, "seed": sampler.seed, "chance": 1 / classes}
    return Result("class_accuracy", "Class accuracy", results, settings)


def _real_side(
    dataset: TrainingSet, extractor: FeatureExtractor, progress: Progress
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features [N, dim] (those that embed wrote, if it used the same network), classes [N] and depth [N, S, S]."""
    embedded = dataset.embeddings is not None and dataset.embeddings.path.stem == extractor.name
    features, labels, depth = [], [], []
    progress.start("Features of real images", len(dataset.names))
    for first in range(0, len(dataset.names), BATCH):
        items = [dataset[row] for row in range(first, min(first + BATCH, len(dataset.names)))]
        if embedded:
            features.append(torch.stack([item.embedding for item in items]))
        else:
            features.append(extractor(torch.stack([item.image for item in items])).cpu())
        labels.append(torch.stack([item.label for item in items]).argmax(dim=1))
        if dataset.use_depth:
            depth.append(torch.cat([item.depth for item in items]).float())
        progress.advance(len(items))
    progress.finish()
    return torch.cat(features), torch.cat(labels), torch.cat(depth) if depth else None


@dataclass(frozen=True)
class LinearProbe:
    """A ridge classifier on standardised features.

    Attributes:
        mean, scale: [dim] of the real features.
        weight: [dim + 1, classes]; the last row is the bias.
        real_accuracy: share of held-out real images it got right, the ceiling for generated ones.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    real_accuracy: float

    def classify(self, features: Tensor) -> Tensor:
        """Most likely class of each row, int64 [N], of features [N, dim]."""
        return (_design(features, self.mean, self.scale) @ self.weight).argmax(dim=1)


def fit_probe(features: Tensor, labels: Tensor) -> LinearProbe:
    """Fit the classifier in closed form; a fifth of the images chooses the ridge, then all are used.

    Args:
        features: [N, dim] of real images.
        labels: int64 [N], 0..classes−1.

    Raises:
        DataError: fewer than two classes, or fewer than ten images.
    """
    labels = labels.long()
    if len(labels) < 10 or len(labels.unique()) < 2:
        raise DataError("A linear probe needs at least ten real images of at least two classes.")
    features = features.double()
    mean, scale = features.mean(0), features.std(0) + 1e-6
    design = _design(features, mean, scale)  # [N, dim + 1]
    targets = torch.nn.functional.one_hot(labels).double()
    held = torch.arange(len(labels)) % HELD_OUT == 0
    scored = []
    for ridge in RIDGES:
        weight = _ridge(design[~held], targets[~held], ridge)
        scored.append((((design[held] @ weight).argmax(1) == labels[held]).double().mean().item(), ridge))
    accuracy, ridge = max(scored)
    return LinearProbe(mean, scale, _ridge(design, targets, ridge), accuracy)


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


def _design(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    standardized = (features.double() - mean) / scale
    return torch.cat([standardized, torch.ones_like(standardized[:, :1])], dim=1)


def _ridge(design: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Least squares with a penalty on everything but the bias."""
    gram = design.T @ design
    penalty = torch.full((len(gram),), ridge * len(design), dtype=gram.dtype)
    penalty[-1] = 1e-9
    return torch.linalg.solve(gram + penalty.diag(), design.T @ targets)


def _standardize(maps: Tensor) -> Tensor:
    maps = maps.double()
    maps = maps - maps.mean(dim=(1, 2), keepdim=True)
    return maps / (maps.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-9)
