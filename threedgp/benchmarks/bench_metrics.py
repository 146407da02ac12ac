"""How long the metrics take on this machine, next to the usual way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from threedgp.metrics.fid import FeatureStatistics, Moments, frechet_distance, trace_of_root
from threedgp.metrics.kid import draw_subsets, kernel_distance
from threedgp.metrics.precision_recall import precision_recall
from threedgp.pretrained.inception import InceptionV3
from threedgp.progress import NULL_PROGRESS, Progress

DIMS = 2048


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
    real, half = _features(2 * dims, dims, 1), _features(dims // 2, dims, 2)
    cases = {
        f"Frechet distance, {2 * dims} against {2 * dims} samples": (real, _features(2 * dims, dims, 3)),
        f"Frechet distance, {2 * dims} against {dims} samples": (real, _features(dims, dims, 4)),
        f"Frechet distance, {2 * dims} against {dims // 2} samples": (real, half),
    }
    for work, pair in cases.items():
        progress.note(work)
        a, b = (_moments(features) for features in pair)
        value, seconds = _time(lambda a=a, b=b: frechet_distance(a, b), repeats)
        yield _against_sqrtm(work, a, b, value, seconds)
    a, b = _moments(half), _moments(half[: dims // 4] + 1)
    yield Timing(
        f"matrix root, {dims // 2} against {dims // 4} samples (both singular)",
        _time(lambda: trace_of_root(a.cov, b.cov), repeats)[1],
    )
    yield Timing(f"moments of {len(real)} samples, in batches of 64", _time(lambda: _moments(real), repeats)[1])
    index = draw_subsets(len(real), len(half), seed=0, num_subsets=10)
    yield Timing("kernel distance, 10 subsets", _time(lambda: kernel_distance(real, half, *index), repeats)[1])
    yield Timing(
        f"precision and recall, {len(real)} against {len(half)}",
        _time(lambda: precision_recall(real, half), repeats)[1],
    )
    yield _inception(repeats)


def _against_sqrtm(work: str, a: Moments, b: Moments, value: float, seconds: float) -> Timing:
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        return Timing(work, seconds)

    def usual() -> float:
        root = sqrtm((a.cov @ b.cov).numpy())
        return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * root.trace().real

    expected, plain = _time(usual, 1)
    return Timing(work, seconds, plain, abs(value - expected) / max(abs(expected), 1e-12))


def _inception(repeats: int) -> Timing:
    """The FID network as the extractor runs it; random weights cost the same."""
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    network = InceptionV3().to(memory_format=torch.channels_last)
    return Timing("Inception features, 4 images on the CPU", _time(lambda: network(images), repeats)[1])


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


def _time(function: Callable, repeats: int) -> tuple:
    """(last value, median seconds)."""
    seconds, value = [], None
    with torch.no_grad():
        for _ in range(repeats):
            begin = time.perf_counter()
            value = function()
            seconds.append(time.perf_counter() - begin)
    return value, statistics.median(seconds)
