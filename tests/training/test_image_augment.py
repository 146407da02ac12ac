"""Simple augmentation keeps image and depth aligned and depends on nothing but seed, epoch and item."""

import math

import pytest
import torch

from tests.tools import relative_error
from threedgp.config.schema import ImageAugmentConfig
from threedgp.training.image_augment import (
    ImageChanges,
    change_images,
    choose_changes,
    item_numbers,
    mirror_yaw,
)

ALWAYS = ImageAugmentConfig(where="reals", probability=1.0)


def changes(angle=0.0, shift=(0.0, 0.0), flip=False, brightness=0.0):
    return ImageChanges(torch.tensor([angle]), torch.tensor([shift]), torch.tensor([flip]), torch.tensor([brightness]))


def picture(size=16, channels=4):
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_no_change_returns_the_very_same_values():
    images = picture(64)
    assert torch.equal(change_images(images, changes()), images)


def test_a_quarter_turn_is_clockwise_and_exact():
    images = picture()
    turned = change_images(images, changes(angle=math.pi / 2))
    assert relative_error(turned, images.rot90(-1, dims=(2, 3))) < 1e-5


def test_a_shift_by_whole_pixels_moves_right_and_down():
    images = picture()
    moved = change_images(images, changes(shift=(2 / 16, 3 / 16)))
    assert relative_error(moved[:, :, 3:, 2:], images[:, :, :-3, :-2]) < 1e-5
    assert relative_error(moved[:, :, 3:, 1], images[:, :, :-3, 0]) < 1e-5  # mirrored at the border
    assert relative_error(moved[:, :, 3:, 0], images[:, :, :-3, 1]) < 1e-5


def test_the_content_turns_before_it_moves():
    images = picture()
    both = change_images(images, changes(angle=math.pi / 2, shift=(2 / 16, 0.0)))
    expected = change_images(images.rot90(-1, dims=(2, 3)), changes(shift=(2 / 16, 0.0)))
    assert relative_error(both, expected) < 1e-5


def test_an_oblong_image_turns_without_shear():
    images = torch.zeros(1, 3, 16, 32)
    images[:, :, 8:, 16:20] = 1.0  # a bar from the centre downwards
    turned = change_images(images, changes(angle=math.pi / 2))
    assert turned[0, 0, 9, 10].item() == pytest.approx(1.0, abs=1e-4)  # now from the centre to the left
    assert turned[0, 0, 14, 17].item() == pytest.approx(0.0, abs=1e-4)


def test_a_flip_is_exact():
    images = picture()
    assert torch.equal(change_images(images, changes(flip=True)), images.flip(3))


def test_brightness_is_clipped_and_leaves_depth_alone():
    images = picture()
    bright = change_images(images, changes(brightness=0.2))
    assert torch.equal(bright[:, 3], images[:, 3])
    assert relative_error(bright[:, :3], (images[:, :3] + 0.4).clamp(-1, 1)) < 1e-6


def test_depth_moves_exactly_like_the_colours():
    images = picture(channels=1).expand(1, 4, 16, 16)
    moved = change_images(images, changes(angle=0.15, shift=(0.05, -0.03), flip=True))
    assert torch.equal(moved[:, 3], moved[:, 0])


def test_numbers_depend_on_seed_epoch_and_item_alone():
    together = item_numbers(3, 1, [5, 9, 2])
    assert torch.equal(item_numbers(3, 1, [9]), together[1:2])
    assert not torch.equal(item_numbers(3, 2, [9]), together[1:2])
    assert not torch.equal(item_numbers(4, 1, [9]), together[1:2])
    many = item_numbers(0, 0, list(range(2000)))
    assert many.min() >= 0
    assert many.max() < 1
    assert (many.mean(dim=0) - 0.5).abs().max() < 0.03
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.1


def test_changes_stay_in_their_ranges_and_happen_as_often_as_asked():
    chosen = choose_changes(item_numbers(0, 0, list(range(2000))), ImageAugmentConfig(), mirrored=False)
    assert chosen.angle.abs().max() <= math.radians(10)
    assert chosen.shift.abs().max() <= 1 / 16
    assert chosen.brightness.abs().max() <= 0.2
    shares = [chosen.angle != 0, (chosen.shift != 0).any(dim=1), chosen.flip, chosen.brightness != 0]
    for share in shares:
        assert share.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_mirrored_set_is_not_flipped_again():
    numbers = item_numbers(0, 0, list(range(50)))
    assert not choose_changes(numbers, ALWAYS, mirrored=True).flip.any()
    assert choose_changes(numbers, ALWAYS, mirrored=False).flip.all()


def test_a_flip_mirrors_the_yaw():
    angles = torch.tensor([[0.3, 1.2, 0.0]])
    assert torch.equal(mirror_yaw(angles, changes(flip=True)), torch.tensor([[-0.3, 1.2, 0.0]]))
    assert torch.equal(mirror_yaw(angles, changes()), angles)


def test_gradients_reach_the_images():
    images = picture().requires_grad_()
    change_images(images, changes(angle=0.1, brightness=0.1)).sum().backward()
    assert images.grad.abs().sum() > 0
