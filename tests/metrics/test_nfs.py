"""Non-flatness score: reference values, range, bins, errors."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import DataError
from threedgp.metrics.nfs import depth_entropy, non_flatness


def test_reference_vectors(golden):
    values = golden("nfs")
    depth = torch.from_numpy(values["depth"])
    result = depth_entropy(depth, float(values["near"]), float(values["far"]), int(values["bins"]))
    assert relative_error(result.histogram * depth.shape[1], values["histogram"]) < 1e-7
    assert relative_error(result.entropy, values["entropy"]) < 1e-6
    assert relative_error(result.entropy, values["entropy_float64"]) < 1e-9
    assert relative_error(non_flatness(result.entropy), values["nfs"]) < 1e-6
    assert relative_error(result.entropy.mean(), values["mean_entropy"]) < 1e-6


def test_constant_depth_scores_one_and_uniform_depth_the_number_of_bins():
    constant = depth_entropy(torch.full((2, 8, 8), 1.0), 0.75, 1.25)
    uniform = depth_entropy(torch.linspace(0.75, 1.25, 6401)[:-1].reshape(1, 80, 80), 0.75, 1.25)
    assert non_flatness(constant.entropy) == pytest.approx(1, rel=1e-9)
    assert non_flatness(uniform.entropy) == pytest.approx(64, rel=1e-3)


def test_values_outside_count_as_the_bound_and_are_reported():
    result = depth_entropy(torch.tensor([[0.0, 0.75, 1.25, 9.0]]), 0.75, 1.25)
    assert result.histogram[0, 0] == result.histogram[0, -1] == 0.5
    assert result.clamped.tolist() == [0.5]
    assert result.entropy[0].item() == pytest.approx(math.log(2))


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="near < far"):
        depth_entropy(torch.ones(1, 4), 1.0, 1.0)
    with pytest.raises(DataError, match="not finite"):
        depth_entropy(torch.tensor([[torch.nan, 1.0]]), 0.5, 1.5)
    with pytest.raises(DataError, match="at least one"):
        non_flatness(torch.empty(0))
