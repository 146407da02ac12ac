"""Native operations against their plain twins: values, first derivatives, second ones where the penalty needs them."""

import os
import subprocess
import sys

import pytest
import torch

from tests.tools import relative_error
from threedgp.files import sha256_of
from threedgp.ops import native
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import conv2d_resample, downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from threedgp.ops.modulated_conv import modulated_conv2d, modulated_conv2d_act, scale_channels
from threedgp.ops.triplane import sample_field, sample_triplanes
from threedgp.rendering.renderer import RenderOptions, make_draws, render_rays


@pytest.fixture(autouse=True)
def _needs_native():
    if not native.available():
        pytest.skip("native operations cannot be built here")


def derivatives(function, inputs, second):
    """Value, gradients, and gradients of a random combination of these, at fresh leaves."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    random = torch.Generator().manual_seed(1)
    value = function(*inputs)
    weights = torch.randn(value.shape, generator=random).to(value.dtype)
    found = [value, *torch.autograd.grad(value, inputs, weights, create_graph=second)]
    if second:
        total = sum((g * torch.randn(g.shape, generator=random).to(g.dtype)).sum() for g in found[1:])
        found += torch.autograd.grad(total, inputs, materialize_grads=True)
    return found


def assert_like_plain(function, inputs, *, second=False, tolerance=3e-6):
    native_results = derivatives(function, inputs, second)
    with native.plain():
        plain_results = derivatives(function, inputs, second)
    for index, (actual, expected) in enumerate(zip(native_results, plain_results, strict=True)):
        actual, expected = actual.detach().double(), expected.detach().double()
        scale = max(expected.abs().max().item(), 1e-12)
        assert actual.dtype == expected.dtype
        assert relative_error(actual / scale, expected / scale) < tolerance, f"result {index}"


@pytest.fixture
def random():
    torch.manual_seed(0)
    return torch.randn


@pytest.mark.parametrize("channels", [1, 3, 16, 40, 300])
@pytest.mark.parametrize(("act", "clamp"), [("lrelu", None), ("lrelu", 1.0), ("relu", 1.0), ("linear", 0.5)])
def test_bias_act_of_images(random, channels, act, clamp):
    inputs = [random(3, channels, 7, 5), random(channels)]
    assert_like_plain(lambda x, b: bias_act(x * x - 1, b, act, clamp=clamp, gain=1.3), inputs, second=True)


def test_bias_act_of_rows(random):
    assert_like_plain(lambda x, b: bias_act(x * x, b, "lrelu", dim=-1), [random(300, 100), random(100)], second=True)


@pytest.mark.parametrize("channels", [1, 4, 24])
@pytest.mark.parametrize(
    "op",
    [
        lambda x, f: upsample2d(x, f),
        lambda x, f: downsample2d(x, f),
        lambda x, f: filter2d(x, f),
        lambda x, f: upfirdn2d(x, f, up=3, down=2, padding=(2, -1, 3, 4), gain=2.0),
        lambda x, f: upfirdn2d(x, f, up=(2, 1), down=(1, 3), padding=(-2, 3), flip_filter=True),
    ],
)
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 5, 7, 3], list(range(1, 30))])
def test_resampling(random, channels, op, taps):
    f = setup_filter(taps)
    assert_like_plain(lambda x: op(x * x, f), [random(2, channels, 28, 24)], second=True)


def test_filters_that_are_no_product_take_the_plain_way(random):
    f = setup_filter(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    assert_like_plain(lambda x: filter2d(x * x, f), [random(1, 2, 6, 6)], second=True)


def scene(random, batch, features):
    """Planes and points, some of them outside."""
    return random(batch, 3, features, 9, 11), torch.rand(batch, 150, 3) * 2.6 - 1.3


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("features", [1, 8, 16, 20, 32])
def test_triplane_lookup(random, batch, features):
    assert_like_plain(sample_triplanes, scene(random, batch, features), second=True)


def test_triplane_lookup_takes_any_layout(random):
    planes, points = scene(random, 2, 16)
    stored_last = planes.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    assert torch.equal(sample_triplanes(stored_last, points), sample_triplanes(planes, points))


def test_triplane_lookup_far_outside_is_zero_and_nan_stays(random):
    planes = random(1, 3, 16, 8, 8)
    points = torch.tensor([[[1e30, 0.0, 0.0], [-1e30, 5.0, 5.0], [float("nan"), 0.0, 0.0]]])
    found = sample_triplanes(planes, points)
    assert torch.isfinite(found[0, :2]).all()
    assert found[0, 1].abs().max() == 0
    assert found[0, 2].isnan().all()


@pytest.mark.parametrize("features", [8, 16, 20, 32])
@pytest.mark.parametrize("hidden", [16, 24, 32, 64])
def test_field(random, features, hidden):
    network = [random(hidden, features), random(hidden), random(4, hidden), random(4)]
    assert_like_plain(sample_field, [*scene(random, 2, features), *network], second=True, tolerance=1e-5)


def test_only_wanted_gradients_are_made(random):
    planes, points = scene(random, 1, 16)
    planes.requires_grad_()
    sample_triplanes(planes, points).sum().backward()
    assert planes.grad.shape == planes.shape
    assert points.grad is None


def test_bfloat16_rounds_once(random):
    x, b = random(2, 24, 6, 6), random(24)
    low = bias_act(x.bfloat16(), b, "lrelu")
    assert torch.equal(low, bias_act(x.bfloat16().float(), b, "lrelu").bfloat16())


def test_other_types_take_the_plain_way(random):
    assert native.library(random(2).double()) is None
    assert native.library(torch.zeros(2, device="meta")) is None
    with native.plain():
        assert native.library(random(2)) is None
    assert native.library(random(2)) is not None


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return result.returncode, result.stdout.strip(), result.stderr.strip()


PROBE = "from threedgp.ops import native; print(native.available())"


def test_switched_off():
    assert run_python(PROBE, THREEDGP_NATIVE="0") == (0, "False", "")


def test_without_a_compiler_one_line_says_so(tmp_path):
    code, out, err = run_python(PROBE, THREEDGP_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert (code, out) == (0, "False")
    assert "no C++ compiler" in err
    assert len(err.splitlines()) == 1


def test_a_compiler_that_fails_is_no_disaster(tmp_path):
    code, out, err = run_python(PROBE, THREEDGP_CACHE=str(tmp_path), CXX="false")
    assert (code, out, len(err.splitlines())) == (0, "False", 1)


@pytest.mark.parametrize("fine_steps", [7, 0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_inf_depth": False},
        {"clamp_mode": "relu", "last_back": True},
        {"last_back": True, "white_back": True, "use_inf_depth": False},
        {"white_back": True},
        {"marcher": "mip", "density_bias": -0.5},
        {"marcher": "mip", "use_inf_depth": False, "white_back": True},
        {"full_box": 0.5},
    ],
)
def test_rendering(random, fine_steps, settings):
    options = RenderOptions(near=0.6, far=1.6, num_steps=9, num_fine_steps=fine_steps, **settings)
    planes, _ = scene(random, 2, 8)
    network = [random(16, 8), random(16), 3 * random(4, 16), 3 * random(4)]
    origins = torch.tensor([0.0, 0.0, 1.1]).expand(2, 50, 3)
    directions = torch.nn.functional.normalize(random(2, 50, 3) * 0.2 - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    draws = make_draws(2, 50, options)

    def picture(planes, *network):
        def field(points):
            values = sample_field(planes, points * 2, *network)
            return values[..., :3], values[..., 3:]

        rays = render_rays(field, origins, directions, options, draws=draws)
        return torch.cat([rays.color, torch.stack(rays[1:], dim=-1)], dim=-1)

    assert_like_plain(picture, [planes, *network], second=True, tolerance=2e-4)


def test_empty_and_opaque_rays_have_finite_derivatives(random):
    options = RenderOptions(near=0.6, far=1.6, num_steps=8)
    origins, directions = torch.zeros(1, 6, 3), torch.tensor([0.0, 0.0, -1.0]).expand(1, 6, 3)
    for level in (-200.0, -80.0, 29.9, 31.0, 1e6):
        sigma = torch.full((1, 48, 1), level, requires_grad=True)
        rays = render_rays(lambda points, s=sigma: (torch.ones_like(points), s), origins, directions, options)
        (rays.color.sum() + rays.depth.sum()).backward()
        assert torch.isfinite(rays.color).all()
        assert torch.isfinite(sigma.grad).all()


def test_nan_densities_show(random):
    options = RenderOptions(near=0.6, far=1.6, num_steps=8)
    origins, directions = torch.zeros(1, 6, 3), torch.tensor([0.0, 0.0, -1.0]).expand(1, 6, 3)
    rays = render_rays(lambda points: (points, points[..., :1] * float("nan")), origins, directions, options)
    assert rays.color.isnan().all()
    assert rays.depth.isnan().all()


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("with_noise", [True, False])
def test_synthesis_layer(random, up, with_noise):
    f = setup_filter([1, 3, 3, 1])
    inputs = [random(2, 12, 6, 6), random(20, 12, 3, 3), random(2, 12), random(20)]
    if with_noise:
        inputs.append(random(2, 1, 6 * up, 6 * up))

    def layer(x, weight, styles, bias, noise=None):
        options = {"up": up, "padding": 1, "resample_filter": f, "flip_weight": up == 1, "clamp": 2.0}
        return modulated_conv2d_act(x * x, weight, styles, bias, noise, **options)

    assert_like_plain(layer, inputs, second=True, tolerance=2e-5)


def test_noise_maps_may_be_shared_by_the_batch(random):
    inputs = [random(2, 12, 6, 6), random(20, 12, 3, 3), random(2, 12), random(20), random(6, 6)]
    assert_like_plain(lambda *values: modulated_conv2d_act(*values, padding=1), inputs, tolerance=2e-5)


def test_scaled_channels(random):
    assert_like_plain(lambda x, s: scale_channels(x * x, s), [random(3, 20, 5, 5), random(3, 20)], second=True)


@pytest.mark.parametrize("resample", [{}, {"up": 2}, {"down": 2}])
@pytest.mark.parametrize("kernel", [1, 3])
def test_low_precision_convolutions_keep_eight_bits(random, resample, kernel):
    f = setup_filter([1, 3, 3, 1])
    inputs = [random(2, 16, 8, 8).bfloat16(), random(24, 16, kernel, kernel).bfloat16()]

    def layer(x, weight):
        return conv2d_resample(x, weight, f, padding=kernel // 2, **resample)

    low = derivatives(lambda x, w: layer(x, w).float(), inputs, second=False)
    exact = derivatives(layer, [value.float() for value in inputs], second=False)
    for actual, expected in zip(low, exact, strict=True):
        actual, expected = actual.detach().float(), expected.detach()
        scale = expected.abs().max()
        assert relative_error(actual / scale, expected / scale) < 0.02


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_pixels(random, demodulate):
    inputs = [random(2, 12, 5, 7), random(9, 12, 1, 1), random(2, 12)]
    assert_like_plain(
        lambda x, w, s: modulated_conv2d(x * x, w, s, demodulate=demodulate), inputs, second=True, tolerance=2e-5
    )


def test_a_half_written_library_is_built_again(tmp_path, monkeypatch):
    """Loading one would end the process with a bus error; what a killed compilation left behind goes, too."""
    built = []

    def compile_quickly(compiler, sources, target):
        built.append(target)
        target.write_bytes(b"all of it")
        target.with_suffix(".sha256").write_text(sha256_of(target))

    monkeypatch.setattr(native, "cache_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(native, "_compile", compile_quickly)
    target = native._built()
    assert native._built() == target
    assert len(built) == 1
    target.write_bytes(b"all")
    assert native._built().read_bytes() == b"all of it"
    assert len(built) == 2
