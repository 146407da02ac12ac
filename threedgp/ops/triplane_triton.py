"""The tri-plane lookup on GPUs: all three planes and their mean in one kernel, backwards with atomic additions.

Loaded only when tensors are on a GPU and Triton is installed (it comes with PyTorch on Linux).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from threedgp.ops import native
from threedgp.ops.triplane import sample_plainly

BLOCK = 32  # points of a program


@triton.jit
def _axis(points, index, mask, size, AXIS: tl.constexpr):
    """Cell, fraction, and whether the cell's two ends are inside, along the axis of a plane."""
    position = (tl.load(points + index * 3 + AXIS, mask=mask, other=0.0) + 1.0) * 0.5 * (size - 1)
    whole = tl.floor(position)
    near = (whole >= 0) & (whole <= size - 1)
    far = (whole >= -1) & (whole < size - 1)
    # What is neither has no cell; a coordinate that is no number stays one in the fraction.
    cell = tl.where(near | far, whole, 0.0).to(tl.int32)
    return cell, position - whole, near & mask, far & mask


@triton.jit
def _forward(planes, points, out, count, height, width, F: tl.constexpr, FP: tl.constexpr, B: tl.constexpr):
    batch = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * B + tl.arange(0, B)
    mask = index < count
    points += batch * count * 3
    planes += batch * height * width * 3 * F
    feature = tl.arange(0, FP)[None, :]
    inside = feature < F
    total = tl.zeros([B, FP], dtype=tl.float32)
    for plane in tl.static_range(3):
        column, u, c0, c1 = _axis(points, index, mask, width, 0 if plane < 2 else 1)
        row, v, r0, r1 = _axis(points, index, mask, height, 1 if plane == 0 else 2)
        for corner in tl.static_range(4):
            valid = (c1 if corner % 2 == 1 else c0) & (r1 if corner // 2 == 1 else r0)
            weight = (u if corner % 2 == 1 else 1.0 - u) * (v if corner // 2 == 1 else 1.0 - v) / 3.0
            offset = (((row + corner // 2) * width + column + corner % 2) * 3 + plane) * F
            texel = tl.load(planes + offset[:, None] + feature, mask=valid[:, None] & inside, other=0.0)
            total += weight[:, None] * texel.to(tl.float32)
    place = (batch * count + index)[:, None] * F + feature
    tl.store(out + place, total, mask=mask[:, None] & inside)


@triton.jit
def _backward(
    planes, points, grad, grad_planes, grad_points, count, height, width,
    F: tl.constexpr, FP: tl.constexpr, B: tl.constexpr, PLANES: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * B + tl.arange(0, B)
    mask = index < count
    points += batch * count * 3
    planes += batch * height * width * 3 * F
    grad_planes += batch * height * width * 3 * F
    feature = tl.arange(0, FP)[None, :]
    inside = feature < F
    place = (batch * count + index)[:, None] * F + feature
    value = tl.load(grad + place, mask=mask[:, None] & inside, other=0.0).to(tl.float32) / 3.0
    x = tl.zeros([B], dtype=tl.float32)
    y = tl.zeros([B], dtype=tl.float32)
    z = tl.zeros([B], dtype=tl.float32)
    for plane in tl.static_range(3):
        column, u, c0, c1 = _axis(points, index, mask, width, 0 if plane < 2 else 1)
        row, v, r0, r1 = _axis(points, index, mask, height, 1 if plane == 0 else 2)
        along_columns = tl.zeros([B], dtype=tl.float32)
        along_rows = tl.zeros([B], dtype=tl.float32)
        for corner in tl.static_range(4):
            valid = (c1 if corner % 2 == 1 else c0) & (r1 if corner // 2 == 1 else r0)
            by_column = u if corner % 2 == 1 else 1.0 - u
            by_row = v if corner // 2 == 1 else 1.0 - v
            offset = (((row + corner // 2) * width + column + corner % 2) * 3 + plane) * F
            used = valid[:, None] & inside
            if PLANES:
                share = (by_column * by_row)[:, None] * value
                tl.atomic_add(grad_planes + offset[:, None] + feature, share, mask=used, sem="relaxed")
            if POINTS:
                texel = tl.load(planes + offset[:, None] + feature, mask=used, other=0.0).to(tl.float32)
                product = tl.sum(texel * value, axis=1)
                along_columns += (by_row if corner % 2 == 1 else -by_row) * product
                along_rows += (by_column if corner // 2 == 1 else -by_column) * product
        along_columns *= 0.5 * (width - 1)
        along_rows *= 0.5 * (height - 1)
        if plane == 0:
            x += along_columns
            y += along_rows
        elif plane == 1:
            x += along_columns
            z += along_rows
        else:
            y += along_columns
            z += along_rows
    if POINTS:
        target = grad_points + (batch * count + index) * 3
        tl.store(target, x, mask=mask)
        tl.store(target + 1, y, mask=mask)
        tl.store(target + 2, z, mask=mask)


def _stored(planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Planes as [B, H, W, 3, F], which is how a channels-last network makes them, and points in float32."""
    return planes.permute(0, 3, 4, 1, 2).contiguous(), points.float().contiguous()


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current GPU, wherever its arguments lie: make it theirs."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class TriplaneOnGPU(torch.autograd.Function):
    """planes [B, 3, F, H, W], points [B, M, 3] -> [B, M, F] in the planes' type; sums are float32."""

    @staticmethod
    def forward(ctx, planes: Tensor, points: Tensor) -> Tensor:
        stored, places = _stored(planes, points)
        batch, height, width, _, features = stored.shape
        count = places.shape[1]
        out = torch.empty(batch, count, features, device=planes.device, dtype=planes.dtype)
        sizes = {"F": features, "FP": triton.next_power_of_2(features), "B": BLOCK}
        if out.numel():
            with on_device_of(planes):
                _forward[(triton.cdiv(count, BLOCK), batch)](stored, places, out, count, height, width, **sizes)
        ctx.save_for_backward(planes, points)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        planes, points = ctx.saved_tensors
        if torch.is_grad_enabled():
            return native.gradients(sample_plainly, (planes, points), (grad,), ctx.needs_input_grad)
        stored, places = _stored(planes, points)
        batch, height, width, _, features = stored.shape
        count = places.shape[1]
        wants_planes, wants_points = ctx.needs_input_grad
        grad_planes = torch.zeros(stored.shape if wants_planes else [1], device=grad.device, dtype=torch.float32)
        grad_points = torch.zeros_like(places)
        sizes = {"F": features, "FP": triton.next_power_of_2(features), "B": BLOCK}
        if grad.numel():
            with on_device_of(planes):
                _backward[(triton.cdiv(count, BLOCK), batch)](
                    stored, places, grad.contiguous(), grad_planes, grad_points, count, height, width, **sizes,
                    PLANES=wants_planes, POINTS=wants_points,
                )  # fmt: skip
        return (
            grad_planes.permute(0, 3, 4, 1, 2).to(planes.dtype) if wants_planes else None,
            grad_points.to(points.dtype) if wants_points else None,
        )
