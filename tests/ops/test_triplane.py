"""Tri-plane lookup: axes, borders, averaging, derivatives."""

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.ops.triplane import sample_triplanes


def by_hand(planes, points):
    """The definition, one point, plane and corner at a time."""
    batch, _, features, height, width = planes.shape
    out = np.zeros((batch, points.shape[1], features))
    axes = [(0, 1), (0, 2), (1, 2)]
    for b, m, p in np.ndindex(batch, points.shape[1], 3):
        u, v = axes[p]
        column = (points[b, m, u] + 1) / 2 * (width - 1)
        row = (points[b, m, v] + 1) / 2 * (height - 1)
        for i in (int(np.floor(row)), int(np.floor(row)) + 1):
            for j in (int(np.floor(column)), int(np.floor(column)) + 1):
                if 0 <= i < height and 0 <= j < width:
                    weight = (1 - abs(row - i)) * (1 - abs(column - j))
                    out[b, m] += weight * planes[b, p, :, i, j] / 3
    return out


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 7)])
def test_equals_the_definition_inside_and_outside(height, width):
    rng = np.random.RandomState(0)
    planes = rng.standard_normal((2, 3, 4, height, width))
    points = rng.uniform(-1.6, 1.6, (2, 60, 3))
    actual = sample_triplanes(torch.tensor(planes), torch.tensor(points))
    assert relative_error(actual, by_hand(planes, points)) < 1e-13


def test_corners_hit_pixel_centres_and_axes_are_xy_xz_yz():
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, 0, 0, 3, 0] = 3.0  # row y=+1, column x=-1
    planes[0, 1, 0, 0, 0] = 30.0  # row z=-1, column x=-1
    planes[0, 2, 0, 0, 3] = 300.0  # row z=-1, column y=+1
    value = sample_triplanes(planes, torch.tensor([[[-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]]))
    assert value.flatten().tolist() == pytest.approx([111.0, 0.0])


def test_far_outside_is_zero():
    points = torch.tensor([[[9.0, -9.0, 9.0], [1e6, 1e6, 1e6]]])
    assert torch.equal(sample_triplanes(torch.ones(1, 3, 2, 8, 8), points), torch.zeros(1, 2, 2))


def test_no_points_give_no_features():
    assert sample_triplanes(torch.ones(2, 3, 4, 8, 8), torch.zeros(2, 0, 3)).shape == (2, 0, 4)


@pytest.mark.parametrize("shape", [(1, 2, 4, 8, 8), (2, 3, 4, 8, 8)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected planes"):
        sample_triplanes(torch.zeros(shape), torch.zeros(1, 5, 3))


def test_derivatives():
    torch.manual_seed(0)
    planes = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(2, 5, 3, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    assert torch.autograd.gradcheck(sample_triplanes, (planes, points))
