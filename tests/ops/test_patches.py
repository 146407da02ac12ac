"""Cutting patches: reference grids and patches, and the identity."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.ops.patches import patch_grid, sample_patches


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 5e-7)])
def test_matches_reference(golden, dtype, tolerance):
    data = golden("patches")
    img, scales, offsets = (torch.tensor(data[key], dtype=dtype) for key in ("img", "scales", "offsets"))
    sizes = [int(key[4:]) for key in data if key.startswith("grid")]
    assert sizes
    for p in sizes:
        assert relative_error(patch_grid(scales, offsets, p), data[f"grid{p}"]) < tolerance
        assert relative_error(sample_patches(img, scales, offsets, p), data[f"patch{p}"]) < 5e-6


def test_the_whole_image_at_full_resolution_is_itself():
    torch.manual_seed(0)
    img = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    patches = sample_patches(img, torch.ones(2, 2), torch.zeros(2, 2), 8)
    assert relative_error(patches, img) < 1e-5


def test_offset_counts_from_the_lower_left_corner():
    img = torch.zeros(1, 1, 9, 9)
    img[..., 8, 0] = 1.0
    assert sample_patches(img, torch.full((1, 2), 0.5), torch.zeros(1, 2), 5)[0, 0, 4, 0] == 1.0
