"""How typical each picture is: the log-likelihood of its features under one Gaussian per class.

Instance selection, DeVries et al. (arXiv 2007.15255), Sec. 3, in float64 and in a form that stays exact when a class
has fewer pictures than features, where nearly all of the ranking lies in the last digits.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from threedgp.errors import DataError, UsageError

DIRECT_ROWS = 8192  # up to here one decomposition of all rows; beyond, block by block in constant memory


def log_likelihood(
    features: np.ndarray, reg_covar: float, rows: np.ndarray | None = None, block: int = DIRECT_ROWS
) -> np.ndarray:
    """Log-density of every row under the Gaussian fitted to these rows.

    mean = (1/N) sum x_i and covariance = (1/N) sum (x_i - mean)(x_i - mean)^T + reg_covar I. With the thin
    decomposition X = U S V^T of the centred rows and variances v = S^2/N, the squared Mahalanobis distance is
    N sum_k U_ik^2 v_k / (v_k + reg_covar).

    Args:
        features: [num, dim], any float type, may be a memory map.
        reg_covar: added to every variance, >= 0.
        rows: indices of the rows that form the class; None for all.
        block: rows held in memory at once when there are more than that.

    Returns:
        float64 [len(rows)].

    Raises:
        DataError: the covariance is singular (reg_covar 0 with too few or degenerate rows), or a feature is not finite.
    """
    rows = np.arange(len(features)) if rows is None else rows
    num, dim = len(rows), features.shape[1]
    if num == 0:
        return np.zeros(0)
    blocks = [rows[start : start + block] for start in range(0, num, block)]
    mean = sum(features[index].astype(np.float64).sum(axis=0) for index in blocks) / num
    if not np.isfinite(mean).all():
        raise DataError("Some features are NaN or infinite: delete the feature cache and run the selection again.")

    def centred(index: np.ndarray) -> np.ndarray:
        return features[index].astype(np.float64) - mean

    table = centred(blocks[0])
    for index in blocks[1:]:  # the triangle of a QR has the singular values and right vectors of all rows so far
        table = np.asarray(np.linalg.qr(np.vstack([table, centred(index)]), mode="r"))
    left, singular, right = np.linalg.svd(table, full_matrices=False)
    variance = singular**2 / num
    smallest = variance.max() * dim * np.finfo(np.float64).eps
    if reg_covar == 0 and (num <= dim or variance.min() <= smallest):
        raise DataError(
            f"The covariance of {num} pictures with {dim} features each is singular. Set reg_covar above 0 "
            "(--reg-covar 1e-5 is the published setting)."
        )
    scale = 1 / (variance + reg_covar)
    if len(blocks) == 1:
        distance = num * (left**2) @ (variance * scale)
    else:
        distance = np.concatenate([(centred(index) @ right.T) ** 2 @ scale for index in blocks])
    log_det = np.log(variance + reg_covar).sum()
    if reg_covar > 0:
        log_det += (dim - len(variance)) * np.log(reg_covar)
    return -0.5 * (dim * np.log(2 * np.pi) + log_det + distance)


def ranking(likelihood: np.ndarray) -> np.ndarray:
    """Indices from most to least typical; likelihoods equal to 6 decimals keep their order (path order)."""
    return np.argsort(-np.round(likelihood, 6), kind="stable")


def parse_ratio(ratio: str | float | Fraction) -> Fraction:
    """A share of (0, 1] read exactly: "1/3" and 0.29 mean one third and 29/100.

    Raises:
        UsageError: not a number in (0, 1].
    """
    try:
        value = Fraction(str(ratio))
        value = value.limit_denominator(10**9) if isinstance(ratio, float) else value  # 1/3 typed as a Python float
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise UsageError(f"The share to keep must be above 0 and at most 1 (0.5, 1/3), not '{ratio}'.")
    return value


def keep_count(num: int, *, keep: int | None = None, ratio: str | float | Fraction | None = None) -> int:
    """How many of `num` pictures stay: `keep` or floor(num * ratio), at least one, at most all."""
    wanted = keep if keep is not None else num * parse_ratio(ratio if ratio is not None else 1) // 1
    return min(max(int(wanted), 1), num)
