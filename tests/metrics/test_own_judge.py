"""The judge learns shapes and is blind to colours, from real images and its seed alone."""

import pytest
import torch

from threedgp.errors import DataError
from threedgp.metrics.own_judge import smaller, train_judge


def shapes(count, size=16, seed=0):
    """Discs (0) and crosses (1) of random places, sizes and colours before random backgrounds."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    place = (torch.rand(count, 2, 1, 1, generator=random) - 0.5) * 0.5
    reach = 0.3 + 0.2 * torch.rand(count, 1, 1, generator=random)
    dx, dy = (x - place[:, 0]).abs(), (y - place[:, 1]).abs()
    disc = dx.square() + dy.square() < reach.square()
    cross = (torch.minimum(dx, dy) < 0.08) & (torch.maximum(dx, dy) < reach)
    inside = torch.where(labels[:, None, None] == 0, disc, cross)[:, None]
    colors = torch.rand(2, count, 3, 1, 1, generator=random)
    return (torch.where(inside, colors[0], colors[1]) * 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def judge():
    return train_judge(*shapes(256), 2, steps=60)


def test_shapes_of_new_colours_are_recognised(judge):
    images, labels = shapes(200, seed=1)
    features, found = judge.look(images)
    assert features.shape == (200, 128)
    assert (found == labels).double().mean() > 0.8  # chance 0.5


def test_other_colours_rarely_change_the_answer(judge):
    images, _ = shapes(200, seed=1)
    found = judge.look(images)[1]
    assert (judge.look(images.flip(1))[1] == found).double().mean() > 0.85


def test_the_seed_decides_alone_and_leaves_the_global_state(judge):
    images, labels = shapes(64)
    torch.manual_seed(5)
    first = train_judge(images, labels, 2, steps=3, seed=1)
    after = torch.rand(3)
    torch.manual_seed(6)
    second, other = train_judge(images, labels, 2, steps=3, seed=1), train_judge(images, labels, 2, steps=3, seed=2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(first.look(images)[0], second.look(images)[0])
    assert not torch.equal(first.look(images)[0], other.look(images)[0])


def test_large_images_are_averaged_down():
    assert smaller(torch.full((1, 3, 256, 256), 7, dtype=torch.uint8)).shape == (1, 3, 64, 64)
    assert smaller(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8)).shape == (1, 3, 32, 32)


def test_too_little_to_learn_from_is_refused():
    images, labels = shapes(32)
    with pytest.raises(DataError, match="two classes"):
        train_judge(images, torch.zeros_like(labels), 2)
    with pytest.raises(DataError, match="eight"):
        train_judge(images[:7], labels[:7], 2)
