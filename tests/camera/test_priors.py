"""Camera priors: reference draws, statistics, means, bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.camera.priors import CameraPrior, scalar_max, scalar_mean, truncated_normal
from threedgp.config.schema import CameraConfig, LookAtPriorConfig, OriginPriorConfig, RangeConfig, ScalarPriorConfig
from threedgp.errors import ConfigError

DISTRIBUTIONS = ["uniform", "normal", "spherical_uniform", "truncnorm", "hybrid_uniform", "hybrid_normal"]


def origin_prior(arrays, dist: str) -> CameraPrior:
    yaw, pitch = (
        RangeConfig(**dict(zip(("min", "max", "mean", "std"), arrays[key].tolist(), strict=True)))
        for key in ("yaw_cfg", "pitch_cfg")
    )
    return CameraPrior(CameraConfig(origin=OriginPriorConfig(dist=dist, yaw=yaw, pitch=pitch)))


def draws_for(prior: CameraPrior, dtype=torch.float32, **given) -> dict[str, torch.Tensor]:
    batch = len(given["yaw"])
    draws = {key: value.to(dtype) for key, value in prior.draw(batch, generator=torch.Generator()).items()}
    return draws | given


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_angles_match_the_reference(golden, dist, dtype, tolerance):
    arrays = golden("distributions")
    prior = origin_prior(arrays, dist.split("_")[0] if "hybrid" in dist else dist)
    yaw, pitch = (torch.from_numpy(arrays[f"{dist}/draw_{axis}"]).to(dtype) for axis in ("yaw", "pitch"))
    draws = draws_for(prior, dtype, yaw=yaw, pitch=pitch)
    if "hybrid" in dist:
        draws["origin_coin"] = torch.tensor(dist == "hybrid_uniform")
    assert relative_error(prior.from_draws(draws).angles, arrays[f"{dist}/angles"]) < tolerance
    if "hybrid" not in dist:
        assert relative_error(prior.mean().angles[0], arrays[f"{dist}/mean_angles"]) < 1e-6


@pytest.mark.parametrize("dist", ["normal", "uniform", "truncnorm"])
def test_scalars_match_the_reference(golden, dist):
    arrays = golden("distributions")
    values = arrays[f"scalar_{dist}/cfg_min_max_mean_std"].tolist()
    names = ("min", "max", "mean", "std")
    config = ScalarPriorConfig(dist=dist, **{k: v for k, v in zip(names, values, strict=True) if v >= 0})
    draw = torch.from_numpy(arrays[f"scalar_{dist}/draw"]).double()
    prior = CameraPrior(CameraConfig(fov=config))
    camera = prior.from_draws(draws_for(prior, torch.float64, yaw=draw * 0, fov=draw))
    assert relative_error(camera.fov, arrays[f"scalar_{dist}/value"]) < 1e-6
    np.testing.assert_allclose([scalar_mean(config), scalar_max(config)], arrays[f"scalar_{dist}/mean_max"], rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_the_default_prior_matches_the_reference(golden, dtype, tolerance):
    arrays = golden("distributions")
    names = ("yaw", "pitch", "fov", "la_yaw", "la_pitch", "la_radius")
    draws = dict(zip(names, torch.from_numpy(arrays["prior/draws"]).to(dtype), strict=True))
    camera = CameraPrior(CameraConfig()).from_draws(draws)
    for name in ("angles", "fov", "radius", "look_at"):
        assert relative_error(getattr(camera, name), arrays[f"prior/{name}"]) < tolerance


@pytest.mark.parametrize("dist", ["uniform", "normal", "spherical_uniform", "truncnorm", "hybrid"])
def test_statistics_match_the_reference(golden, dist):
    arrays = golden("distributions")
    prior = origin_prior(arrays, dist)
    generator = torch.Generator().manual_seed(0)
    # A hybrid prior tosses one coin per batch: many small batches see both branches.
    batches, size = (2000, 20) if dist == "hybrid" else (1, 40000)
    angles = torch.cat([prior.sample(size, generator=generator).angles for _ in range(batches)]).double().numpy()
    for column, axis in enumerate(("yaw", "pitch")):
        expected = arrays[f"stats/{dist}/{axis}"]
        values = angles[:, column]
        actual = [values.mean(), values.std(), *np.quantile(values, arrays["stats/quantile_levels"])]
        np.testing.assert_allclose(actual, expected, atol=0.03 * (expected[-1] - expected[2]))


def test_the_same_generator_state_gives_the_same_cameras():
    prior = CameraPrior(CameraConfig())
    first, again = (prior.sample(5, generator=torch.Generator().manual_seed(4)).to_vector() for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    prior.sample(5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_stay_inside_the_bounds():
    prior = CameraPrior(CameraConfig())
    camera = prior.sample(1000, generator=torch.Generator().manual_seed(0))
    bounds = prior.bounds()
    columns = {
        "yaw": camera.angles[:, 0],
        "pitch": camera.angles[:, 1],
        "fov": camera.fov,
        "la_radius": camera.look_at[:, 2],
    }
    for name, values in columns.items():
        low, high = getattr(bounds, name)
        assert low - 1e-6 <= values.min() <= values.max() <= high + 1e-6
    assert bounds.radius is None
    assert (camera.radius == 1).all()
    assert (camera.angles[:, 2] == 0).all()


def test_pitch_stays_off_the_poles_so_every_matrix_is_finite():
    wide = OriginPriorConfig(dist="normal", yaw=RangeConfig(mean=0.0, std=2.0), pitch=RangeConfig(mean=0.0, std=0.5))
    prior = CameraPrior(
        CameraConfig(origin=wide, look_at=LookAtPriorConfig(radius=ScalarPriorConfig(min=0.0, max=0.0)))
    )
    camera = prior.sample(200, generator=torch.Generator().manual_seed(0))
    assert camera.angles[:, 1].min() >= 0.9e-5
    assert camera.cam2world().isfinite().all()


def test_custom_angles_come_from_the_data():
    prior = CameraPrior(CameraConfig(origin=OriginPriorConfig(dist="custom")))
    angles = torch.tensor([[0.1, 1.2, 0.3], [0.2, 4.0, 0.0]])
    camera = prior.sample(2, angles=angles)
    torch.testing.assert_close(camera.angles[0], angles[0])
    assert camera.angles[1, 1] == pytest.approx(math.pi - 1e-5)
    assert prior.mean((0.5, 1.5, 0.0)).angles.tolist() == [[0.5, 1.5, 0.0]]
    with pytest.raises(ConfigError, match="data set"):
        prior.sample(2)
    with pytest.raises(ConfigError, match="none given"):
        prior.mean()


def test_means_and_bounds_that_do_not_exist_are_refused(golden):
    arrays = golden("distributions")
    with pytest.raises(ConfigError, match=r"camera\.origin\.dist=hybrid has no mean"):
        origin_prior(arrays, "hybrid").mean()
    unbounded = OriginPriorConfig(
        dist="normal", yaw=RangeConfig(mean=0.0, std=1.0), pitch=RangeConfig(mean=1.5, std=0.1)
    )
    with pytest.raises(ConfigError, match=r"camera\.origin\.yaw, camera\.origin\.pitch"):
        CameraPrior(CameraConfig(origin=unbounded)).bounds()


def test_the_mean_camera_of_the_default_prior():
    mean = CameraPrior(CameraConfig()).mean().to_vector()[0].tolist()
    assert mean == pytest.approx([0, math.pi / 2, 0, 27.5, 1, 0, math.pi / 2, 0.1], abs=1e-6)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (3.0, 9.0), (-9.0, -3.0), (8.0, 8.5)])
def test_truncated_normal_inverts_its_distribution_function(bounds):
    """Also far in either tail, where the distribution function itself is close to 0 or 1."""
    low, high = bounds
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    x = truncated_normal(0.7 * u + 0.1, 0.0, 1.0, low, high)
    sign = -1.0 if low > 0 else 1.0

    def mass(value):  # Φ, or 1 − Φ in the upper tail
        return torch.erfc(-sign * torch.as_tensor(value, dtype=torch.float64) / math.sqrt(2)) / 2

    share = (mass(x) - mass(low)) / (mass(high) - mass(low))
    torch.testing.assert_close(share, 0.7 * u + 0.1, rtol=1e-9, atol=1e-9)
    ends = truncated_normal(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.0, 1.0, low, high)
    torch.testing.assert_close(ends, torch.tensor(bounds, dtype=torch.float64), rtol=1e-6, atol=0)
