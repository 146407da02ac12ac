"""Losses, penalties and distillation equal the reference, with their gradients."""

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.config.schema import DataConfig, PatchConfig, Profile, TrainingConfig
from threedgp.training import losses


def tensors(data):
    return {key: torch.from_numpy(value) for key, value in data.items() if value.dtype == np.float32}


def gradient_of_mean(values, leaf):
    return torch.autograd.grad(values.mean(), leaf, retain_graph=True)[0]


@pytest.mark.parametrize("clamp", [1e7, 1.5])
@pytest.mark.parametrize("kind", ["non_saturating", "hinge"])
def test_adversarial_losses_equal_the_reference(golden, kind, clamp):
    data = tensors(golden("losses"))
    case = f"adv/{kind}" + ("_clamp1.5" if clamp == 1.5 else "")
    fake_in_g, fake_in_d, real = (
        data[f"logits/{name}"].requires_grad_() for name in ("fake_in_G", "fake_in_D", "real")
    )
    generator = losses.generator_loss(kind, fake_in_g)
    discriminator = losses.discriminator_loss(kind, fake_in_d, real, clamp)
    assert relative_error(generator.detach(), data[f"{case}/G"]) < 1e-6
    assert relative_error(discriminator.detach(), data[f"{case}/D_total"]) < 1e-6
    assert relative_error(gradient_of_mean(generator, fake_in_g), data[f"{case}/grad_fake_in_G"]) < 1e-7
    assert relative_error(gradient_of_mean(discriminator, fake_in_d), data[f"{case}/grad_fake_in_D"]) < 1e-7
    assert relative_error(gradient_of_mean(discriminator, real), data[f"{case}/grad_real"]) < 1e-7


def test_relativistic_losses_judge_pairs():
    fake, real = torch.tensor([0.0, 3.0, -2.0]), torch.tensor([0.0, 1.0, 5.0])
    expected_d = np.log1p(np.exp([0.0, 2.0, -7.0]))
    expected_g = np.log1p(np.exp([0.0, -2.0, 7.0]))
    assert relative_error(losses.discriminator_loss("relativistic", fake, real), expected_d) < 1e-6
    assert relative_error(losses.generator_loss("relativistic", fake, real), expected_g) < 1e-6
    shifted = losses.discriminator_loss("relativistic", fake + 40, real + 40)  # only the difference counts
    assert relative_error(shifted, expected_d) < 1e-6


@pytest.mark.parametrize("gamma", [0.05, 10.0])
def test_r1_equals_the_reference(golden, gamma):
    data = tensors(golden("losses"))
    images = data["r1/img"].requires_grad_()
    logits = 0.5 * (data["r1/w"] * images.square()).flatten(1).sum(dim=1)  # its gradient is w·img
    (penalty,) = losses.gradient_penalties([logits], [images])
    assert relative_error(penalty.detach(), data[f"r1/gamma{gamma}/penalty"]) < 1e-6
    assert relative_error((gamma / 2 * penalty).detach(), data[f"r1/gamma{gamma}/loss"]) < 1e-6
    expected = 2 * data["r1/w"].square() * images.detach()
    assert relative_error(torch.autograd.grad(penalty.sum(), images)[0], expected) < 1e-6


def test_automatic_gamma_equals_the_published_rule(golden):
    for resolution, batch, gamma in golden("losses")["r1/auto_gamma"]:
        profile = Profile(
            name="test",
            data=DataConfig(resolution=int(resolution)),
            training=TrainingConfig(batch_size=int(batch), patch=PatchConfig(resolution=64)),
        )
        assert profile.gamma == pytest.approx(gamma, rel=1e-12)


def test_path_length_equals_the_reference(golden):
    data = tensors(golden("losses"))
    ws = data["pl/ws"].requires_grad_()
    images = (ws.reshape(3, -1) @ data["pl/M"]).reshape(3, 3, 8, 8)
    lengths = losses.path_lengths(images, ws, data["pl/noise"])
    penalty, mean = losses.path_length_penalty(lengths, data["pl/mean_before"])
    assert relative_error(penalty.detach(), data["pl/penalty"]) < 1e-6
    assert relative_error(mean.detach(), data["pl/mean_after"]) < 1e-6
    assert relative_error(2.0 * penalty.detach(), data["pl/loss_per_sample"]) < 1e-6


def test_path_length_does_not_depend_on_the_aspect():
    ws = torch.rand(2, 3, 4, requires_grad=True)
    images = ws.sum(dim=(1, 2))[:, None, None, None].expand(2, 3, 4, 16)
    assert torch.allclose(losses.path_lengths(images, ws, torch.ones(2, 3, 4, 16)), torch.tensor(24.0 * 2))


@pytest.mark.parametrize("kimg", [0, 25000])
@pytest.mark.parametrize("kind", ["l2", "kl"])
def test_distillation_equals_the_reference(golden, kind, kimg):
    data = tensors(golden("losses"))
    case, weight = f"kd/{kind}_kimg{kimg}", {0: 1.0, 25000: 0.75}[kimg]
    features = data["kd/features"].requires_grad_()
    distance = losses.distillation_distance(kind, features, data["kd/teacher"])
    weighted = losses.patch_weights(data["patch_scales"]) * distance
    assert relative_error(weighted.detach(), data[f"{case}/weighted_distance"]) < 1e-6
    assert relative_error((weight * weighted).detach(), data[f"{case}/loss"]) < 1e-6
    gradient = gradient_of_mean(weight * weighted, features)
    assert relative_error(gradient, data[f"{case}/grad_features"]) < 1e-7


def test_patch_weights_equal_the_reference(golden):
    data = tensors(golden("losses"))
    assert relative_error(losses.patch_weights(data["patch_scales"]), data["kd/sample_weights"]) < 1e-6


def test_a_perfect_prediction_has_a_finite_gradient():
    features = torch.ones(2, 3, requires_grad=True)
    losses.distillation_distance("l2", features, torch.ones(2, 3)).sum().backward()
    assert (features.grad == 0).all()
