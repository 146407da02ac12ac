"""Precision and recall: reference values, blocks, hand-made manifolds, errors."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import DataError
from threedgp.metrics.precision_recall import inside_manifold, manifold_radii, precision_recall


@pytest.mark.parametrize("block", [7, 10_000])
@pytest.mark.parametrize("case", ["a", "b"])
def test_reference_vectors(golden, case, block):
    values = golden("precision_recall")
    real, gen = (torch.from_numpy(values[f"{case}/{side}"]) for side in ("real", "gen"))
    k = int(values[f"{case}/k"])
    for points, other, radius, inside in (
        (real, gen, "radius_real", "inside_precision"),
        (gen, real, "radius_gen", "inside_recall"),
    ):
        radii = manifold_radii(points, k, block)
        assert relative_error(radii.sqrt(), values[f"{case}/{radius}"]) < 1e-5
        assert torch.equal(
            inside_manifold(other, points, radii, block), torch.from_numpy(values[f"{case}/{inside}"]) > 0
        )
    result = precision_recall(real, gen, neighbours=k, block=block)
    assert result.precision == values[f"{case}/precision"]
    assert result.recall == values[f"{case}/recall"]


def test_mode_collapse_has_precision_without_recall():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=generator)
    gen = 0.01 * torch.randn(300, 2, generator=generator)
    result = precision_recall(real, gen)
    assert result.precision == 1.0
    assert result.recall < 0.05


def test_far_from_the_origin_nothing_changes():
    generator = torch.Generator().manual_seed(1)
    real, gen = torch.randn(80, 5, generator=generator), torch.randn(70, 5, generator=generator)
    assert precision_recall(real.double() + 1e4, gen.double() + 1e4) == precision_recall(real, gen)


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="at least 4 generated images, not 3"):
        precision_recall(torch.randn(10, 2), torch.randn(3, 2))
