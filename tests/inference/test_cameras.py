"""Canonical cameras: the mean one and each sample's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.inference.tiny import tiny
from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.config.profile import override_profile
from threedgp.config.schema import CameraAdaptorConfig, CameraConfig
from threedgp.errors import UsageError
from threedgp.inference.cameras import mean_camera, mean_posterior, posterior_cameras
from threedgp.inference.latents import Sample
from threedgp.models.camera_adaptor import CameraAdaptor


def test_mean_and_posterior_of_the_reference(golden):
    values = golden("inference")
    given = {name: torch.from_numpy(values[f"mean_camera/{name}"]) for name in ("prior", "z", "c", "posterior_z")}
    adaptor = CameraAdaptor(6, 4, CameraPrior(CameraConfig()).bounds(), CameraAdaptorConfig(hidden_dim=16, embed_dim=4))
    adaptor.load_state_dict(
        {name: torch.from_numpy(values[f"mean_camera/param/{name}"]) for name in adaptor.state_dict()}
    )
    generator, prior = SimpleNamespace(adapt_camera=adaptor), Camera.from_vector(given["prior"])
    with torch.no_grad():
        mean = mean_posterior(generator, prior, given["z"], given["c"])
        posterior = adaptor(prior, given["posterior_z"], given["c"])
    assert relative_error(mean.to_vector(), values["mean_camera/mean"]) < 1e-6
    assert relative_error(posterior.to_vector(), values["mean_camera/posterior"]) < 1e-6


def test_mean_camera_never_changes():
    profile, generator = tiny()
    state = torch.get_rng_state()
    first = mean_camera(generator, profile)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first.to_vector(), mean_camera(generator, profile).to_vector())
    assert len(first) == 1


def test_mean_camera_without_adaptor_is_the_mean_of_the_prior():
    profile, generator = tiny("epigraf")
    expected = CameraPrior(profile.camera).mean().to_vector()
    found = mean_camera(generator, profile).to_vector()
    spread = CameraPrior(profile.camera).sample(512).to_vector().std(dim=0)
    assert ((found - expected).abs() <= 4 * spread / 32 + 1e-5).all()  # 1024 draws


def test_posterior_camera_depends_on_its_own_seed_alone():
    profile, generator = tiny()
    samples = [Sample(3, 1), Sample(8, 0), Sample(3, 2)]
    together = posterior_cameras(generator, profile, samples).to_vector()
    alone = posterior_cameras(generator, profile, samples[1:2]).to_vector()
    assert relative_error(together[1:2], alone) < 1e-6
    assert not torch.allclose(together[0], together[1])
    assert not torch.allclose(together[0], together[2])  # another class, another camera


def test_cameras_from_the_training_set():
    profile, generator = tiny("epigraf")
    profile = override_profile(profile, ["camera.origin.dist=custom"])
    angles = torch.tensor([[0.5, 1.4, 0.0], [1.5, 1.6, 0.0]])
    vector = mean_camera(generator, profile, angles).to_vector()[0]
    assert vector[:2].tolist() == pytest.approx([1.0, 1.5], abs=1e-6)
    assert vector[5:].tolist() == [0.0, 0.0, 0.0]
    drawn = posterior_cameras(generator, profile, [Sample(seed) for seed in range(8)], angles).angles
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in angles.tolist()}
    for function in (
        lambda: mean_camera(generator, profile),
        lambda: posterior_cameras(generator, profile, [Sample(0)]),
    ):
        with pytest.raises(UsageError, match="--data"):
            function()
