"""From styles and cameras to pictures, a few at a time: what videos, grids and snapshots are made of.

Nothing here is random: layer noise is the trained constant one and rays are sampled at the centres of their strata,
so that a picture depends neither on the batch it was rendered in nor on what was rendered before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from threedgp.camera.camera import Camera
from threedgp.errors import UsageError
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.rendering.renderer import RenderOptions

LARGEST_SIZE = 4096
MOST_STEPS = 4096


class Views(NamedTuple):
    """Pictures in [0, 1].

    Attributes:
        rgb: [B, 3, h, w].
        depth: [B, 1, h, w] distance along the ray, from the near (0) to the far plane (1); None for a 2D model.
        adapted: [B, 1, h, w] what a depth estimator would say, larger = farther; None unless asked for.
    """

    rgb: Tensor
    depth: Tensor | None = None
    adapted: Tensor | None = None

    def part(self, some: slice) -> Views:
        """Some of the B views."""
        depth, adapted = (None if values is None else values[some] for values in (self.depth, self.adapted))
        return Views(self.rgb[some], depth, adapted)

    @staticmethod
    def join(parts: Iterable[Views]) -> Views:
        """All of the parts, in their order."""
        rgb, *others = zip(*parts, strict=True)
        return Views(torch.cat(rgb), *(None if values[0] is None else torch.cat(values) for values in others))


@dataclass(frozen=True)
class ViewOptions:
    """How pictures are rendered.

    Attributes:
        size: side in pixels, of the same field of view; None: as in training.
        step_multiplier: times the samples per ray of training, coarse and fine alike.
        far_offset: added to the far plane, world units.
        adapted: also compute the adapted depth.
        batch: pictures at a time. It changes speed and memory, never the result.
    """

    size: int | None = None
    step_multiplier: float = 2.0
    far_offset: float = 0.0
    adapted: bool = False
    batch: int = 4


NETWORK_PARTS = ("styles", "planes", "rays", "images", "density")


@dataclass
class Stopwatch:
    """Seconds spent in each part of a job. Those of NETWORK_PARTS are work of the networks."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> float:
        """Seconds in the networks."""
        return sum(self.seconds.get(part, 0.0) for part in NETWORK_PARTS)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


class ViewSampler:
    """Renders samples from one generator.

    Args:
        generator: in evaluation mode.
        options: see ViewOptions.

    Raises:
        UsageError: a size, step count or far plane that cannot be rendered, or, for a 2D model, a size not its own.
    """

    def __init__(self, generator: Generator | StyleGAN2Generator, options: ViewOptions):
        self.generator, self.options = generator, options
        self.device = next(generator.parameters()).device
        self.watch = Stopwatch(self.device)
        self.size = options.size or generator.img_resolution
        if not 1 <= self.size <= LARGEST_SIZE:
            raise UsageError(f"--size {self.size}: pictures have sides of 1 to {LARGEST_SIZE} pixels.")
        self.is_2d = isinstance(generator, StyleGAN2Generator)
        if isinstance(generator, StyleGAN2Generator):
            if self.size != generator.img_resolution:
                raise UsageError(
                    f"--size {self.size}: this 2D model (model.kind=stylegan2) only makes pictures of "
                    f"{generator.img_resolution}x{generator.img_resolution} pixels."
                )
        else:
            self.render_options = view_render_options(generator.render_options, options)
            if options.adapted and generator.depth_adaptor is None:
                raise UsageError(
                    "Adapted depth comes from the depth adaptor, and this model was trained without one. "
                    "Show depth instead."
                )

    # ------------------------------------------------------------------------------------------------------- 3D models

    @property
    def generator_3d(self) -> Generator:
        """Raises `UsageError` for a 2D model."""
        require_3d(self.generator, "This")
        assert isinstance(self.generator, Generator)
        return self.generator

    def planes(self, ws: Tensor) -> Tensor:
        """Feature planes [S, 3, F, H, W] of styles [S, num_ws, w_dim], computed once however many views follow."""
        with torch.no_grad(), exact_arithmetic(), self.watch("planes"):
            parts = [
                self.generator_3d.synthesize_planes(part, noise_mode="const") for part in ws.split(self.options.batch)
            ]
            return torch.cat(parts)

    def views(self, planes: Tensor, cameras: Camera) -> Views:
        """Look at planes [S, ...] through S·F cameras, sample by sample, `batch` pictures at a time."""
        per_sample = len(cameras) // len(planes)
        batch = self.options.batch
        parts = []
        if per_sample <= batch:  # whole samples together
            count = max(batch // per_sample, 1)
            for first in range(0, len(planes), count):
                some = slice(first * per_sample, (first + count) * per_sample)
                parts.append(self._view(planes[first : first + count], cameras[some]))
        else:
            for index in range(len(planes)):
                own = cameras[index * per_sample : (index + 1) * per_sample]
                for first in range(0, per_sample, batch):
                    parts.append(self._view(planes[index : index + 1], own[first : first + batch]))
        return Views.join(parts)

    def _view(self, planes: Tensor, cameras: Camera) -> Views:
        with torch.no_grad(), exact_arithmetic(), self.watch("rays"):
            output = self.generator_3d.render(
                planes, cameras, resolution=self.size, options=self.render_options, adapt_depth=self.options.adapted
            )
            near, far = self.render_options.near, self.render_options.far
            adapted = None if output.depth_adapted is None else unit_range(output.depth_adapted)
            return Views(unit_range(output.img), normalize_depth(output.depth, near, far), adapted)

    def by_frame(self, ws: Tensor, cameras: Camera) -> Iterator[Views]:
        """All samples at frame 0, then at frame 1, ...: each with the S samples as its batch.

        Args:
            ws: [S, num_ws, w_dim], or [S, F, num_ws, w_dim] for styles that change from frame to frame.
            cameras: S·F, sample by sample.
        """
        samples = len(ws)
        frames = len(cameras) // samples
        grid = cameras.to_vector().unflatten(0, (samples, frames))  # [S, F, 8]
        moving = ws.ndim == 4
        planes = ws if moving else self.planes(ws)
        at_once = 1 if moving else max(self.options.batch // samples, 1)
        for first in range(0, frames, at_once):
            some = Camera.from_vector(grid[:, first : first + at_once].flatten(0, 1))
            if moving:
                yield Views.join([self._moving(ws[part, first], some[part]) for part in self._parts(samples)])
                continue
            views = self.views(planes, some)
            count = len(some) // samples
            for frame in range(count):
                yield views.part(slice(frame, None, count))

    def _moving(self, ws: Tensor, cameras: Camera) -> Views:
        return self._view(self.planes(ws), cameras)

    def by_sample(self, ws: Tensor, cameras: Camera) -> Iterator[Views]:
        """Each sample's F frames as one batch; planes are kept for one batch of samples only.

        Args:
            ws: [S, num_ws, w_dim], or [S, F, num_ws, w_dim].
            cameras: S·F, sample by sample.
        """
        samples = len(ws)
        frames = len(cameras) // samples
        if ws.ndim == 4:
            for index in range(samples):
                own = cameras[index * frames : (index + 1) * frames]
                yield Views.join([self._moving(ws[index, part], own[part]) for part in self._parts(frames)])
            return
        for part in self._parts(samples):
            planes = self.planes(ws[part])
            views = self.views(planes, cameras[part.start * frames : part.stop * frames])
            for index in range(len(planes)):
                yield views.part(slice(index * frames, (index + 1) * frames))

    def _parts(self, count: int) -> list[slice]:
        batch = self.options.batch
        return [slice(first, min(first + batch, count)) for first in range(0, count, batch)]

    # ------------------------------------------------------------------------------------------------------- 2D models

    def pictures(self, ws: Tensor) -> Iterator[Views]:
        """Pictures of a 2D model, one at a time: [S, num_ws, w_dim], or [S, T, num_ws, w_dim] for T a sample."""
        assert isinstance(self.generator, StyleGAN2Generator)
        for part in self._parts(len(ws)):
            own = ws[part] if ws.ndim == 4 else ws[part, None]  # [s, T, num_ws, w_dim]
            images = []
            for some in own.flatten(0, 1).split(self.options.batch):
                with torch.no_grad(), exact_arithmetic(), self.watch("images"):
                    images.append(unit_range(self.generator.synthesize(some, noise_mode="const")))
            for rgb in torch.cat(images).unflatten(0, own.shape[:2]):
                yield Views(rgb)


def require_3d(generator: Generator | StyleGAN2Generator, what: str) -> None:
    """Refuse a 2D model; raises `UsageError` that begins with `what`."""
    if isinstance(generator, StyleGAN2Generator):
        raise UsageError(
            f"{what} needs a 3D model, and this one is 2D (model.kind=stylegan2). Only `3dgp render grid` works."
        )


def view_render_options(trained: RenderOptions, options: ViewOptions) -> RenderOptions:
    """The ray sampling of training, refined and reaching farther; steps are rounded to whole samples.

    Raises:
        UsageError: fewer than 4 or more than 4096 samples a ray, or a far plane at or before the near plane.
    """
    steps, fine = (round(count * options.step_multiplier) for count in (trained.num_steps, trained.fine_steps))
    if not 4 <= steps <= MOST_STEPS or fine > MOST_STEPS:
        raise UsageError(
            f"--steps {options.step_multiplier:g} makes {steps} samples a ray from the {trained.num_steps} of "
            f"training; there must be 4 to {MOST_STEPS}."
        )
    far = trained.far + options.far_offset
    if far <= trained.near:
        raise UsageError(
            f"--far-offset {options.far_offset:g} puts the far plane at {far:g}, not behind the near plane at "
            f"{trained.near:g}."
        )
    return replace(trained, num_steps=steps, num_fine_steps=fine, far=far, jitter="none")


def unit_range(values: Tensor) -> Tensor:
    """[−1, 1] to [0, 1], clamped."""
    return values.float().clamp(-1, 1) * 0.5 + 0.5


def normalize_depth(depth: Tensor, near: float, far: float) -> Tensor:
    """World distances to [0, 1] between the planes, clamped."""
    return unit_range(2 * (depth - (near + far) / 2) / (far - near))


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32 and reproducible kernels on GPUs, whatever training uses."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
