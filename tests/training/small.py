"""A tiny profile, a made-up training set and one batch, for tests of the phases."""

from dataclasses import replace

import torch

from threedgp.config.profile import load_profile
from threedgp.data.dataset import Item
from threedgp.models.build import build_discriminator, build_generator
from threedgp.training.draws import Draws
from threedgp.training.phases import Setup, real_batch
from threedgp.training.schedules import schedule_values

TINY = (
    "model.generator.tri_plane.resolution=8",
    "model.generator.tri_plane.features=4",
    "model.generator.ray_steps=4",
    "model.generator.cmax=8",
    "model.generator.z_dim=8",
    "model.generator.w_dim=8",
    "model.discriminator.cmax=8",
    "data.resolution=16",
    "data.embedding_dim=6",
    "training.patch.resolution=8",
)


def tiny_profile(*overrides, name="tiny-cpu"):
    return load_profile(name, [*TINY, *overrides])


class Labels:
    """A training set of four classes; item i has class i mod 4 and yaw i/10."""

    def __init__(self, c_dim=4, length=12):
        self.c_dim, self.length = c_dim, length

    def __len__(self):
        return self.length

    def label(self, index):
        return torch.nn.functional.one_hot(torch.tensor(index % max(self.c_dim, 1)), max(self.c_dim, 1)).float()[
            : self.c_dim
        ]

    def camera_angles(self, index):
        return torch.tensor([index / 10, 1.5, 0.0])


def make_draws(profile, *key, kimg=0.0, **options):
    values = replace(schedule_values(round(1000 * kimg), profile), **options)
    return Draws(profile, Labels(profile.data.num_classes), key or (0,), values)


def make_setup(profile, nimg=100, **options):
    torch.manual_seed(0)
    generator, discriminator = build_generator(profile).train(), build_discriminator(profile).train()
    values = schedule_values(nimg, profile)
    return Setup(profile, generator, discriminator, values, torch.zeros(()), **options)


def make_items(profile, count=4):
    random = torch.Generator().manual_seed(7)
    size, classes = profile.data.resolution, profile.data.num_classes
    labels = Labels(classes)
    return Item(
        image=torch.randint(256, (count, 3, size, size), generator=random).to(torch.uint8),
        depth=torch.randint(65536, (count, 1, size, size), generator=random).int(),
        label=torch.stack([labels.label(i) for i in range(count)]),
        camera_angles=torch.zeros(count, 3),
        embedding=torch.randn(count, profile.data.embedding_dim, generator=random),
        index=torch.arange(count),
    )


def make_real(profile, count=4):
    return real_batch(make_items(profile, count), profile, "cpu")
