"""Scores of instance selection: exact in every regime, with ties and counts settled the documented way."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tools import relative_error
from threedgp.data.likelihood import keep_count, log_likelihood, ranking
from threedgp.errors import DataError, UsageError


@pytest.mark.parametrize("case", ["full", "reg", "small_reg", "deficient", "ties"])
@pytest.mark.parametrize("block", [8192, 97])
def test_reference_vectors(golden, case, block):
    expected = golden("selection")
    features, reg_covar = expected[f"{case}/embeddings"], float(expected[f"{case}/reg_covar"])
    block = max(block, features.shape[1] + 1)  # blocks hold at least as many rows as there are features
    likelihood = log_likelihood(features, reg_covar, block=block)
    assert likelihood.dtype == np.float64
    assert relative_error(likelihood, expected[f"{case}/log_likelihood"]) < 1e-9
    order = ranking(likelihood)
    for i, ratio in enumerate(expected[f"{case}/keep_ratio"]):
        kept = np.sort(order[: int(len(features) * ratio)])
        assert np.array_equal(kept, expected[f"{case}/kept_{i}"])


def test_keep_counts(golden):
    expected = golden("selection")
    ratios = ["1/3", "0.3333", 0.29, 0.57, "0.5", 1, 0.9999999, "0.3"]
    for num, ratio, wanted in zip(expected["keep_count/n"], ratios, expected["keep_count/ours"], strict=True):
        assert keep_count(int(num), ratio=ratio) == wanted


def test_a_class_never_becomes_empty_and_never_grows():
    assert keep_count(2, ratio="1/3") == 1
    assert keep_count(3, ratio=1 / 3) == 1
    assert keep_count(5, keep=9) == 5


@pytest.mark.parametrize("ratio", ["0", "1.5", "-1", "half", "1/0", float("nan")])
def test_impossible_shares_are_refused(ratio):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        keep_count(5, ratio=ratio)


def test_blocks_give_the_same_as_one_piece():
    features = np.random.RandomState(0).randn(500, 40).astype(np.float32) * np.linspace(1e-3, 10, 40)
    rows = np.arange(3, 490)
    whole = log_likelihood(features, 1e-5, rows)
    assert relative_error(log_likelihood(features, 1e-5, rows, block=64), whole) < 1e-10
    direct = features[rows].astype(np.float64)
    centred = direct - direct.mean(0)
    covariance = centred.T @ centred / len(rows) + 1e-5 * np.eye(40)
    distance = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    expected = -0.5 * (40 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + distance)
    assert relative_error(whole, expected) < 1e-9


@pytest.mark.parametrize("num", [1, 12, 30])
def test_singular_covariances_name_the_remedy(num):
    features = np.random.RandomState(0).randn(num, 20)
    features[:, 3] = 7  # a feature that never varies
    with pytest.raises(DataError, match="reg_covar"):
        log_likelihood(features, 0.0)
    assert np.isfinite(log_likelihood(features, 1e-5)).all()


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="NaN"):
        log_likelihood(np.array([[1.0, np.nan]]), 1e-5)


def test_no_rows_no_scores():
    assert log_likelihood(np.zeros((3, 2)), 0.0, np.zeros(0, dtype=int)).shape == (0,)
