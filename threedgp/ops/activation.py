"""Bias, activation, gain and clamp in one step: the pointwise end of every layer.

Source: StyleGAN2 (arXiv 1912.04958), official training conventions: each activation carries a default gain that keeps
the variance of a unit-normal input near one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from threedgp.ops import native


class Activation(NamedTuple):
    """A pointwise function `apply(x, alpha)` with its default negative slope `alpha` and default `gain`."""

    apply: Callable[[torch.Tensor, float], torch.Tensor]
    gain: float
    alpha: float = 0.0


SQRT2 = 2.0**0.5

ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, 1.0),
    "relu": Activation(lambda x, _: F.relu(x), SQRT2),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), SQRT2, 0.2),
    "tanh": Activation(lambda x, _: torch.tanh(x), 1.0),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x), 1.0),
    "elu": Activation(lambda x, _: F.elu(x), 1.0),
    "selu": Activation(lambda x, _: F.selu(x), 1.0),
    "softplus": Activation(lambda x, _: F.softplus(x), 1.0),
    "swish": Activation(lambda x, _: F.silu(x), SQRT2),
}


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    *,
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    dim: int = 1,
) -> torch.Tensor:
    """`clamp(gain · act(x + bias), ±clamp)`, each step optional.

    Args:
        x: any shape.
        bias: [x.shape[dim]], added along axis `dim`; None adds nothing.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: negative slope of lrelu; None takes 0.2.
        gain: factor after the activation; None takes the activation's own (√2 for relu, lrelu and swish, else 1).
        clamp: largest absolute value of the output, applied after the gain; None does not clamp.
        dim: the channel axis of `x`.

    Returns:
        A tensor like `x`. Differentiable to any order.
    """
    spec = ACTIVATIONS[act]
    gain = spec.gain if gain is None else gain
    alpha = spec.alpha if alpha is None else alpha
    if _is_fusible(x, act, alpha, gain, dim) and native.library(x) is not None:
        slope = 1.0 if act == "linear" else alpha
        return torch.ops.threedgp.bias_act(x, bias, slope, gain, -1.0 if clamp is None else clamp)
    if bias is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        x = x + bias.to(x.dtype).reshape(shape)
    x = spec.apply(x, alpha)
    if gain != 1.0:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


LARGE = 1 << 14  # elements from which one fused pass beats the short plain operations on matrices


def _is_fusible(x: torch.Tensor, act: str, alpha: float, gain: float, dim: int) -> bool:
    """The native form needs the slope's sign to show in the output, and channels that can be stored last."""
    channels_fit = dim == 1 if x.ndim == 4 else (dim in (-1, x.ndim - 1) and x.numel() >= LARGE)
    return act in ("linear", "relu", "lrelu") and gain > 0 and alpha >= 0 and channels_fit
