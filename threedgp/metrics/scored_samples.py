"""What a generator is scored by: images and depth maps of which number i depends on the seed and i alone.

Neither the batch size nor the number of processes nor torch's global random state has a say: each sample has its own
generator for latent, class and camera, and its own for layer noise and ray samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.config.schema import Profile
from threedgp.data.dataset import TrainingSet
from threedgp.errors import ConfigError, UsageError
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator, SynthesisNetwork
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.rendering.rays import camera_rays
from threedgp.rendering.renderer import RenderDraws, RenderOptions, make_draws, render_rays

LATENTS, NOISE = 0, 1  # streams of random numbers of one sample
CUT_QUANTILE = 0.5  # densities below this quantile are removed from depth maps: thin fog is not geometry
QUANTILE_GROUP = 4  # images that share one quantile, whatever the batch size: part of the published definition
QUANTILE_VALUES = 1 << 24  # densities that one published quantile may look at


class Labels(Protocol):
    """Where classes, and the camera angles of a `custom` prior, come from: a training set."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> torch.Tensor:
        """float32 [c_dim]."""

    def camera_angles(self, index: int) -> torch.Tensor:
        """float32 [3] yaw, pitch, roll in radians."""


class UniformLabels:
    """Every class equally often: what is left when the training set is not at hand."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __len__(self) -> int:
        return max(self.num_classes, 1)

    def label(self, index: int) -> torch.Tensor:
        return torch.eye(self.num_classes)[index] if self.num_classes else torch.zeros(0)

    def camera_angles(self, index: int) -> torch.Tensor:
        raise ConfigError("camera.origin.dist=custom takes camera angles from the training set: name it with --data.")


def open_labels(profile: Profile, path: Path | str | None, progress: Progress = NULL_PROGRESS) -> Labels:
    """Classes and camera angles as frequent as in the training set.

    Args:
        profile: of the run.
        path: its training set; None: it is not here, and all classes are drawn equally often.
    """
    custom = profile.camera.origin.dist == "custom"
    if not (profile.data.num_classes or custom):
        return UniformLabels(0)
    if path is None:
        progress.note("The training set is not here, so all classes are drawn equally often.")
        return UniformLabels(profile.data.num_classes)
    return TrainingSet(
        path,
        resolution=profile.data.resolution,
        num_classes=profile.data.num_classes,
        use_depth=False,
        use_angles=custom,
        mirror=False,
        max_images=profile.data.max_images,
        seed=profile.training.seed,
    )


class Latents(NamedTuple):
    """Inputs of B samples: z [B, z_dim], c [B, c_dim] and cameras of the prior."""

    z: torch.Tensor
    c: torch.Tensor
    camera: Camera


class Sampler:
    """Draws and synthesises samples by number.

    Args:
        generator: in evaluation mode.
        profile: of its run.
        labels: classes are those of random items, so that they are as frequent as in the data.
        seed: another seed gives other samples.
    """

    def __init__(self, generator: Generator | StyleGAN2Generator, profile: Profile, labels: Labels, seed: int = 0):
        self.generator, self.profile, self.labels, self.seed = generator, profile, labels, seed
        self.prior = CameraPrior(profile.camera)
        self.device = next(generator.parameters()).device

    def latents(self, numbers: Sequence[int], device: torch.device | str = "cpu") -> Latents:
        """Latents, classes and prior cameras of some samples."""
        rows = [self._latent(number) for number in numbers]
        z, c, camera = zip(*rows, strict=True)
        return Latents(torch.stack(z).to(device), torch.stack(c).to(device), Camera.cat(camera).to(device))

    def _latent(self, number: int) -> tuple[torch.Tensor, torch.Tensor, Camera]:
        random = self._random(number, LATENTS, "cpu")
        item = int(torch.randint(len(self.labels), (), generator=random))
        z = torch.randn(self.generator.z_dim, generator=random)
        custom = self.profile.camera.origin.dist == "custom"
        angles = self.labels.camera_angles(item)[None] if custom else None
        return z, self.labels.label(item), self.prior.sample(1, generator=random, angles=angles)

    @torch.no_grad()
    def images(self, numbers: Sequence[int]) -> torch.Tensor:
        """uint8 RGB [B, 3, S, S]: posterior cameras, no truncation, random layer noise."""
        if not isinstance(self.generator, StyleGAN2Generator):
            return self.turned_views(numbers, [0.0])[0][0]
        z, c, camera = self.latents(numbers, self.device)
        ws = self.generator.mapping(z, c, camera.angles)
        noise = layer_noise(self.generator.synthesis, self._noises(numbers))
        return to_uint8(self.generator.synthesize(ws, noise=noise)[:, :3])

    @torch.no_grad()
    def turned_views(self, numbers: Sequence[int], turns: Sequence[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same samples from their own cameras turned about them: (uint8 RGB [B, 3, S, S], depth [B, S, S]) a turn.

        Args:
            numbers: samples.
            turns: angles in radians added to the yaw of each sample's posterior camera; 0 is the sample as it is.

        Raises:
            UsageError: a 2D model.
        """
        generator = require_depth(self.generator)
        z, c, camera = self.latents(numbers, self.device)
        randoms = self._noises(numbers)
        camera = generator.adapt_camera(camera, z, c)
        planes = _planes(generator, z, c, camera, randoms)
        draws = ray_draws(generator.img_resolution**2, generator.render_options, randoms)
        views = []
        for turn in turns:
            angles = camera.angles + torch.tensor([turn, 0.0, 0.0], device=self.device)
            output = generator.render(planes, replace(camera, angles=angles), draws=draws)
            views.append((to_uint8(output.img[:, :3]), output.depth[:, 0]))
        return views

    @torch.no_grad()
    def frontal_depths(
        self, numbers: Sequence[int], *, cut_quantile: float = CUT_QUANTILE, adaptor: bool = True
    ) -> torch.Tensor:
        """Ray distances [B, h, w] seen from the front, without the densities below a quantile.

        The camera stands at yaw 0 on the equator and then, if it is learned, moves as learned. All `numbers` share
        each quantile; pictures of more than `chunk_rays` pixels have one for every 2^24 / (4·steps·3) rays.

        Args:
            numbers: samples.
            cut_quantile: density quantile; 0 keeps everything.
            adaptor: False leaves the camera exactly frontal.
        """
        generator = require_depth(self.generator)
        z, c, camera = self.latents(numbers, self.device)
        vector = camera.to_vector()
        vector[:, :3] = torch.tensor([0.0, math.pi / 2, 0.0])
        camera = Camera.from_vector(vector)
        if adaptor:
            camera = generator.adapt_camera(camera, z, c)
        randoms = self._noises(numbers)
        side = generator.img_resolution
        rays = side * side
        options = replace(generator.render_options, cut_quantile=cut_quantile)
        field = generator.field(_planes(generator, z, c, camera, randoms))
        origins, directions = camera_rays(camera, side, side)
        draws = ray_draws(rays, options, randoms)
        whole = options.chunk_rays is None or rays <= options.chunk_rays
        chunk = rays if whole else QUANTILE_VALUES // (QUANTILE_GROUP * options.num_steps * 3)
        depths = []
        for first in range(0, rays, chunk):
            part = slice(first, first + chunk)
            some = RenderDraws(draws.jitter[:, part], draws.u[:, part])
            depths.append(render_rays(field, origins[:, part], directions[:, part], options, draws=some).depth)
        return torch.cat(depths, dim=1).reshape(len(numbers), side, side)

    def _noises(self, numbers: Sequence[int]) -> list[torch.Generator]:
        return [self._random(number, NOISE, self.device) for number in numbers]

    def _random(self, number: int, stream: int, device: torch.device | str) -> torch.Generator:
        """One of the sample's own generators; a GPU's numbers differ from a CPU's and are worth as much."""
        key = np.random.SeedSequence([self.seed, number, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(key >> np.uint64(1)))


class GeneratedImages:
    """The first `count` images of a sampler, for the metrics of images; see `threedgp.data.pictures.Images`.

    Args:
        sampler: draws them.
        count: how many.
        checkpoint: what identifies the weights; None: unfinished work cannot be continued.
    """

    def __init__(self, sampler: Sampler, count: int, checkpoint: str | None = None):
        self.sampler, self.count, self.checkpoint = sampler, count, checkpoint

    def __len__(self) -> int:
        return self.count

    @property
    def identity(self) -> str | None:
        """Checkpoint, seed and device kind; None without a checkpoint."""
        if self.checkpoint is None:
            return None
        labels = len(self.sampler.labels)
        return f"{self.checkpoint} seed {self.sampler.seed} labels {labels} on {self.sampler.device.type}"

    def batches(self, chunks: Sequence[list[int]]) -> Iterator[list[tuple[list[int], torch.Tensor]]]:
        for chunk in chunks:
            yield [(chunk, self.sampler.images(chunk))]


def require_depth(generator: Generator | StyleGAN2Generator) -> Generator:
    """The generator, if it has depth. Raises `UsageError` for a 2D model."""
    if isinstance(generator, StyleGAN2Generator):
        raise UsageError("The non-flatness score needs depth, and this is a 2D model (model.kind=stylegan2).")
    return generator


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to 0..255 the way the published scores were made: 127.5·x + 128, clamped, truncated."""
    return (img.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _planes(
    generator: Generator, z: torch.Tensor, c: torch.Tensor, camera: Camera, randoms: Sequence[torch.Generator]
) -> torch.Tensor:
    ws = generator.mapping(z, c, camera.angles)
    backbone = generator.synthesis["tri_plane_decoder"]
    assert isinstance(backbone, SynthesisNetwork)
    return generator.synthesize_planes(ws, noise=layer_noise(backbone, randoms))


def layer_noise(network: SynthesisNetwork, randoms: Sequence[torch.Generator]) -> dict[str, torch.Tensor]:
    """Noise maps [B, 1, r, r] by layer name, each sample's from its own generator."""
    maps = [network.noise_maps(1, "random", random) for random in randoms]
    return {name: torch.cat([own[name] for own in maps]) for name in maps[0]}


def ray_draws(rays: int, options: RenderOptions, randoms: Sequence[torch.Generator]) -> RenderDraws:
    """Ray samples of B images, each image's from its own generator."""
    draws = [make_draws(1, rays, options, generator=random, device=random.device) for random in randoms]
    return RenderDraws(torch.cat([draw.jitter for draw in draws]), torch.cat([draw.u for draw in draws]))
