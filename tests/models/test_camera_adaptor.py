"""The camera adaptor: reference vectors, bounds, gradients."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraBounds, CameraPrior
from threedgp.config.schema import AdjustConfig, CameraAdaptorConfig, CameraConfig
from threedgp.models.camera_adaptor import CameraAdaptor

VARIANTS = ["default", "uncond", "odd_camera", "residual", "fixed_all", "fov_only"]
PRECISIONS = [(torch.float32, 2e-5), (torch.float64, 2e-6)]


def small_adaptor(**options) -> CameraAdaptor:
    torch.manual_seed(0)
    bounds = CameraPrior(CameraConfig()).bounds()
    return CameraAdaptor(5, 3, bounds, CameraAdaptorConfig(hidden_dim=8, embed_dim=4, **options)).double()


def small_inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    camera = CameraPrior(CameraConfig()).sample(batch, generator=generator).to(torch.float64)
    z = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    c = torch.nn.functional.one_hot(torch.arange(batch) % 3, 3).double()
    return camera, z, c


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_matches_the_reference(golden, variant, dtype, tolerance):
    arrays = golden("camera_adaptor")
    data = {key.split("/", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{variant}/")}
    pairs = data["camera_cfg"].reshape(6, 2).tolist()
    bounds = CameraBounds(**dict(zip(("yaw", "pitch", "fov", "la_yaw", "la_pitch", "la_radius"), pairs, strict=True)))
    angles, radius, fov, look_at, residual = map(bool, data["flags"])
    z, c, prior = (torch.from_numpy(data[key]).to(dtype) for key in ("z", "c", "prior"))
    adjust = AdjustConfig(angles=angles, radius=radius, fov=fov, look_at=look_at)
    config = CameraAdaptorConfig(hidden_dim=24, embed_dim=6, residual=residual, adjust=adjust)
    adaptor = CameraAdaptor(z.shape[1], c.shape[1], bounds, config)
    parameters = {k.removeprefix("param/"): torch.from_numpy(v) for k, v in data.items() if k.startswith("param/")}
    adaptor.load_state_dict(parameters, strict=True)
    adaptor.to(dtype)
    normalized = adaptor.normalize(prior)
    assert relative_error(normalized, data["normalized"]) < tolerance
    assert relative_error(adaptor.predict(normalized, z, c).detach(), data["raw"]) < tolerance
    posterior = adaptor(Camera.from_vector(prior), z, c).to_vector().detach()
    expected = data["posterior"].copy()
    if variant == "odd_camera":  # the reference mixes up the minima of look-at pitch and radius
        low, high = bounds.la_radius
        expected[:, 7] = torch.from_numpy(data["raw"])[:, 7].double().sigmoid() * (high - low) + low
    assert relative_error(posterior, expected) < tolerance


def test_posteriors_stay_inside_the_bounds_whatever_the_network_says():
    adaptor = small_adaptor(adjust=AdjustConfig(radius=True))
    bounds = CameraPrior(CameraConfig()).bounds()
    raw = torch.tensor([[-1e3] * 8, [1e3] * 8], dtype=torch.float64)
    low, high = adaptor.denormalize(raw)
    for column, name in ((0, "yaw"), (3, "fov"), (5, "la_yaw"), (6, "la_pitch"), (7, "la_radius")):
        assert (low[column].item(), high[column].item()) == pytest.approx(getattr(bounds, name), rel=1e-6)
    assert low[1] > bounds.pitch[0]
    assert high[1] < bounds.pitch[1]
    assert low[4] == -1e3  # the default prior gives the radius no bounds


def test_a_bounded_radius_is_squashed():
    bounds = CameraBounds((-1, 1), (1, 2), (10, 20), (-1, 1), (1, 2), (0, 0.2), radius=(0.8, 1.4))
    adaptor = CameraAdaptor(5, 0, bounds, CameraAdaptorConfig(adjust=AdjustConfig(radius=True))).double()
    radius = adaptor.denormalize(torch.tensor([[-1e3] * 8, [0.0] * 8, [1e3] * 8], dtype=torch.float64))[:, 4]
    torch.testing.assert_close(radius, torch.tensor([0.8, 1.1, 1.4], dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_position_depends_on_the_class_but_not_on_the_latent():
    adaptor, (camera, z, c) = small_adaptor(), small_inputs()
    plain = adaptor(camera, z, c)
    assert torch.equal(adaptor(camera, z + 1, c).angles, plain.angles)
    assert not torch.equal(adaptor(camera, z + 1, c).look_at, plain.look_at)
    assert not torch.equal(adaptor(camera, z, c.roll(1, 0)).angles, plain.angles)


@pytest.mark.parametrize("residual", [False, True])
def test_first_and_second_derivatives(residual):
    adaptor, (camera, z, c) = small_adaptor(residual=residual), small_inputs(2)

    def function(vector, z):
        return adaptor(Camera.from_vector(vector), z, c).to_vector()

    inputs = (camera.to_vector().requires_grad_(), z.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
