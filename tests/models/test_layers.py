"""Elementary layers: reference values, initial values, freezing, encodings."""

import math

import pytest
import torch

from tests.models.reference import load_reference
from tests.tools import relative_error
from threedgp.errors import ConfigError
from threedgp.models.layers import (
    Conv2dLayer,
    FullyConnected,
    ScalarEncoder,
    channels_at,
    compute_dtype,
    normalize_2nd_moment,
    normalize_camera_angles,
)
from threedgp.ops import native
from threedgp.ops.activation import ACTIVATIONS

ACTS = list(ACTIVATIONS)
DTYPES = [(torch.float32, 1e-6), (torch.float64, 5e-7)]


@pytest.fixture
def data(golden):
    return golden("layers")


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_fully_connected_matches_reference(data, dtype, tolerance):
    for i in range(data["fc/num"].item()):
        key = f"fc/{i}/"
        out_features, in_features = data[f"{key}weight"].shape
        layer = FullyConnected(
            in_features,
            out_features,
            bias=f"{key}bias" in data,
            activation=ACTS[data[f"{key}act"].item()],
            lr_multiplier=data[f"{key}lr_multiplier"].item(),
            bias_init=0.7,
        )
        if layer.bias is not None:
            assert relative_error(layer.bias.detach(), data[f"{key}bias_at_init_07"]) < 1e-7
        stored = {f"p/{name}": data[key + name] for name in ("weight", "bias") if key + name in data}
        load_reference(layer, stored, "p/", dtype)
        y = layer(torch.tensor(data[f"{key}x"], dtype=dtype))
        assert relative_error(y.detach(), data[f"{key}y"]) < tolerance, f"case {i}"


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_convolution_layer_matches_reference(data, dtype, tolerance):
    x = torch.tensor(data["conv/x"], dtype=dtype)
    for i in range(data["convlayer/num"].item()):
        key = f"convlayer/{i}/"
        kernel, act, up, down, bias, clamp = data[f"{key}opts"].tolist()
        layer = Conv2dLayer(
            4,
            6,
            int(kernel),
            bias=bool(bias),
            activation=ACTS[int(act)],
            up=int(up),
            down=int(down),
            conv_clamp=None if clamp < 0 else clamp,
        )
        stored = {f"p/{name}": data[key + name] for name in ("weight", "bias") if key + name in data}
        load_reference(layer, stored, "p/", dtype)
        assert relative_error(layer(x).detach(), data[f"{key}y"]) < tolerance, f"case {i}"
        assert relative_error(layer(x, gain=math.sqrt(0.5)).detach(), data[f"{key}y_gain"]) < tolerance, f"case {i}"


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_input_modulation_matches_reference(data, dtype, tolerance):
    layer = Conv2dLayer(4, 6, 3, activation="lrelu", modulation_dim=5)
    names = ("weight", "bias", "affine.weight", "affine.bias")
    load_reference(layer, {f"p/{name}": data[f"convlayer_mod/{name}"] for name in names}, "p/", dtype)
    x, c = torch.tensor(data["conv/x"], dtype=dtype), torch.tensor(data["convlayer_mod/c"], dtype=dtype)
    assert relative_error(layer(x, c).detach(), data["convlayer_mod/y"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_second_moment_normalisation_matches_reference(data, dtype, tolerance):
    y = normalize_2nd_moment(torch.tensor(data["norm2/x"], dtype=dtype))
    assert relative_error(y, data["norm2/y"]) < tolerance


def test_second_moment_of_zero_is_zero():
    assert torch.equal(normalize_2nd_moment(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_initial_weights_are_unit_normal_over_the_multiplier():
    torch.manual_seed(0)
    layer = FullyConnected(400, 300, lr_multiplier=0.01, bias_init=1.0)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.01)
    assert torch.equal(layer.bias, torch.full((300,), 100.0))
    conv = Conv2dLayer(64, 64, 3)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.01)
    assert not conv.bias.any()


def test_frozen_layers_keep_their_names_but_have_no_parameters():
    layer = Conv2dLayer(3, 4, 3, modulation_dim=2, trainable=False)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"weight", "bias", "affine.weight", "affine.bias"}
    layer.requires_grad_(True)
    assert not layer(torch.randn(1, 3, 4, 4), torch.randn(1, 2)).requires_grad


def test_fourier_features_are_sines_then_cosines_of_doubling_frequencies():
    encoder = ScalarEncoder(3, 1000)
    assert encoder.dim == 60
    assert relative_error(encoder.fourier_coefs, math.pi * 2.0 ** torch.arange(10) / 1024) < 1e-7
    assert torch.equal(encoder(torch.zeros(2, 3))[1], torch.tensor(([0.0] * 10 + [1.0] * 10) * 3))


def test_scalar_encoder_rounds_half_to_even_and_stays_in_its_table():
    encoder = ScalarEncoder(1, 2, embedding_dim=3)
    table = encoder.const_embed.weight
    rows = encoder(torch.tensor([[0.25], [0.75], [1.0], [1.3], [-0.4]]))[:, -3:]  # 0.5, 1.5, 2, 2.6, -0.8
    assert torch.equal(rows, table[[0, 2, 2, 2, 0]])


def test_camera_angles_become_signed_turns():
    angles = torch.tensor([[math.pi, -math.pi / 2, 9.0], [5 * math.pi, -2.5 * math.pi, 9.0]])
    assert relative_error(normalize_camera_angles(angles), [[0.5, -0.25], [0.5, -0.25]]) < 1e-6


def test_widths_and_precision_by_resolution(monkeypatch):
    assert [channels_at(r, 32768, 512) for r in (4, 64, 128, 512)] == [512, 512, 256, 64]
    assert channels_at(256, 32768, 512, 0.5) == 64
    with pytest.raises(ConfigError, match=r"no channels at resolution 256.*at least 512"):
        channels_at(256, 64, 512, 0.5)
    weight = torch.zeros(1)
    assert compute_dtype(weight, torch.float16) == torch.float32
    monkeypatch.setattr(native, "CPU_COMPUTES_BFLOAT16", True)
    assert compute_dtype(weight, torch.bfloat16) == torch.bfloat16
    monkeypatch.setattr(native, "CPU_COMPUTES_BFLOAT16", False)
    assert compute_dtype(weight, torch.bfloat16) == torch.float32
    assert compute_dtype(weight.to("meta"), torch.bfloat16) == torch.bfloat16
    assert compute_dtype(weight.double(), None) == torch.float64
