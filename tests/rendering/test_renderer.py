"""The renderer: reference vectors, chunks, patches, symmetry, limits, derivatives."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch.nn import functional

from tests.camera.cameras import make_cameras
from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.ops.triplane import sample_triplanes
from threedgp.rendering import renderer
from threedgp.rendering.marching import classical_march, mip_march
from threedgp.rendering.rays import camera_rays
from threedgp.rendering.renderer import RenderDraws, RenderOptions, make_draws, render_rays
from threedgp.rendering.sampling import stratified_samples

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 2e-6)]
OPTIONS = RenderOptions(near=0.6, far=1.6, num_steps=8, jitter="none")


def reference_field(arrays, marcher: str, dtype):
    """The small tri-plane field of the reference vectors, written out."""
    planes = torch.from_numpy(arrays["full/planes"]).to(dtype)
    w0, b0, w1, b1 = (
        torch.from_numpy(arrays[f"full_{marcher}/param/model.{key}"]).to(dtype)
        for key in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    cube_scale = arrays["full/near_far_cube_steps"][2]

    def field(points):
        x = sample_triplanes(planes, points / cube_scale)
        x = functional.leaky_relu(functional.linear(x, w0 / sqrt(w0.shape[1]), b0), 0.2) * sqrt(2)
        x = functional.linear(x, w1 / sqrt(w1.shape[1]), b1)
        rgb = x[..., :-1] if marcher == "classical" else x[..., :-1].sigmoid() * 1.002 - 0.001
        return rgb, x[..., -1:]

    return field


def blobs(points):
    """Coloured fog with some structure, mirror-symmetric in x."""
    x, y, z = points[..., 0].abs(), points[..., 1], points[..., 2]
    rgb = torch.stack([torch.sin(9 * x), torch.cos(7 * y), torch.sin(5 * z + x)], dim=-1)
    sigma = 12 * torch.exp(-20 * ((x - 0.15) ** 2 + (y + 0.05) ** 2 + z**2)) - 3
    return rgb, sigma[..., None]


def render(camera, options, size=(6, 6), field=blobs, patch=(None, None), **kwargs):
    origins, directions = camera_rays(camera, *size, *patch)
    return render_rays(field, origins, directions, options, **kwargs)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("marcher", ["classical", "mip"])
@pytest.mark.parametrize("case", ["a", "b", "c", "cut"])
def test_two_passes_match_the_reference(golden, marcher, case, dtype, tolerance):
    arrays = golden("raymarch")
    near, far, _, steps = arrays["full/near_far_cube_steps"].tolist()
    prefix = f"full_{marcher}/{case}"
    fine, std, inf_depth, last_back, white_back, bias, cut = arrays[f"{prefix}/opts"].tolist()
    options = RenderOptions(
        near=near,
        far=far,
        num_steps=int(steps),
        num_fine_steps=int(fine),
        marcher=marcher,
        use_inf_depth=bool(inf_depth),
        last_back=bool(last_back),
        white_back=bool(white_back) and marcher == "mip",  # the reference ignores it in the classical marcher
        density_bias=bias,
        cut_quantile=cut,
        density_noise_std=std,
    )

    def draw(key):
        array = arrays.get(f"{prefix}/{key}")
        return None if array is None else torch.from_numpy(array).to(dtype).reshape(2, 16, -1)

    draws = RenderDraws(draw("jitter"), draw("u"), draw("noise_coarse"), draw("noise_fine"))
    origins, directions = (torch.from_numpy(arrays[f"full/{key}"]).to(dtype) for key in ("ray_o", "ray_d"))
    result = render_rays(reference_field(arrays, marcher, dtype), origins, directions, options, draws=draws)
    assert relative_error(result.color, arrays[f"{prefix}/rgb"]) < tolerance
    assert relative_error(result.depth[..., None], arrays[f"{prefix}/depth"]) < tolerance
    assert relative_error(result.weight_sum[..., None], arrays[f"{prefix}/weight_sum"]) < tolerance
    assert relative_error(result.transmittance, arrays[f"{prefix}/final_transmittance"]) < tolerance


@pytest.mark.parametrize("marcher", ["classical", "mip"])
def test_one_pass_marches_in_world_units(golden, marcher):
    """The reference marches a single pass in normalised units; that value is reproduced with the march alone."""
    arrays = golden("raymarch")
    near, far, _, steps = arrays["full/near_far_cube_steps"].tolist()
    options = RenderOptions(near=near, far=far, num_steps=int(steps), num_fine_steps=0, marcher=marcher)
    field = reference_field(arrays, marcher, torch.float64)
    origins, directions = (torch.from_numpy(arrays[f"full/{key}"]).double() for key in ("ray_o", "ray_d"))
    jitter = torch.from_numpy(arrays[f"full_{marcher}/nofine/jitter"]).double()[..., 0]
    result = render_rays(field, origins, directions, options, draws=RenderDraws(jitter, jitter[..., :0]))
    s = stratified_samples(jitter, marcher)
    t = s * far + (1 - s) * near
    rgb, sigma = field((origins[:, :, None] + t[..., None] * directions[:, :, None]).flatten(1, 2))
    rgb, sigma = rgb.reshape(2, 16, -1, 3), sigma.reshape(2, 16, -1)
    march = classical_march if marcher == "classical" else mip_march
    torch.testing.assert_close(result.color, march(rgb, sigma, t).color)
    assert (result.depth > near).all()
    normalised = march(rgb, sigma, s)
    assert relative_error(normalised.color, arrays[f"full_{marcher}/nofine/rgb"]) < 3e-6
    assert relative_error(normalised.depth[..., None], arrays[f"full_{marcher}/nofine/depth"]) < 3e-6


@pytest.mark.parametrize("jitter", ["ray", "stratified", "image", "none"])
@pytest.mark.parametrize("extra", [{}, {"marcher": "mip"}, {"cut_quantile": 0.5}, {"full_box": 0.4}])
def test_the_chunk_size_changes_nothing(jitter, extra):
    options = replace(OPTIONS, jitter=jitter, **extra)
    camera = make_cameras(2)
    whole = render(camera, options, generator=torch.Generator().manual_seed(0))
    for chunk in (1, 7, 36, 1000):
        part = render(camera, replace(options, chunk_rays=chunk), generator=torch.Generator().manual_seed(0))
        for expected, actual in zip(whole, part, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


def test_a_patch_is_the_cut_of_the_full_image():
    camera = make_cameras(2)
    scales = torch.full((2, 2), 0.5, dtype=torch.float64)
    offsets = torch.tensor([[0.25, 0.0], [0.0, 0.5]], dtype=torch.float64)
    full = render(camera, OPTIONS, (9, 9)).color.reshape(2, 9, 9, 3)
    patch = render(camera, OPTIONS, (5, 5), patch=(scales, offsets)).color.reshape(2, 5, 5, 3)
    torch.testing.assert_close(patch[0], full[0, 4:9, 2:7], rtol=0, atol=1e-12)
    torch.testing.assert_close(patch[1], full[1, 0:5, 0:5], rtol=0, atol=1e-12)


def test_the_opposite_yaw_shows_a_symmetric_scene_mirrored():
    camera = make_cameras(3)
    flip = torch.tensor([-1, 1, 1, 1, 1, -1, 1, 1], dtype=torch.float64)
    mirrored = Camera.from_vector(camera.to_vector() * flip)
    left, right = render(camera, OPTIONS), render(mirrored, OPTIONS)
    torch.testing.assert_close(
        right.color.reshape(3, 6, 6, 3), left.color.reshape(3, 6, 6, 3).flip(2), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(right.depth.reshape(3, 6, 6), left.depth.reshape(3, 6, 6).flip(2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("full_box", [None, 0.5])
@pytest.mark.parametrize("radius", [0.0001, 0.2, 0.5, 0.5000001, 1.0, 30.0])
def test_cameras_inside_grazing_and_outside_the_cube_give_finite_values_and_gradients(radius, full_box):
    camera = make_cameras(4, dtype=torch.float32)
    camera = Camera(camera.angles, camera.fov, torch.full_like(camera.radius, radius), camera.look_at * 0)
    edge = torch.tensor([[0.0, torch.pi / 2, 0, 40, radius, 0, torch.pi / 2, 0]])  # looks along an axis
    vector = torch.cat([camera.to_vector(), edge]).requires_grad_()
    result = render(Camera.from_vector(vector), replace(OPTIONS, full_box=full_box), (5, 5))
    assert all(values.isfinite().all() for values in result)
    (result.color.sum() + result.depth.sum()).backward()
    assert vector.grad.isfinite().all()


def test_the_full_box_covers_the_part_of_each_ray_inside_the_cube():
    camera = Camera.from_vector(torch.tensor([[0.0, torch.pi / 2, 0, 10, 2, 0, torch.pi / 2, 0]]))

    def glass(points):  # matter everywhere: the ray stops where the interval starts
        return torch.ones_like(points), torch.full_like(points[..., :1], 1e6)

    centre = render(camera, replace(OPTIONS, full_box=0.5), (3, 3), glass).depth.reshape(3, 3)[1, 1]
    assert 1.5 <= centre <= 1.5 + 1 / 7


def test_empty_and_opaque_fields():
    camera = make_cameras(2, dtype=torch.float32)

    def uniform_field(sigma):
        return lambda points: (torch.full_like(points, 0.25), torch.full_like(points[..., :1], sigma))

    empty = render(camera, OPTIONS, field=uniform_field(-1e4))
    assert torch.equal(empty.color, torch.zeros(2, 36, 3))
    assert torch.equal(empty.depth, torch.zeros(2, 36))
    assert torch.equal(empty.transmittance, torch.ones(2, 36))
    assert torch.equal(
        render(camera, replace(OPTIONS, white_back=True), field=uniform_field(-1e4)).color, torch.ones(2, 36, 3)
    )
    opaque = render(camera, OPTIONS, field=uniform_field(1e7))
    torch.testing.assert_close(opaque.color, torch.full((2, 36, 3), 0.25), rtol=0, atol=1e-7)
    first = OPTIONS.near + 0.25 / 7 * (OPTIONS.far - OPTIONS.near)  # centre of the first, half-width stratum
    torch.testing.assert_close(opaque.depth, torch.full((2, 36), first), rtol=0, atol=1e-6)


def test_light_that_passes_everything_ends_on_the_last_sample():
    thin = render(make_cameras(1), OPTIONS, field=lambda p: (torch.ones_like(p), torch.full_like(p[..., :1], -12.0)))
    last = OPTIONS.near + (1 - 0.25 / 7) * (OPTIONS.far - OPTIONS.near)
    torch.testing.assert_close(thin.depth, torch.full((1, 36), last, dtype=torch.float64), rtol=0, atol=1e-4)


def test_a_wall_is_seen_at_its_distance():
    camera = Camera.from_vector(torch.tensor([[0.0, torch.pi / 2, 0, 2, 1, 0, torch.pi / 2, 0]], dtype=torch.float64))

    def wall(points):  # everything behind z = 0, one world unit in front of the camera
        return torch.ones_like(points), 1e6 * torch.where(points[..., 2:] <= 0, 1.0, -1.0)

    depth = render(camera, replace(OPTIONS, num_steps=64), (3, 3), wall).depth
    assert ((depth - 1.0).abs() < 0.02).all()


@pytest.mark.parametrize(
    "extra", [{}, {"marcher": "mip"}, {"use_inf_depth": False, "last_back": True}, {"num_fine_steps": 0}]
)
def test_derivatives_by_the_camera_and_the_field(extra, monkeypatch):
    options = replace(OPTIONS, num_steps=4, **extra)
    vector = make_cameras(1).to_vector()
    coefficients = torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    # Fine positions follow the field without gradient, so finite differences must not move them.
    fine = torch.rand(1, 2, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    monkeypatch.setattr(renderer, "importance_samples", lambda *_: fine)

    def function(vector, coefficients):
        def field(points):
            values = torch.sin(points @ coefficients.T)
            return values[..., :3], values[..., 3:] * 3

        origins, directions = camera_rays(Camera.from_vector(vector), 1, 2)
        result = render_rays(field, origins, directions, options)
        return result.color, result.depth

    assert torch.autograd.gradcheck(function, (vector.requires_grad_(), coefficients.requires_grad_()))


def test_the_same_generator_state_gives_the_same_picture_and_another_one_another():
    camera, options = make_cameras(1), replace(OPTIONS, jitter="ray")
    first, again, other = (
        render(camera, options, generator=torch.Generator().manual_seed(seed)).color for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_density_noise_is_drawn_only_when_asked_for():
    assert make_draws(1, 2, OPTIONS).noise_coarse is None
    noisy = make_draws(1, 2, replace(OPTIONS, density_noise_std=0.5))
    assert noisy.noise_coarse.shape == (1, 2, 8)
    camera = make_cameras(1, dtype=torch.float32)
    first, second = (
        render(camera, replace(OPTIONS, density_noise_std=std), generator=torch.Generator().manual_seed(0)).color
        for std in (0.0, 0.5)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("bad", [{"num_steps": 3}, {"marcher": "mip", "last_back": True}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"samples|mip"):
        RenderOptions(near=0.5, far=1.0, **bad)


def test_a_field_in_low_precision_is_composited_in_the_precision_of_the_rays():
    camera = make_cameras(1, dtype=torch.float32)

    def coarse_field(points):
        return tuple(values.bfloat16() for values in blobs(points))

    low, full = render(camera, OPTIONS, field=coarse_field), render(camera, OPTIONS)
    assert low.color.dtype == low.depth.dtype == torch.float32
    torch.testing.assert_close(low.color, full.color, rtol=0, atol=0.03)


def test_stratified_quantiles_leave_no_share_empty_and_differ_between_rays():
    options = replace(OPTIONS, jitter="stratified", num_fine_steps=5)
    draws = make_draws(3, 4, options, generator=torch.Generator().manual_seed(0))
    assert (draws.u * 5).floor().equal(torch.arange(5.0).expand(3, 4, 5))
    assert draws.u.flatten(0, 1)[:, 0].unique().numel() == 12
    assert draws.jitter.unique().numel() == 3 * 4 * 8


def test_stratified_quantiles_show_a_hard_ball_with_less_noise():
    def ball(points):
        inside = points.norm(dim=-1, keepdim=True) < 0.3
        return torch.sin(9 * points), torch.where(inside, 200.0, -20.0)

    def noise(jitter: str) -> float:
        options = replace(OPTIONS, jitter=jitter, num_steps=6)
        seeds = [torch.Generator().manual_seed(k) for k in range(64)]
        colors = [render(make_cameras(1), options, field=ball, generator=seed).color for seed in seeds]
        return torch.stack(colors).var(dim=0).mean().item()

    assert noise("stratified") < 0.9 * noise("ray")


def test_jitter_by_image_moves_all_rays_of_an_image_alike_and_evenly():
    options = replace(OPTIONS, jitter="image", num_fine_steps=5)
    draws = make_draws(3, 4, options, generator=torch.Generator().manual_seed(0))
    assert draws.jitter.shape == (3, 4, 8)
    assert draws.u.shape == (3, 4, 5)
    for value in (draws.jitter, draws.u):
        assert (value == value[:, :1]).all()
        assert value.amin() >= 0
        assert value.amax() < 1
        assert len(value[:, 0, 0].unique()) == 3
    assert (draws.jitter == draws.jitter[..., :1]).all()
    torch.testing.assert_close(draws.u.diff(dim=-1), torch.full((3, 4, 4), 0.2))
