"""Looking up points in three axis-aligned feature planes.

Source: EG3D (arXiv 2112.07945), Sec. 3, with the plane order and averaging of EpiGRAF (arXiv 2206.10535), Sec. 3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from threedgp.ops import native
from threedgp.ops.activation import bias_act
from threedgp.ops.warp import repeatable_grid_sample

PLANE_AXES = ((0, 1), (0, 2), (1, 2))
"""For each plane the point coordinates that index its columns and its rows: (x, y), (x, z), (y, z)."""


def sample_triplanes(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Mean of the three planes' bilinearly interpolated features at each point.

    Coordinate −1 is the centre of the first column (row) and +1 that of the last; there is no flip. Points outside
    fade to zero over one pixel and are zero beyond.

    Args:
        planes: [B, 3, F, H, W].
        points: [B, M, 3], normalised so that the cube is [−1, 1]³.

    Returns:
        [B, M, F]. Differentiable in planes and points, to any order where the plain form is.

    Example:
        >>> planes = torch.ones(1, 3, 8, 16, 16)
        >>> sample_triplanes(planes, torch.zeros(1, 5, 3)).shape
        torch.Size([1, 5, 8])
    """
    batch, num_planes, features = planes.shape[:3]
    if num_planes != 3 or points.shape[0] != batch or points.shape[-1] != 3:
        raise ValueError(
            f"expected planes [B, 3, F, H, W] and points [B, M, 3], got {tuple(planes.shape)} and {tuple(points.shape)}"
        )
    if features <= MOST_NATIVE_FEATURES and native.library(planes, points) is not None:
        return _Triplane.apply(planes, points)
    if planes.is_cuda and planes.dtype in native.TYPES and native.allowed() and not _must_repeat():
        lookup = _lookup_on_gpu()
        if lookup is not None:
            return lookup(planes, points)
    return sample_plainly(planes, points)


def _must_repeat() -> bool:
    """Whether sums must be formed in the same order every time, which the GPU's atomic additions do not."""
    return torch.are_deterministic_algorithms_enabled()


def sample_plainly(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`sample_triplanes` in plain PyTorch."""
    batch, _, features, height, width = planes.shape
    grid = torch.stack([points[..., axes] for axes in PLANE_AXES], dim=1)  # [B, 3, M, 2]
    grid = grid.reshape(batch * 3, 1, -1, 2).to(planes.dtype)
    images = planes.reshape(batch * 3, features, height, width)
    if planes.is_cuda and _must_repeat():
        sampled = repeatable_grid_sample(images, grid, "zeros", align_corners=True)
    else:
        sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    # [B·3, F, 1, M]
    return sampled.reshape(batch, 3, features, -1).mean(dim=1).transpose(1, 2)


def sample_field(
    planes: torch.Tensor,
    points: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    *,
    alpha: float = 0.2,
    gain: float = 2.0**0.5,
) -> torch.Tensor:
    """A two-layer network of the tri-plane features at each point: `gain · lrelu(f w1ᵀ + b1) w2ᵀ + b2`.

    The native form never stores features or hidden units; its backward pass computes them again.

    Args:
        planes, points: as in `sample_triplanes`.
        w1, b1: [hidden, F], [hidden]; w2, b2: [outputs, hidden], [outputs]; as they are applied.
        alpha: negative slope of the hidden units.
        gain: factor on them.

    Returns:
        [B, M, outputs]. Differentiable in everything, to any order where the plain form is.
    """
    if planes.shape[2] <= MOST_NATIVE_FEATURES and native.library(planes, points, w1, b1, w2, b2) is not None:
        return _Field.apply(planes, points, w1, b1, w2, b2, alpha, gain)
    return _field_plainly(planes, points, w1, b1, w2, b2, alpha, gain)


def _field_plainly(planes, points, w1, b1, w2, b2, alpha, gain):
    hidden = F.linear(sample_triplanes(planes, points), w1, b1)
    return F.linear(bias_act(hidden, act="lrelu", alpha=alpha, gain=gain, dim=-1), w2, b2)


MOST_NATIVE_FEATURES = 256


def _channels_last(planes: torch.Tensor) -> torch.Tensor:
    """[B, 3, F, H, W] -> [B, H, W, 3, F] in float32: a mere view of what a channels-last network makes."""
    return planes.permute(0, 3, 4, 1, 2).float()


@functools.cache
def _lookup_on_gpu() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """The Triton kernel, once it has been seen to compile and to agree with the plain form on this GPU; else None."""
    try:
        from threedgp.ops.triplane_triton import TriplaneOnGPU

        with torch.inference_mode(False), torch.enable_grad():
            planes = torch.linspace(-1, 1, 3 * 4 * 5 * 6, device="cuda").sin().reshape(1, 3, 4, 5, 6).requires_grad_()
            points = torch.linspace(-1.2, 1.2, 21, device="cuda").reshape(1, 7, 3).requires_grad_()
            found, expected = (
                (value, *torch.autograd.grad(value.square().sum(), (planes, points)))
                for value in (TriplaneOnGPU.apply(planes, points), sample_plainly(planes, points))
            )
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3)
    except Exception as error:  # a missing compiler, an unsupported GPU: whatever it is, the plain form works
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        native.log.warning("The tri-plane lookup uses plain PyTorch on this GPU: %s", reason[0])
        return None
    return TriplaneOnGPU.apply


class _Triplane(torch.autograd.Function):
    @staticmethod
    def forward(ctx, planes, points):
        ctx.save_for_backward(planes, points)
        return torch.ops.threedgp.triplane(_channels_last(planes), points.float()).to(planes.dtype)

    @staticmethod
    def backward(ctx, grad):
        planes, points = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return native.gradients(sample_plainly, (planes, points), (grad,), wanted)
        grad_planes, grad_points = torch.ops.threedgp.triplane_backward(
            grad, _channels_last(planes), points.float(), *wanted
        )
        return (
            grad_planes.permute(0, 3, 4, 1, 2).to(planes.dtype) if wanted[0] else None,
            grad_points.to(points.dtype) if wanted[1] else None,
        )


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx, planes, points, w1, b1, w2, b2, alpha, gain):
        ctx.save_for_backward(planes, points, w1, b1, w2, b2)
        ctx.settings = alpha, gain
        values = torch.ops.threedgp.field(_channels_last(planes), points.float(), w1, b1, w2, b2, alpha, gain)
        return values.to(planes.dtype)

    @staticmethod
    def backward(ctx, grad):
        planes, points, *network = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            twin = functools.partial(_field_plainly, alpha=ctx.settings[0], gain=ctx.settings[1])
            return *native.gradients(twin, (planes, points, *network), (grad,), wanted[:6]), None, None
        grad_planes, grad_points, *grads = torch.ops.threedgp.field_backward(
            grad, _channels_last(planes), points.float(), *network, *ctx.settings, *wanted[:2]
        )
        return (
            grad_planes.permute(0, 3, 4, 1, 2).to(planes.dtype) if wanted[0] else None,
            grad_points.to(points.dtype) if wanted[1] else None,
            *(g.to(value.dtype) for g, value in zip(grads, network, strict=True)),
            None,
            None,
        )
