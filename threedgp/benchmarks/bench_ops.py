"""How fast single operations are, natively and in plain PyTorch, at the sizes of small trainings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from threedgp.ops import native
from threedgp.ops.activation import bias_act
from threedgp.ops.fir import downsample2d, setup_filter, upsample2d
from threedgp.ops.modulated_conv import modulated_conv2d_act
from threedgp.ops.triplane import sample_field, sample_triplanes
from threedgp.progress import NULL_PROGRESS, Progress, bar
from threedgp.rendering.renderer import RenderOptions, make_draws, render_rays

PLANES, RAYS, STEPS = 64, 1024, 24  # side of the planes, rays of an image, samples of a ray


class OpTiming(NamedTuple):
    """Milliseconds of an operation: forwards, and forwards and backwards, fast and plain."""

    name: str
    forward: float
    plain_forward: float
    both: float
    plain_both: float

    @property
    def forward_ratio(self) -> float:
        return self.plain_forward / self.forward

    @property
    def ratio(self) -> float:
        return self.plain_both / self.both


def bench_ops(*, rounds: int = 7, progress: Progress = NULL_PROGRESS) -> Iterator[OpTiming]:
    """Time every fused operation beside its plain form, alternating; medians of `rounds`."""
    torch.manual_seed(0)
    with bar(progress, "Timing operations", unit="operations"):
        for case in _cases():
            yield _time(*case, rounds)
            progress.advance()


def _time(name: str, function: Callable[..., Tensor], inputs: list[Tensor], rounds: int) -> OpTiming:
    inputs = [value.requires_grad_() for value in inputs]
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        torch.autograd.grad(function(*inputs), inputs, grad)

    def plainly(run: Callable[[], None]) -> Callable[[], None]:
        def in_plain() -> None:
            with native.plain():
                run()

        return in_plain

    runs = (forward, plainly(forward), both, plainly(both))
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            if number:  # the first round warms up
                found.append(time.perf_counter() - began)
    return OpTiming(name, *(1e3 * statistics.median(found) for found in seconds))


def _cases() -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Name, function and inputs of each."""
    for features in (16, 32):
        for batch in (1, 8, 32):
            yield f"tri-plane lookup, {features} features, batch {batch}", sample_triplanes, _scene(batch, features)
    for features in (16, 32):
        network = [torch.randn(32, features), torch.randn(32), torch.randn(4, 32), torch.randn(4)]
        yield f"tri-plane field, {features} features, batch 8", sample_field, [*_scene(8, features), *network]
    yield f"ray marching, {STEPS // 2}+{STEPS // 2} samples, batch 8", *_march()
    f = setup_filter([1, 3, 3, 1])
    yield "upsampling 8x64x32x32", partial(upsample2d, f=f), [_image()]
    yield "downsampling 8x64x32x32", partial(downsample2d, f=f), [_image()]
    yield "bias and activation 8x64x32x32", partial(bias_act, act="lrelu"), [_image(), torch.randn(64)]
    for name, up in (("synthesis layer", 1), ("upsampling synthesis layer", 2)):
        layer = partial(modulated_conv2d_act, up=up, padding=1, resample_filter=f, flip_weight=up == 1)
        weights = [torch.randn(64, 64, 3, 3), torch.randn(8, 64), torch.randn(64), torch.randn(8, 1, 32 * up, 32 * up)]
        yield f"{name} 8x64x32x32", layer, [_image(), *weights]


def _image() -> Tensor:
    return torch.randn(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)


def _scene(batch: int, features: int) -> list[Tensor]:
    """Planes, and points along rays through the cube."""
    planes = torch.randn(batch, PLANES, PLANES, 3, features).permute(0, 3, 4, 1, 2)
    start, end = torch.rand(batch, RAYS, 1, 3) * 2 - 1, torch.rand(batch, RAYS, 1, 3) * 2 - 1
    points = torch.lerp(start, end, torch.linspace(0, 1, STEPS)[:, None])  # [B, R, N, 3]
    return [planes, points.reshape(batch, -1, 3).contiguous()]


def _march() -> tuple[Callable[..., Tensor], list[Tensor]]:
    options = RenderOptions(near=0.75, far=1.25, num_steps=STEPS // 2)
    origins, directions = torch.zeros(8, RAYS, 3), torch.tensor([0.0, 0.0, -1.0]).expand(8, RAYS, 3)
    draws = make_draws(8, RAYS, options)

    def march(values: Tensor) -> Tensor:
        rays = render_rays(lambda points: (values[..., :3], values[..., 3:]), origins, directions, options, draws=draws)
        return torch.cat([rays.color, rays.depth[..., None]], dim=-1)

    return march, [torch.randn(8, RAYS * STEPS // 2, 4)]
