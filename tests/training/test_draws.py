"""Random numbers follow from their key alone and have the right distributions."""

import pytest
import torch

from tests.training.small import Labels, make_draws, tiny_profile
from threedgp.training.draws import Draws, derive_seed
from threedgp.training.schedules import schedule_values


@pytest.fixture(scope="module")
def profile():
    return tiny_profile()


def everything(draws):
    fakes = draws.fakes(8)
    return [fakes.z, fakes.c, fakes.camera.to_vector(), draws.patches("real", 8).scales, draws.latents("emd", 3)]


def test_the_same_key_gives_the_same_numbers(profile):
    for a, b in zip(everything(make_draws(profile, 1, 2)), everything(make_draws(profile, 1, 2)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("other", [(2, 0, 5, "Gmain", 0), (1, 1, 5, "Gmain", 0), (1, 0, 6, "Gmain", 0)])
def test_another_key_gives_other_numbers(profile, other):
    for a, b in zip(
        everything(make_draws(profile, 1, 0, 5, "Gmain", 0)), everything(make_draws(profile, *other)), strict=True
    ):
        if a.unique().numel() > 4:  # classes of a few items may agree by chance
            assert not torch.equal(a, b)


def test_history_does_not_matter(profile):
    torch.rand(17)
    first = make_draws(profile, 3).latents("fakes", 4)
    torch.rand(5)
    make_draws(profile, 4).fakes(8)
    assert torch.equal(make_draws(profile, 3).latents("fakes", 4), first)


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed(0, 0, 7, "Gmain", 1) == 1126406650112082292
    assert len({derive_seed(0, i) for i in range(1000)}) == 1000


def test_fakes_have_the_classes_of_the_data_and_cameras_of_the_prior(profile):
    fakes = make_draws(profile).fakes(2000)
    assert (fakes.c.sum(dim=1) == 1).all()
    assert (fakes.c.mean(dim=0) - 0.25).abs().max() < 0.05
    assert fakes.z.std().item() == pytest.approx(1.0, abs=0.03)
    assert fakes.camera.fov.min() >= 10
    assert fakes.camera.fov.max() <= 45


def test_given_labels_are_used(profile):
    labels = torch.eye(4)
    assert torch.equal(make_draws(profile).fakes(4, labels).c, labels)


def test_a_custom_prior_takes_the_cameras_of_the_data():
    profile = tiny_profile("camera.origin.dist=custom", "training.learn_camera=false")
    draws = Draws(profile, Labels(), (0,), schedule_values(0, profile))
    fakes = draws.fakes(16)
    classes = fakes.c.argmax(dim=1)
    items = (fakes.camera.angles[:, 0] * 10).round().long()
    assert torch.equal(items % 4, classes)  # class and camera of the same item


def test_uniform_classes_are_uniform_and_absent_without_classes(profile):
    assert (make_draws(profile).classes("emd", 4000).mean(dim=0) - 0.25).abs().max() < 0.03
    assert tuple(make_draws(tiny_profile("data.num_classes=0")).classes("emd", 5).shape) == (5, 0)


def test_without_patches_there_are_none():
    off = ("training.patch.enabled=false", "training.patch.conditioning=false", "model.discriminator.hyper_mod=false")
    assert make_draws(tiny_profile(*off)).patches("real", 4) is None


def test_conditioning_angles_are_true_unless_spoofed():
    profile = tiny_profile("model.generator.camera_conditioning.enabled=true")
    honest = make_draws(profile, spoof_probability=0.0).fakes(64)
    assert torch.equal(honest.conditioning_angles, honest.camera.angles)
    lying = make_draws(profile, spoof_probability=1.0).fakes(64)
    assert torch.equal(lying.conditioning_angles, lying.camera.angles.roll(1, dims=0))
    mixed = make_draws(profile, spoof_probability=0.5).fakes(64)
    changed = (mixed.conditioning_angles != mixed.camera.angles).any(dim=1)
    assert 15 < changed.sum() < 49
    moved = mixed.conditioning_angles[changed].sort(dim=0).values
    assert torch.equal(moved, mixed.camera.angles[changed].sort(dim=0).values)  # swapped among themselves


def test_style_cutoffs_cover_all_layers():
    profile = tiny_profile("loss.style_mixing_probability=0.9")
    cutoffs = [make_draws(profile, i).style_cutoff(6) for i in range(600)]
    assert set(cutoffs) == {1, 2, 3, 4, 5, 6}
    assert cutoffs.count(6) / 600 == pytest.approx(0.1, abs=0.04)
    assert make_draws(tiny_profile()).style_cutoff(6) == 6
