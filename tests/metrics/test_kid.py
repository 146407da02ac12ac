"""Kernel distance: reference values, subsets, errors."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import DataError
from threedgp.metrics.kid import draw_subsets, kernel_distance


@pytest.mark.parametrize("case", ["kid", "kid_all"])
def test_reference_vectors(golden, case):
    values = golden("fid")
    real, gen = torch.from_numpy(values["full/real"]), torch.from_numpy(values["full/gen"])
    result = kernel_distance(real, gen, values[f"{case}/index_gen"], values[f"{case}/index_real"])
    assert relative_error(result.mean, values[f"{case}/float64"]) < 1e-12
    assert relative_error(result.mean, values[f"{case}/reference"]) < 2e-5


def test_subsets_are_seeded_and_without_repetition():
    gen, real = draw_subsets(30, 50, seed=4, num_subsets=7, subset_size=20)
    assert gen.shape == real.shape == (7, 20)
    assert gen.max() < 50
    assert real.max() < 30
    assert all(len(set(row)) == 20 for rows in (gen, real) for row in rows.tolist())
    again, _ = draw_subsets(30, 50, seed=4, num_subsets=7, subset_size=20)
    other, _ = draw_subsets(30, 50, seed=5, num_subsets=7, subset_size=20)
    assert (gen == again).all()
    assert (gen != other).any()
    assert draw_subsets(30, 25, seed=0)[0].shape == (100, 25)


def test_distant_sets_score_higher_than_samples_of_one_set():
    generator = torch.Generator().manual_seed(0)
    real, same, shifted = (torch.randn(200, 6, generator=generator) for _ in range(3))
    index = draw_subsets(200, 200, seed=0, num_subsets=10, subset_size=100)
    assert abs(kernel_distance(real, same, *index).mean) < 0.05
    assert kernel_distance(real, shifted + 2, *index).mean > 1


def test_a_single_image_is_refused():
    with pytest.raises(DataError, match="at least 2 images"):
        draw_subsets(1, 50, seed=0)
