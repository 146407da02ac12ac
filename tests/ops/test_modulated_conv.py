"""Modulated convolution: reference values, derivatives, and equality with one weight per sample."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.ops.fir import conv2d_resample, setup_filter
from threedgp.ops.modulated_conv import modulated_conv2d


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 4e-7)])
def test_matches_reference(golden, dtype, tolerance):
    data = golden("layers")

    def load(key):
        return torch.tensor(data[key], dtype=dtype)

    for i in range(data["modconv/num"].item()):
        kernel, up, demodulate, with_noise = data[f"modconv/{i}/opts"].tolist()
        y = modulated_conv2d(
            load("conv/x"),
            load(f"modconv/{i}/w"),
            load(f"modconv/{i}/styles"),
            load(f"modconv/{i}/noise") if with_noise else None,
            up=up,
            padding=kernel // 2,
            resample_filter=load("fir/f1331"),
            demodulate=bool(demodulate),
            flip_weight=up == 1,
        )
        assert relative_error(y, data[f"modconv/{i}/y"]) < tolerance, f"case {i}"


@pytest.mark.parametrize("up", [1, 2])
def test_equals_one_weight_per_sample(up):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    styles = torch.randn(3, 4, dtype=torch.float64)
    f = setup_filter([1, 3, 3, 1]).double()
    y = modulated_conv2d(x, weight, styles, up=up, padding=1, resample_filter=f, flip_weight=up == 1)
    for b in range(3):
        w = weight * styles[b, None, :, None, None]
        w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = conv2d_resample(x[b : b + 1], w, f, up=up, padding=1, flip_weight=up == 1)
        assert relative_error(y[b : b + 1], expected) < 1e-13


def test_half_precision_survives_large_styles():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 4, 4)
    weight, styles = torch.randn(8, 64, 3, 3) * 100, torch.randn(2, 64) * 1000
    half = modulated_conv2d(x.half(), weight, styles, padding=1)
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()
    assert relative_error(half.float(), modulated_conv2d(x, weight, styles, padding=1)) < 5e-3


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_first_and_second_derivatives(up, demodulate):
    torch.manual_seed(1)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    styles = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 1, 3 * up, 3 * up, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).double()

    def op(x, weight, styles, noise):
        return modulated_conv2d(
            x, weight, styles, noise, up=up, padding=1, resample_filter=f, demodulate=demodulate, flip_weight=up == 1
        )

    assert torch.autograd.gradcheck(op, (x, weight, styles, noise))
    assert torch.autograd.gradgradcheck(op, (x, weight, styles, noise))
