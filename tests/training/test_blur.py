"""The discriminator's early blur equals the reference and keeps depth and image apart."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.training.blur import blur, blur_discriminator_input, blur_radius, blur_taps

SIGMAS = ["10.0", "4.0", "1.3", "0.5", "0.34", "0.3", "0.0"]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_equals_the_reference(golden, sigma):
    data = golden("losses")
    images = torch.from_numpy(data["blur/img"])
    assert relative_error(blur(images, float(sigma)), data[f"blur/all_channels_sigma{sigma}"]) < 1e-6
    assert relative_error(blur_discriminator_input(images, float(sigma)), data[f"blur/D_input_sigma{sigma}"]) < 1e-6


@pytest.mark.parametrize("sigma", SIGMAS[:5])
def test_taps_equal_the_reference(golden, sigma):
    taps = blur_taps(float(sigma), blur_radius(float(sigma)))
    assert relative_error(taps, golden("losses")[f"blur/kernel1d_sigma{sigma}"]) < 1e-7


def test_rgb_alone_is_blurred_as_with_depth():
    images = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blur_discriminator_input(images[:, :3], 2.0), blur_discriminator_input(images, 2.0)[:, :3])


def test_no_blur_costs_nothing():
    images = torch.rand(1, 4, 8, 8)
    assert blur_discriminator_input(images, 0.0) is images
