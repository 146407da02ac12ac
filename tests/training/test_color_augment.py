"""Differentiable changes of colours: the same kind for every image, each by its own numbers."""

import torch

from threedgp.training.color_augment import NUMBERS, augment_colors


def numbers(*rows):
    return torch.tensor(rows)


NEUTRAL = (0.5, 0.5, 0.5, 0.5, 0.5)  # no change of colours or place


def images(count=2, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_neutral_numbers_change_nothing_but_the_blanked_square():
    x = images(1)
    y = augment_colors(x, numbers((*NEUTRAL, 0.5, 0.5)))
    blank = torch.zeros(16, 16, dtype=torch.bool)
    blank[4:12, 4:12] = True
    assert torch.allclose(y[:, :, ~blank], x[:, :, ~blank], atol=1e-6)
    assert y[:, :, blank].abs().max() == 0


def test_the_square_reaches_over_the_edge():
    y = augment_colors(torch.ones(2, 3, 16, 16), numbers((*NEUTRAL, 0.0, 0.0), (*NEUTRAL, 0.999, 0.999)))
    assert (y[0, 0] == 0).sum() == (y[1, 0] == 0).sum() == 16
    assert y[0, 0, :4, :4].abs().max() == y[1, 0, 12:, 12:].abs().max() == 0


def test_brightness_saturation_and_contrast():
    x = images(1) * 0.5
    brighter = augment_colors(x, numbers((0.75, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0)))
    assert torch.allclose(brighter[:, :, 4:, 4:], x[:, :, 4:, 4:] + 0.25, atol=1e-6)
    grey = augment_colors(x, numbers((0.5, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0)))
    assert torch.allclose(grey[:, :, 4:, 4:], x.mean(1, keepdim=True)[:, :, 4:, 4:].expand(-1, 3, -1, -1), atol=1e-6)
    flat = augment_colors(x, numbers((0.5, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0)))
    mean = x.mean()
    assert torch.allclose(flat[:, :, 4:, 4:], (x[:, :, 4:, 4:] - mean) * 0.5 + mean, atol=1e-6)


def test_content_moves_by_up_to_an_eighth_and_zeros_come_in():
    x = images(1)
    y = augment_colors(x, numbers((0.5, 0.5, 0.5, 1.0, 0.0, 0.999, 0.999)))  # 2 rows and −2 columns
    assert torch.allclose(y[0, :, :10, 2:10], x[0, :, 2:12, :8], atol=1e-6)
    assert y[0, :, :, :2].abs().max() == 0


def test_images_do_not_see_one_another_and_gradients_flow():
    x = images().requires_grad_(True)
    rows = torch.rand(2, NUMBERS, generator=torch.Generator().manual_seed(4))
    both = augment_colors(x, rows)
    assert torch.allclose(both[1:], augment_colors(x[1:], rows[1:]), atol=1e-6)
    (gradient,) = torch.autograd.grad(both[0].square().sum(), x)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0
