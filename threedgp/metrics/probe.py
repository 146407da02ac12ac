"""A linear probe: can a simple classifier tell the classes of generated images, and does their shape fit the class?

A linear classifier is trained on deep features of the real images and asked about generated ones. Its accuracy says
whether a conditional model draws what it was asked for; asked about the same samples from turned cameras, it says
whether the objects hold together in 3D. The depth correlation compares rendered depth with the real depth of the class
that the classifier sees, against the flat baseline of one depth map for all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threedgp.errors import DataError

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # candidates, relative to the mean variance of the features
HELD_OUT = 5  # every fifth image chooses the ridge


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

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of rows [N, dim] whose most likely class is `labels` [N]."""
        return (self.classify(features) == labels).double().mean().item()


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


@dataclass(frozen=True)
class DepthFit:
    """Mean correlation of generated depth with the mean depth of its class, and with the mean of all classes."""

    own_class: float
    all_classes: float


def depth_fit(depth: Tensor, seen: Tensor, per_class: Tensor) -> DepthFit:
    """Compare rendered depth maps with the real ones.

    Args:
        depth: [N, h, w] rendered, larger is farther.
        seen: int64 [N], the class the classifier sees in each image.
        per_class: [classes, h, w] of `class_depth`.
    """
    maps, reference = _standardize(depth), _standardize(per_class)
    flat = _standardize(per_class.mean(0, keepdim=True))
    own = (maps * reference[seen]).mean(dim=(1, 2))
    every = (maps * flat).mean(dim=(1, 2))
    return DepthFit(own.mean().item(), every.mean().item())


def _design(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    standardized = (features.double() - mean) / scale
    return torch.cat([standardized, torch.ones_like(standardized[:, :1])], dim=1)


def _ridge(design: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Least squares with a penalty on everything but the bias, through the smaller of the two normal equations."""
    gram = design.T @ design
    penalty = torch.full((len(gram),), ridge * len(design), dtype=gram.dtype)
    penalty[-1] = 1e-9
    return torch.linalg.solve(gram + penalty.diag(), design.T @ targets)


def _standardize(maps: Tensor) -> Tensor:
    maps = maps.double()
    maps = maps - maps.mean(dim=(1, 2), keepdim=True)
    return maps / (maps.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-9)
