"""Do generated images show the class that was asked for: as they are, turned, and in their depth?

Uses the linear probe of `threedgp.metrics.probe` on the features of one extractor. Meant for small labelled sets, where
a classifier trained on the real images is a fair judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from threedgp.data.dataset import TrainingSet
from threedgp.errors import UsageError
from threedgp.metrics.probe import class_depth, depth_fit, fit_probe
from threedgp.metrics.scored_samples import Sampler
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.progress import NULL_PROGRESS, Progress

TURN = 0.4  # radians to either side
BATCH = 32


@dataclass(frozen=True)
class ClassScores:
    """What the probe says.

    Attributes:
        accuracy: share of samples recognised as the class they were asked to be.
        turned: the same from cameras turned left and right, averaged.
        real_accuracy: share of held-out real images recognised, the ceiling.
        chance: 1 / classes.
        depth: mean correlation of rendered depth with the real depth of the class the probe sees; None without depth.
        flat_depth: the same with the mean depth of all classes, the baseline.
        num_gen: samples.
    """

    accuracy: float
    turned: float
    real_accuracy: float
    chance: float
    depth: float | None
    flat_depth: float | None
    num_gen: int

    def line(self, checkpoint: str | None, extractor: str, seed: int) -> dict[str, Any]:
        """As one line of metrics.jsonl."""
        results = {
            "class_accuracy": self.accuracy,
            "class_accuracy_turned": self.turned,
            "class_accuracy_real": self.real_accuracy,
            "class_depth": self.depth,
            "class_depth_flat": self.flat_depth,
        }
        return {
            "metric": "class_accuracy",
            "results": {name: value for name, value in results.items() if value is not None},
            "checkpoint": checkpoint,
            "extractor": extractor,
            "num_gen": self.num_gen,
            "seed": seed,
        }


@torch.no_grad()
def score_classes(
    sampler: Sampler,
    dataset: TrainingSet,
    extractor: FeatureExtractor,
    *,
    count: int = 512,
    progress: Progress = NULL_PROGRESS,
) -> ClassScores:
    """Ask a linear classifier, trained on the real images of `dataset`, about generated ones.

    Args:
        sampler: of a conditional 3D generator.
        dataset: its training set, with labels; with depth maps the depth is compared too.
        extractor: whose features the classifier sees.
        count: generated samples.

    Raises:
        UsageError: an unconditional or 2D model.
    """
    classes = dataset.num_classes
    if classes < 2:
        raise UsageError("Class scores need a model with classes (data.num_classes of at least 2).")
    features, labels, real_depth = _real_side(dataset, extractor, progress)
    probe = fit_probe(features, labels)

    asked, depths = [], []
    seen: dict[float, list[torch.Tensor]] = {0.0: [], -TURN: [], TURN: []}
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
    fit = None
    if real_depth is not None:
        per_class = class_depth(real_depth, labels, classes)
        fit = depth_fit(torch.cat(depths), torch.cat(seen[0.0]), per_class)
    return ClassScores(
        accuracy=accuracy[0.0],
        turned=(accuracy[-TURN] + accuracy[TURN]) / 2,
        real_accuracy=probe.real_accuracy,
        chance=1 / classes,
        depth=None if fit is None else fit.own_class,
        flat_depth=None if fit is None else fit.all_classes,
        num_gen=count,
    )


def _real_side(
    dataset: TrainingSet, extractor: FeatureExtractor, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Features [N, dim], classes [N] and depth [N, S, S] of the real images.

    The features are those that embed wrote, if it used the same network.
    """
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
