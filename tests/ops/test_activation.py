"""Bias, activation, gain and clamp: reference values and derivatives."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.ops.activation import ACTIVATIONS, bias_act


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 3e-7)])
def test_matches_reference(golden, act, dtype, tolerance):
    data = golden("layers")
    x, b = (torch.tensor(data[f"bias_act/{name}"], dtype=dtype) for name in "xb")
    assert relative_error(bias_act(x, b, act), data[f"bias_act/{act}/default"]) < tolerance
    assert relative_error(bias_act(x, b, act, gain=1.7, clamp=0.9), data[f"bias_act/{act}/gain_clamp"]) < tolerance
    assert relative_error(bias_act(x, None, act, clamp=2), data[f"bias_act/{act}/nobias"]) < tolerance


def test_slope_of_leaky_relu_can_be_chosen(golden):
    data = golden("layers")
    x, b = (torch.tensor(data[f"bias_act/{name}"]) for name in "xb")
    assert relative_error(bias_act(x, b, "lrelu", alpha=0.5, gain=1), data["bias_act/lrelu_alpha05_gain1"]) < 1e-6


def test_bias_goes_along_the_asked_axis():
    x = torch.zeros(2, 3, 4)
    assert torch.equal(bias_act(x, torch.arange(4.0), dim=-1)[1, 2], torch.arange(4.0))
    assert torch.equal(bias_act(x, torch.arange(3.0))[1, :, 2], torch.arange(3.0))


def test_unknown_activation_is_refused():
    with pytest.raises(KeyError, match="gelu"):
        bias_act(torch.zeros(1), act="gelu")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_first_and_second_derivatives(act):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def op(x, b):
        return bias_act(x, b, act, gain=1.3, clamp=1.0)

    assert torch.autograd.gradcheck(op, (x, b))
    assert torch.autograd.gradgradcheck(op, (x, b))
