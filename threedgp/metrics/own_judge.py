"""A judge that no score has flattered: a small network that learns the classes from a set's own images, by shape alone.

A score whose network also trained the model, as embeddings or as the feature discriminator's eyes, flatters. This one
is trained from nothing on real images in grey, with random weights of the colours, contrasts and noise, so that it must
look at shapes: a classifier that sees colours calls nearly every fake right.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgp.errors import DataError
from threedgp.progress import NULL_PROGRESS, Progress

WIDTHS = (24, 48, 96, 128)  # channels after each halving
LARGEST_SIDE = 64  # pixels; larger images are made smaller first
BATCH, STEPS = 64, 400
RATE, WEIGHT_DECAY, SMOOTHING, DROPOUT = 4e-3, 0.05, 0.05, 0.3
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class OwnJudge(nn.Module):
    """Classifies images by their shapes; made by `train_judge`."""

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                nn.Conv2d(after, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            ]  # fmt: skip
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1], classes))

    def features(self, grey: Tensor) -> Tensor:
        """[N, 1, S, S] to [N, 128]."""
        return self.body(grey).mean(dim=(2, 3))

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 128] and most likely classes [N], both on the CPU, of uint8 RGB images [N, 3, S, S]."""
        device = next(self.parameters()).device
        features = torch.cat([self.features(_grey(part.to(device))) for part in images.split(BATCH)])
        return features.cpu(), self.classifier(features).argmax(dim=1).cpu()


def train_judge(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
    progress: Progress = NULL_PROGRESS,
) -> OwnJudge:
    """Train a judge on real images that will not be asked about later.

    Args:
        images: uint8 RGB [N, 3, S, S].
        labels: int64 [N], 0..classes−1.
        seed: of its weights, its batches and its jitter.
        steps: of 64 images each.
        device: where it is trained and stays.

    Raises:
        DataError: images of fewer than two classes, or fewer than 8.
    """
    if len(labels) < 8 or len(labels.unique()) < 2:
        raise DataError("A judge of classes needs at least eight real images of at least two classes to learn from.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = OwnJudge(classes).to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        order = torch.empty(0, dtype=torch.int64)
        progress.start("Training a judge of shapes", steps, "steps")
        for _ in range(steps):
            while len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
            rows, order = order[:BATCH], order[BATCH:]
            seen = jitter(images[rows], generator).to(device, memory_format=torch.channels_last)
            logits = judge.classifier(judge.features(seen))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows].to(device), label_smoothing=SMOOTHING).backward()
            optimizer.step()
            schedule.step()
            progress.advance(1)
        progress.finish()
    return judge.eval().requires_grad_(False)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey versions [N, 1, S, S] of uint8 images, each with its own weights of the colours, contrast and noise."""
    images = smaller(images).float() / 127.5 - 1
    count, side = len(images), images.shape[-1]

    def uniform(channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator)

    weights = uniform(3) + 0.1
    grey = (images * (weights / weights.sum(dim=1, keepdim=True))).sum(dim=1, keepdim=True)
    grey = grey * (0.6 + 0.8 * uniform()) + 0.5 * (uniform() - 0.5)
    grey = torch.where(uniform() < 0.5, grey.flip(3), grey)
    reach = side // 8
    right, down = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    grey = F.pad(grey, (reach,) * 4, mode="replicate")[:, :, down : down + side, right : right + side]
    return grey + 0.1 * uniform() * torch.randn(grey.shape, generator=generator)


def _grey(images: Tensor) -> Tensor:
    images = smaller(images).float() / 127.5 - 1
    return (images * torch.tensor(LUMA, device=images.device)[:, None, None]).sum(dim=1, keepdim=True)


def smaller(images: Tensor) -> Tensor:
    """uint8 images [N, 3, R, R] averaged down to at most 64 pixels a side."""
    factor = math.ceil(images.shape[-1] / LARGEST_SIDE)
    return F.avg_pool2d(images.float(), factor).round().to(torch.uint8) if factor > 1 else images
