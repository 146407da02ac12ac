"""FIR resampling and resampled convolutions: reference values, derivatives, and the identities callers rely on."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.ops.fir import conv2d_resample, downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

FILTERS = ["f1331", "f_asym4", "f_3x2", "f_sep12"]
DTYPES = [(torch.float32, 1e-6), (torch.float64, 4e-7)]


@pytest.fixture
def data(golden):
    return golden("layers")


def tensor(array, dtype=torch.float64):
    return torch.tensor(array, dtype=dtype)


def test_filters_from_taps(data):
    assert relative_error(setup_filter([1, 3, 3, 1]), data["fir/f1331"]) < 1e-7
    assert relative_error(setup_filter([1, 2, 4, 3]), data["fir/f_asym4"]) < 1e-7
    assert relative_error(setup_filter([1, 2, 4, 3], flip=True), data["fir/f_asym4_flipped"]) < 1e-7
    expected = data["fir/f1331_unnormalized_gain2"]
    assert relative_error(setup_filter([1, 3, 3, 1], normalize=False, gain=2), expected) < 1e-7


def test_long_filters_stay_separable_and_keep_brightness():
    f = setup_filter(range(1, 13))
    assert f.shape == (12,)
    assert f.sum().item() == pytest.approx(1, abs=1e-6)
    assert setup_filter(range(1, 13), separable=False).shape == (12, 12)


@pytest.mark.parametrize("taps", [[], [[[1.0]]]])
def test_impossible_taps_are_refused(taps):
    with pytest.raises(ValueError, match="vector or matrix"):
        setup_filter(taps)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_upfirdn_matches_reference(data, dtype, tolerance):
    x = tensor(data["fir/x"], dtype)
    for i in range(data["fir/num_cases"].item()):
        index, up_x, up_y, down_x, down_y, x0, x1, y0, y1, flip, gain = data[f"fir/case{i}/opts"].tolist()
        y = upfirdn2d(
            x,
            tensor(data[f"fir/{FILTERS[int(index)]}"], dtype),
            up=(int(up_x), int(up_y)),
            down=(int(down_x), int(down_y)),
            padding=(int(x0), int(x1), int(y0), int(y1)),
            flip_filter=bool(flip),
            gain=gain,
        )
        assert relative_error(y, data[f"fir/case{i}/y"]) < tolerance, f"case {i}"


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("name", "key"), [("1331", "f1331"), ("asym4", "f_asym4")])
def test_padded_forms_match_reference(data, dtype, tolerance, name, key):
    x, f = tensor(data["fir/x"], dtype), tensor(data[f"fir/{key}"], dtype)
    assert relative_error(upsample2d(x, f), data[f"fir/up2_{name}"]) < tolerance
    assert relative_error(downsample2d(x, f), data[f"fir/down2_{name}"]) < tolerance
    assert relative_error(filter2d(x, f), data[f"fir/filter_{name}"]) < tolerance
    padded = upsample2d(x, f, padding=(1, 0, 2, 1), gain=0.5)
    assert relative_error(padded, data[f"fir/up2_gain_pad_{name}"]) < tolerance
    assert relative_error(downsample2d(x, f, flip_filter=True), data[f"fir/down2_flip_{name}"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_resampled_convolution_matches_reference(data, dtype, tolerance):
    x = tensor(data["conv/x"], dtype)
    for i in range(data["conv/num"].item()):
        kernel, up, down, groups, correlate, index = data[f"conv/{i}/opts"].tolist()
        y = conv2d_resample(
            x,
            tensor(data[f"conv/{i}/w"], dtype),
            tensor(data[f"fir/{FILTERS[index]}"], dtype),
            up=up,
            down=down,
            padding=kernel // 2,
            groups=groups,
            flip_weight=bool(correlate),
        )
        assert relative_error(y, data[f"conv/{i}/y"]) < tolerance, f"case {i}"


@pytest.mark.parametrize(("up", "down"), [(3, 1), (1, 3), (4, 1), (2, 3)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_every_shortcut_equals_the_definition(up, down, kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    w = torch.randn(4, 3, kernel, kernel, dtype=torch.float64)
    f = setup_filter([1, 2, 5, 3, 2]).double()
    taps, padding = 5, kernel // 2
    pad0 = padding + (up > 1) * ((taps + up - 1) // 2) + (down > 1) * ((taps - down + 1) // 2)
    pad1 = padding + (up > 1) * ((taps - up) // 2) + (down > 1) * ((taps - down) // 2)
    # The definition: pad once, filter, convolve, filter, decimate, all without further padding.
    delta = torch.ones(1, 1, dtype=torch.float64)
    y = upfirdn2d(x, f if up > 1 else delta, up=up, padding=(pad0, pad1, pad0, pad1), gain=up**2)
    y = upfirdn2d(torch.nn.functional.conv2d(y, w), f if down > 1 else delta, down=down)
    actual = conv2d_resample(x, w, f, up=up, down=down, padding=padding)
    assert relative_error(actual, y) < 1e-13


def test_resampling_needs_a_filter():
    with pytest.raises(ValueError, match="needs a filter"):
        conv2d_resample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), up=2, padding=1)


def test_a_constant_image_keeps_its_value_inside():
    f = setup_filter([1, 3, 3, 1])
    x = torch.full((1, 2, 8, 8), 3.0)
    assert torch.allclose(upsample2d(x, f)[..., 2:-2, 2:-2], torch.tensor(3.0))
    assert torch.allclose(downsample2d(x, f)[..., 1:-1, 1:-1], torch.tensor(3.0))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_first_and_second_derivatives(up, down, kernel):
    torch.manual_seed(1)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).double()

    def op(x, w):
        return conv2d_resample(x, w, f, up=up, down=down, padding=kernel // 2, flip_weight=up == 1)

    assert torch.autograd.gradcheck(op, (x, w))
    assert torch.autograd.gradgradcheck(op, (x, w))
