"""Inception score: reference values, extremes, zero probabilities, errors."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import DataError
from threedgp.metrics.inception_score import inception_score


def test_reference_vectors(golden):
    values = golden("fid")
    result = inception_score(torch.from_numpy(values["is/probs"]), int(values["is/splits"]))
    assert relative_error(result.mean, values["is/mean"]) < 1e-6
    assert relative_error(result.std, values["is/std"]) < 1e-6


def test_extremes():
    certain = torch.eye(8).repeat(10, 1)  # every split of 8 rows holds each class once
    assert inception_score(certain, 10).mean == pytest.approx(8, rel=1e-12)
    assert inception_score(torch.full((40, 8), 1 / 8), 10).mean == pytest.approx(1, rel=1e-12)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(DataError, match="at least 10 images, not 9"):
        inception_score(torch.full((9, 4), 0.25))
