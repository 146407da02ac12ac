"""Camera regularisers equal the reference and do what they are for."""

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.config.schema import (
    CameraRegularizerConfig,
    ForceMeanConfig,
    GradientPenaltyConfig,
    TransportConfig,
)
from threedgp.training import camera_regularizers as cr

OFF = {
    "emd": TransportConfig(enabled=False),
    "gradient_penalty": GradientPenaltyConfig(enabled=False),
    "force_mean": ForceMeanConfig(weight=0.0),
}
CENTER = torch.tensor([0.0, np.pi / 2, 0.0])


class Quadratic:
    """The test adaptor a·prior + b·prior², and the samples of the reference vectors."""

    def __init__(self, data):
        self.prior = torch.from_numpy(data["cam/prior"])
        self.a = torch.from_numpy(data["cam/a"]).requires_grad_()
        self.b = torch.from_numpy(data["cam/b"]).requires_grad_()

    def __call__(self, prior, z, c):
        return self.a * prior + self.b * prior.square()

    def draw(self, name, count):
        return cr.CameraSamples(self.prior[:count], torch.zeros(count, 2), torch.zeros(count, 0))

    def run(self, multiplier=1.0, **sections):
        config = CameraRegularizerConfig(**{**OFF, **sections})
        return cr.camera_regularization(self, config, multiplier, CENTER, self.draw)

    def gradients(self, loss):
        return torch.autograd.grad(loss, [self.a, self.b])


@pytest.mark.parametrize("kimg", [2500, 20000])
def test_transport_equals_the_reference(golden, kimg):
    data = golden("losses")
    adaptor, case = Quadratic(data), f"cam/emd_kimg{kimg}"
    losses, terms = adaptor.run(min(kimg / 10000, 1.0), emd=TransportConfig(num_samples=64))
    assert list(losses) == ["emd"]
    assert relative_error(terms["emd"], data[f"{case}/terms"]) < 1e-6
    assert relative_error(losses["emd"].detach(), data[f"{case}/loss"]) < 1e-6
    grad_a, grad_b = adaptor.gradients(losses["emd"])
    assert relative_error(grad_a, data[f"{case}/grad_a"]) < 1e-6
    assert relative_error(grad_b, data[f"{case}/grad_b"]) < 1e-6


@pytest.mark.parametrize(("case", "weights"), [("paper", (0.3, 0.03, 0.003)), ("strong", (0.5, 0.05, 0.005))])
def test_gradient_penalty_equals_the_reference(golden, case, weights):
    data = golden("losses")
    adaptor = Quadratic(data)
    origin, fov, look_at = weights
    config = GradientPenaltyConfig(enabled=True, origin=origin, fov=fov, look_at=look_at)
    losses, terms = adaptor.run(gradient_penalty=config)
    assert relative_error(terms["gradient_penalty"], data[f"cam/gradpen_{case}/terms"]) < 1e-5
    assert relative_error(losses["gradient_penalty"].detach(), data[f"cam/gradpen_{case}/loss"]) < 1e-5
    grad_a, grad_b = adaptor.gradients(losses["gradient_penalty"])
    assert relative_error(grad_a, data[f"cam/gradpen_{case}/grad_a"]) < 1e-5
    assert relative_error(grad_b, data[f"cam/gradpen_{case}/grad_b"]) < 1e-5


def test_own_derivatives_equal_the_reference(golden):
    data = golden("losses")
    adaptor = Quadratic(data)
    prior = adaptor.prior.clone().requires_grad_()
    derivatives = cr.own_derivatives(prior, adaptor(prior, None, None))
    expected = data["cam/gradpen_abs_gradient"][:, list(cr.COLUMNS)]
    assert relative_error(derivatives.detach().abs(), expected) < 1e-6


def test_force_mean_equals_the_reference(golden):
    data = golden("losses")
    adaptor = Quadratic(data)
    losses, terms = adaptor.run(force_mean=ForceMeanConfig())
    assert terms == {}
    assert relative_error(losses["force_mean"].detach(), data["cam/force_mean/loss"]) < 1e-6
    grad_a, grad_b = adaptor.gradients(losses["force_mean"])
    assert relative_error(grad_a, data["cam/force_mean/grad_a"]) < 1e-6
    assert relative_error(grad_b, data["cam/force_mean/grad_b"]) < 1e-6


def test_sorting_solves_the_transport_problem(golden):
    data = golden("losses")
    for i in range(5):
        x = torch.zeros(64, 8)
        x[:, 3] = torch.from_numpy(data["emd1d/x"][i])
        y = torch.zeros(64, 8)
        y[:, 3] = torch.from_numpy(data["emd1d/y"][i])
        x.requires_grad_()
        value = cr.transport_terms(y, x)[cr.PARAMETERS.index("fov")]
        assert relative_error(value.detach(), data["emd1d/value"][i]) < 1e-6
        (gradient,) = torch.autograd.grad(value, x)
        assert relative_error(gradient[:, 3], data["emd1d/grad_x"][i]) < 1e-7


def test_one_call_of_the_adaptor_gives_the_sum_of_the_parts(golden):
    adaptor = Quadratic(golden("losses"))
    sections = {
        "emd": TransportConfig(),
        "gradient_penalty": GradientPenaltyConfig(enabled=True),
        "force_mean": ForceMeanConfig(),
    }
    together, _ = adaptor.run(0.5, **sections)
    apart = {name: adaptor.run(0.5, **{name: section})[0][name] for name, section in sections.items()}
    for name, value in apart.items():
        assert relative_error(together[name].detach(), value.detach()) < 1e-6
    gradients = adaptor.gradients(sum(together.values()))
    for one, other in zip(gradients, adaptor.gradients(sum(apart.values())), strict=True):
        assert relative_error(one, other) < 1e-5


def test_nothing_switched_on_draws_nothing(golden):
    adaptor = Quadratic(golden("losses"))
    adaptor.draw = None
    assert adaptor.run() == ({}, {})
    assert adaptor.run(0.0, emd=TransportConfig()) == ({}, {})


def test_gradient_penalty_is_least_for_the_identity_and_finite_for_a_collapse():
    assert cr.gradient_penalty_terms(torch.ones(4, 7)).allclose(torch.tensor(2.0), atol=2e-4)
    assert cr.gradient_penalty_terms(torch.zeros(4, 7)).allclose(torch.tensor(1e4))
    for g in (0.5, 2.0, -3.0):
        assert (cr.gradient_penalty_terms(torch.full((4, 7), g)) > 2.2).all()


def test_a_camera_that_ignores_its_prior_has_derivative_zero():
    prior = torch.rand(3, 8, requires_grad=True)
    posterior = torch.cat([prior[:, :3], prior[:, :1] * torch.ones(1, 5)], dim=1)
    assert torch.equal(cr.own_derivatives(prior, posterior), torch.tensor([[1.0, 1.0, 0, 0, 0, 0, 0]]).expand(3, 7))
