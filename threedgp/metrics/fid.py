"""Frechet distance between two sets of image features (FID, arXiv 1706.08500)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from threedgp.errors import DataError, NotFiniteError
from threedgp.processes import World

_EPS = torch.finfo(torch.float64).eps
_FAST_ERROR = 1e-9  # largest estimated error of the fast route, as a fraction of the traces


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        count: number of samples; bounds the rank of the covariance.
        mean: float64 [d].
        cov: float64 [d, d], divisor `count`.
    """

    count: int
    mean: torch.Tensor
    cov: torch.Tensor


class FeatureStatistics:
    """Streams features into count, sum and sum of outer products, all in float64.

    Sums are taken about the first batch's mean, which keeps them small, and are moved to a common centre when two
    accumulators merge; the moments are those of the plain sums.

    Attributes:
        count: samples seen; the others are empty while it is 0.
        shift: float64 [d], the centre.
        total: float64 [d], sum of (x - shift).
        scatter: float64 [d, d], sum of (x - shift)(x - shift)^T.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift, self.total, self.scatter = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def update(self, features: torch.Tensor) -> None:
        """Add a batch [batch, d] of finite numbers, any float type, any device."""
        x = features.detach().to(torch.float64)
        if len(x) == 0:
            return
        if self.count == 0:
            self.shift = x.mean(dim=0)
            self.total, self.scatter = torch.zeros_like(self.shift), x.new_zeros(x.shape[1], x.shape[1])
        if self.shift.device != x.device:  # what was saved comes back on the CPU
            self.shift, self.total, self.scatter = self.shift.to(x), self.total.to(x), self.scatter.to(x)
        x = x - self.shift
        self.count += x.shape[0]
        self.total += x.sum(dim=0)
        self.scatter.addmm_(x.T, x)

    def merge(self, other: FeatureStatistics) -> None:
        """Add what another accumulator has seen."""
        if self.count == 0:
            self.count, self.shift = other.count, other.shift
            self.total, self.scatter = other.total.clone(), other.scatter.clone()
        elif other.count:
            total, scatter = other._about(self.shift)
            self.scatter += scatter
            self.total += total
            self.count += other.count

    def reduce(self, world: World, dims: int) -> None:
        """Merge the accumulators of all processes; afterwards each holds the same sums of `dims` dimensions."""
        shift = next(filter(None, world.gather(self.shift.tolist())), None)
        if shift is None:
            return
        common = torch.tensor(shift, dtype=torch.float64)
        total, scatter = torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dims, dtype=torch.float64)
        if self.count:
            total, scatter = self._about(common)
        self.shift, self.total, self.scatter = common, world.sum(total), world.sum(scatter)
        self.count = int(world.sum(torch.tensor(self.count)))

    def _about(self, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """total and scatter about another centre, on its device."""
        total, scatter = self.total.to(centre), self.scatter.to(centre)
        delta = self.shift.to(centre) - centre
        cross = torch.outer(total, delta)
        return total + self.count * delta, scatter + cross + cross.T + self.count * torch.outer(delta, delta)

    def moments(self) -> Moments:
        """Mean and covariance (divisor N) of everything seen, on the CPU.

        Raises:
            DataError: nothing has been seen.
        """
        if self.count == 0:
            raise DataError("There are no features to take statistics of: the image set is empty.")
        offset = self.total / self.count
        cov = self.scatter / self.count - torch.outer(offset, offset)
        return Moments(self.count, (self.shift + offset).cpu(), ((cov + cov.T) / 2).cpu())

    def state(self) -> dict[str, torch.Tensor]:
        """Everything as tensors on the CPU; see `of`."""
        tensors = {"shift": self.shift, "total": self.total, "scatter": self.scatter} if self.count else {}
        return {"count": torch.tensor(self.count), **{name: value.cpu().clone() for name, value in tensors.items()}}

    @classmethod
    def of(cls, state: dict[str, torch.Tensor]) -> FeatureStatistics:
        """The accumulator that `state` described."""
        statistics = cls()
        statistics.count = int(state["count"])
        if statistics.count:
            statistics.shift, statistics.total, statistics.scatter = (state[k] for k in ("shift", "total", "scatter"))
        return statistics


def require_finite(features: torch.Tensor, numbers: Sequence[int]) -> None:
    """Refuse features [batch, d] with NaN or infinity, which would silently poison every statistic.

    Raises:
        NotFiniteError: names the first offending image by its entry in `numbers`.
    """
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        raise NotFiniteError(
            f"The features of image {numbers[int(bad.nonzero()[0])]} are not finite ({int(bad.sum())} of "
            f"{len(bad)} in its batch): the checkpoint has probably diverged, or the extractor's weights are damaged."
        )


def frechet_distance(real: Moments, generated: Moments) -> float:
    """|mu_g - mu_r|^2 + tr S_g + tr S_r - 2 tr (S_g S_r)^(1/2) (FID, arXiv 1706.08500, Eq. 6).

    Covariances may be singular. A result in (-1e-6, 0), which rounding can give for equal sets, becomes 0.
    """
    if real.mean.shape != generated.mean.shape:
        raise DataError(f"Features of {real.mean.numel()} and {generated.mean.numel()} dimensions cannot be compared.")
    traces = float(real.cov.trace() + generated.cov.trace())
    root = _fast_trace_of_root(real, generated, traces)
    if root is None:
        root = trace_of_root(real.cov, generated.cov)
    value = float((real.mean - generated.mean).square().sum()) + traces - 2 * root
    return 0.0 if -1e-6 < value < 0 else value


def trace_of_root(a: torch.Tensor, b: torch.Tensor) -> float:
    """tr (A B)^(1/2) of two symmetric positive semi-definite matrices [d, d], exact for any rank.

    With A = F^T F and B = G^T G it is the nuclear norm of F G^T. The factors come from symmetric eigen-decompositions
    without the eigenvalues that are rounding noise.
    """
    return float(torch.linalg.svdvals(_factor(a) @ _factor(b).T).sum())


def _factor(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > matrix.shape[0] * _EPS * values[-1]
    return (vectors[:, keep] * values[keep].sqrt()).T  # [rank, d]


def _fast_trace_of_root(real: Moments, generated: Moments, traces: float) -> float | None:
    """The same from one Cholesky factor and the eigenvalues of L^T S L: a fifth of the time, or None if not exact.

    The product's eigenvalues are squares of the wanted singular values, so small ones lose half their digits. How much
    that costs is estimated from the spectrum itself; sample counts say how many eigenvalues are exactly zero.
    """
    by_count = sorted((real, generated), key=lambda moments: moments.count)
    lower, failed = torch.linalg.cholesky_ex(by_count[1].cov)
    if failed:
        return None
    product = lower.T @ by_count[0].cov @ lower
    squares = torch.linalg.eigvalsh((product + product.T) / 2)
    rank = min(by_count[0].count - 1, squares.numel())
    squares = squares[squares.numel() - rank :].clamp(min=0)
    if rank == 0:
        return 0.0
    noise = _EPS * squares[-1]
    roots = squares.sqrt()
    error = torch.minimum(noise / roots.clamp(min=1e-150), noise.sqrt()).norm()
    return float(roots.sum()) if error <= _FAST_ERROR * traces else None
