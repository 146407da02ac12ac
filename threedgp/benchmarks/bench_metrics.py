"""How long the metrics take on this machine, next to the usual way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from threedgp.metrics.fid import FeatureStatistics, Moments, frechet_distance
from threedgp.metrics.kid import draw_subsets, kernel_distance
from threedgp.metrics.precision_recall import precision_recall
from threedgp.pretrained.inception import InceptionV3
from threedgp.progress import NULL_PROGRESS, Progress

DIMS = 2048
T = TypeVar("T")


class Timing(NamedTuple):
    """One line: ours and the usual way in seconds (None: there is none here), and their relative difference."""

    work: str
    seconds: float
    plain_seconds: float | None = None
    difference: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.plain_seconds is None else self.plain_seconds / self.seconds


def bench_metrics(*, dims: int = DIMS, repeats: int = 3, progress: Progress = NULL_PROGRESS) -> Iterator[Timing]:
    """Time the parts of an evaluation after the images are made.

    Args:
        dims: feature dimensions; 2048 is Inception's.
        repeats: medians of so many runs.
        progress: told what is being timed.
    """
    real = _features(2 * dims, dims, 1)
    for count in (2 * dims, dims, dims // 2):
        work = f"Frechet distance, {2 * dims} against {count} samples"
        progress.note(work)
        a, b = _moments(real), _moments(_features(count, dims, 2))
        yield _against_sqrtm(work, a, b, repeats)
    few = _features(dims // 2, dims, 2)
    index = draw_subsets(len(real), len(few), seed=0, num_subsets=10)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    network = InceptionV3().to(memory_format=torch.channels_last)  # random weights cost the same
    cases: dict[str, Callable[[], object]] = {
        f"moments of {len(real)} samples, in batches of 64": lambda: _moments(real),
        "kernel distance, 10 subsets": lambda: kernel_distance(real, few, *index),
        f"precision and recall, {len(real)} against {len(few)}": lambda: precision_recall(real, few),
        "Inception features, 4 images on the CPU": lambda: network(images),
    }
    for work, function in cases.items():
        yield Timing(work, _time(function, repeats)[1])


def _against_sqrtm(work: str, a: Moments, b: Moments, repeats: int) -> Timing:
    value, seconds = _time(lambda: frechet_distance(a, b), repeats)
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        return Timing(work, seconds)

    def usual() -> float:
        root = sqrtm((a.cov @ b.cov).numpy())
        return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * root.trace().real

    expected, plain = _time(usual, 1)
    return Timing(work, seconds, plain, abs(value - expected) / max(abs(expected), 1e-12))


def _features(count: int, dims: int, seed: int) -> torch.Tensor:
    """Correlated rows with the falling spectrum that image features have, float32 [count, dims]."""
    spectrum = torch.arange(1, dims + 1) ** -0.5
    mixing = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(0)))[0]
    rows = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
    return (rows * spectrum) @ mixing + 0.3


def _moments(features: torch.Tensor) -> Moments:
    accumulated = FeatureStatistics()
    for part in features.split(64):
        accumulated.update(part)
    return accumulated.moments()


@torch.no_grad()
def _time(function: Callable[[], T], repeats: int) -> tuple[T, float]:
    """The value, and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - begin)
    return value, statistics.median(seconds)
