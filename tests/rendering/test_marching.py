"""Marchers: reference vectors, exact limits, gradients."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.rendering.marching import classical_march, mip_march, quantile

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1.5e-6)]


def compare(arrays, prefix: str, actual, tolerance: float):
    assert relative_error(actual.color, arrays[f"{prefix}/rgb"]) < tolerance
    assert relative_error(actual.depth[..., None], arrays[f"{prefix}/depth"]) < tolerance
    assert relative_error(actual.weights[..., None], arrays[f"{prefix}/weights"]) < tolerance
    assert relative_error(actual.transmittance[..., None], arrays[f"{prefix}/transmittance"]) < tolerance
    assert relative_error(actual.transmittance[..., -1], arrays[f"{prefix}/final_transmittance"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_classical_march_matches_the_reference(golden, dtype, tolerance):
    arrays = golden("raymarch")
    colors, sigma, t = (torch.from_numpy(arrays[key]).to(dtype) for key in ("colors", "densities", "depths"))
    for case in range(int(arrays["classical/num"][0])):
        inf_depth, last_back, white, relu, cut, beta = arrays[f"classical/{case}/opts"].tolist()
        actual = classical_march(
            colors,
            sigma[..., 0],
            t[..., 0],
            use_inf_depth=bool(inf_depth),
            last_back=bool(last_back),
            white_back=int(white),
            clamp_mode="relu" if relu else "softplus",
            cut_quantile=cut,
            softplus_beta=beta,
        )
        compare(arrays, f"classical/{case}", actual, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_mip_march_matches_the_reference(golden, dtype, tolerance):
    arrays = golden("raymarch")
    colors, sigma, t = (torch.from_numpy(arrays[key]).to(dtype) for key in ("colors01", "densities", "depths"))
    for case in range(int(arrays["mip/num"][0])):
        inf_depth, white, bias, cut = arrays[f"mip/{case}/opts"].tolist()
        actual = mip_march(
            colors,
            sigma[..., 0],
            t[..., 0],
            use_inf_depth=bool(inf_depth),
            white_back=3 if white else 0,
            density_bias=bias,
            cut_quantile=cut,
        )
        compare(arrays, f"mip/{case}", actual, tolerance)


def random_rays(rays: int = 5, steps: int = 6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    colors = torch.rand(rays, steps, 3, generator=generator, dtype=dtype)
    sigma = torch.randn(rays, steps, generator=generator, dtype=dtype)
    distances = torch.rand(rays, steps, generator=generator, dtype=dtype).sort(dim=-1).values + 0.5
    return colors, sigma, distances


def test_an_empty_ray_is_exactly_nothing_and_an_opaque_one_exactly_its_first_sample():
    colors, sigma, t = random_rays(dtype=torch.float32)
    empty = classical_march(colors, torch.full_like(sigma, -1e4), t)
    assert torch.equal(empty.color, torch.zeros(5, 3))
    assert torch.equal(empty.depth, torch.zeros(5))
    assert torch.equal(empty.transmittance[:, -1], torch.ones(5))
    assert torch.equal(classical_march(colors, sigma - 1e4, t, white_back=3).color, torch.ones(5, 3))
    behind = classical_march(colors, sigma - 1e4, t, last_back=True)
    assert torch.equal(behind.color, colors[:, -1])
    assert torch.equal(behind.depth, t[:, -1])
    opaque = classical_march(colors, torch.full_like(sigma, 1e9), t)
    torch.testing.assert_close(opaque.color, colors[:, 0], rtol=0, atol=1e-7)
    torch.testing.assert_close(opaque.depth, t[:, 0], rtol=0, atol=1e-7)


def test_mip_limits():
    colors, sigma, t = random_rays(dtype=torch.float32)
    empty = mip_march(colors, torch.full_like(sigma, -1e4), t)
    assert torch.equal(empty.color, -torch.ones(5, 3))  # colour 0 of [0, 1] is black
    assert torch.equal(mip_march(colors, torch.full_like(sigma, -1e4), t, white_back=3).color, torch.ones(5, 3))
    opaque = mip_march(colors, torch.full_like(sigma, 1e9), t)
    torch.testing.assert_close(opaque.color, colors[:, 0] + colors[:, 1] - 1, rtol=0, atol=1e-6)


def test_weights_and_passing_light_add_up_to_one():
    for march in (classical_march, mip_march):
        result = march(*random_rays(), use_inf_depth=False)
        torch.testing.assert_close(
            result.weight_sum + result.transmittance[:, -1], torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-8
        )


@pytest.mark.parametrize("march", [classical_march, mip_march])
@pytest.mark.parametrize("use_inf_depth", [True, False])
def test_first_and_second_derivatives(march, use_inf_depth):
    colors, sigma, t = random_rays(2, 4)

    def outputs(colors, sigma, t):
        result = march(colors, sigma, t, use_inf_depth=use_inf_depth, white_back=2)
        return result.color, result.depth, result.weight_sum

    inputs = [value.requires_grad_() for value in (colors, sigma, t)]
    assert torch.autograd.gradcheck(outputs, inputs)
    assert torch.autograd.gradgradcheck(outputs, inputs)


def test_extreme_densities_keep_finite_gradients():
    colors, _, t = random_rays(1, 6, torch.float32)
    sigma = torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4, 1e6]], requires_grad=True)
    result = classical_march(colors, sigma, t)
    (result.color.sum() + result.depth.sum()).backward()
    assert sigma.grad.isfinite().all()


@pytest.mark.parametrize("level", [0.0, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_quantile_agrees_with_torch(level, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    torch.testing.assert_close(
        quantile(values.reshape(1, -1), level), torch.quantile(values, level), rtol=0, atol=1e-15
    )
