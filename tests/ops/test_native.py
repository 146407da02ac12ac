"""Native operations against their plain twins: values, first derivatives, second ones where the penalty needs them."""

import os
import subprocess
import sys

import pytest
import torch

from tests.tools import relative_error
from threedgp.ops import native
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from threedgp.ops.triplane import sample_field, sample_triplanes


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
    assert_like_plain(lambda x: op(x * x, f), [random(2, channels, 28, 12)], second=True)


def test_filters_that_are_no_product_take_the_plain_way(random):
    f = setup_filter(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    assert_like_plain(lambda x: filter2d(x * x, f), [random(1, 2, 6, 6)], second=True)


def scene(random, batch, features):
    """Planes and points, some of them outside."""
    return random(batch, 3, features, 9, 11), torch.rand(batch, 150, 3) * 2.6 - 1.3


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("features", [1, 8, 16, 20, 32])
def test_triplane_lookup(random, batch, features):
    assert_like_plain(sample_triplanes, scene(random, batch, features))


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
    assert_like_plain(sample_field, [*scene(random, 2, features), *network])


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
