"""Which samples to show: seeds and classes to latents, latents to styles, with truncation and interpolation.

Sources: truncation trick of StyleGAN (arXiv 1812.04948, Sec. 3.2), with one centre per class as in 3DGP
(arXiv 2303.01416, Sec. 4).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from threedgp.errors import UsageError
from threedgp.models.mapping import MappingNetwork

LARGEST_SEED = 2**32 - 1
LARGEST_LIST = 100_000
CLASS_MEAN_SAMPLES = 256
CLASS_MEAN_SEED = 20230301

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


class Sample(NamedTuple):
    """One subject: the seed of its latent, and its class (None for an unconditional model)."""

    seed: int
    cls: int | None = None

    @property
    def label(self) -> str:
        """Name for files: `s0007`, or `c00003-s0007` with a class."""
        return f"s{self.seed:04d}" if self.cls is None else f"c{self.cls:05d}-s{self.seed:04d}"


# -------------------------------------------------------------------------------------------------- seeds and classes


def parse_seeds(text: str) -> list[int]:
    """Seeds as numbers and inclusive ranges: "0-3,7" -> [0, 1, 2, 3, 7].

    Raises:
        UsageError: not such a list, empty, or a seed beyond 2³²−1.
    """
    seeds: list[int] = []
    for part in text.split(","):
        if part.strip():
            seeds += _numbers(part.strip(), "--seeds", LARGEST_SEED)
            _check_length(seeds, "--seeds")
    if not seeds:
        raise UsageError("--seeds names no seed, so there is nothing to render. Write for example 0-15.")
    return seeds


def parse_classes(texts: str | Sequence[str], num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """Classes as numbers, inclusive ranges and names: "1-4,7,tabby" -> [1, 2, 3, 4, 7, 281].

    Args:
        texts: lists separated by commas; a text that is one name as a whole may have commas in it.
        num_classes: of the model; 0 for an unconditional one.
        names: the classes' names by number, where known.

    Raises:
        UsageError: the model has no classes, a number is out of range, a name is unknown (with the nearest one), or
            nothing is named.
    """
    if num_classes == 0:
        raise UsageError("This model is unconditional: it has no classes. Leave --classes out.")
    classes: list[int] = []
    for text in [texts] if isinstance(texts, str) else texts:
        for part in [text] if text in (names or ()) else text.split(","):
            if part.strip():
                classes += _classes(part.strip(), num_classes, names)
                _check_length(classes, "--classes")
    if not classes:
        raise UsageError(f"--classes names no class. Write for example 0-{num_classes - 1}.")
    return classes


def _classes(part: str, num_classes: int, names: Sequence[str] | None) -> list[int]:
    if _RANGE.fullmatch(part):
        return _numbers(part, "--classes", num_classes - 1)
    lowered = [name.casefold() for name in names or ()]
    exact = [index for index, name in enumerate(names or ()) if name == part]
    found = exact or [index for index, name in enumerate(lowered) if name == part.casefold()]
    if len(found) > 1:
        raise UsageError(f"--classes: '{part}' may be any of the classes {', '.join(map(str, found))}: use the number.")
    if found:
        return found
    if names is None:
        raise UsageError(
            f"'{part}' may be the name of a class, but the names are only known where the training set is: name it "
            f"with --data, or use numbers from 0 to {num_classes - 1}."
        )
    near = difflib.get_close_matches(part.casefold(), lowered, n=1, cutoff=0.4)
    hint = f" Did you mean '{names[lowered.index(near[0])]}'?" if near else ""
    raise UsageError(f"There is no class '{part}'.{hint} Numbers go from 0 to {num_classes - 1}.")


def _numbers(part: str, option: str, largest: int) -> list[int]:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise UsageError(f"{option}: '{part}' is neither a number nor a range such as 0-15.")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise UsageError(f"{option}: the range {part} runs backwards; write {last}-{first}.")
    if last > largest:
        raise UsageError(f"{option}: {last} is out of range; the largest is {largest}.")
    if last - first >= LARGEST_LIST:
        raise UsageError(f"{option}: {part} names more than {LARGEST_LIST:,} entries.")
    return list(range(first, last + 1))


def _check_length(values: Sequence[int], option: str) -> None:
    if len(values) > LARGEST_LIST:
        raise UsageError(f"{option} names more than {LARGEST_LIST:,} entries.")


def plan_samples(seeds: Sequence[int], classes: Sequence[int] | None, num_classes: int) -> list[Sample]:
    """Every seed with every class, class by class; without classes each seed draws its own.

    Example:
        >>> [sample.label for sample in plan_samples([0, 1], [3], 10)]
        ['c00003-s0000', 'c00003-s0001']
    """
    if num_classes == 0:
        return [Sample(seed) for seed in seeds]
    if classes is None:
        return [Sample(seed, seed_class(seed, num_classes)) for seed in seeds]
    return [Sample(seed, cls) for cls in classes for seed in seeds]


def plan_pairs(seeds: Sequence[int], classes: Sequence[int] | None, num_classes: int) -> list[tuple[Sample, Sample]]:
    """The ends of interpolations: seeds 0 and 1, 2 and 3, ...; classes are dealt out to the seeds in turn.

    Raises:
        UsageError: an odd number of seeds.
    """
    if len(seeds) % 2:
        raise UsageError(f"--interpolate goes from one seed to the next, so it needs pairs of seeds, not {len(seeds)}.")
    if num_classes and classes is not None:
        ends = [Sample(seed, classes[index % len(classes)]) for index, seed in enumerate(seeds)]
    else:
        ends = plan_samples(seeds, None, num_classes)
    return list(zip(ends[::2], ends[1::2], strict=True))


def seed_latent(seed: int, z_dim: int) -> np.ndarray:
    """The latent of a seed: float32 [z_dim] standard normals of numpy's legacy generator, as in published pictures."""
    return np.random.RandomState(seed).randn(z_dim).astype(np.float32)


def seed_class(seed: int, num_classes: int) -> int:
    """The class that a seed draws when none is asked for, uniform in 0..num_classes−1."""
    return int(np.random.RandomState(seed).randint(0, num_classes))


def latents(samples: Sequence[Sample], z_dim: int, c_dim: int) -> tuple[Tensor, Tensor]:
    """Latents z [S, z_dim] and one-hot classes c [S, c_dim] of samples, on the CPU."""
    z = torch.from_numpy(np.stack([seed_latent(sample.seed, z_dim) for sample in samples]))
    c = torch.zeros(len(samples), c_dim)
    if c_dim:
        c[torch.arange(len(samples)), torch.tensor([sample.cls for sample in samples])] = 1.0
    return z, c


# ------------------------------------------------------------------------------------------------------------- styles


class StyleMapper:
    """Maps samples to styles with truncation, computing each class's mean style once.

    The mean of a class is that of 256 latents drawn from a seed of its own: it depends on the class alone, not on
    what else is rendered.

    Args:
        mapping: a generator's mapping network, in evaluation mode.
        camera_angles: [1, 3] for a mapping network that also sees the camera.
    """

    def __init__(self, mapping: MappingNetwork, camera_angles: Tensor | None = None):
        self.mapping, self.camera_angles = mapping, camera_angles
        self._means: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], psi: float) -> Tensor:
        """Styles [S, num_ws, w_dim] of samples.

        Args:
            psi: 1 leaves styles as they are; below 1 they move towards the mean of their class (of everything for
                an unconditional model); above 1 away from the mean of everything.
        """
        z, c = latents(samples, self.mapping.z_dim, self.mapping.c_dim)
        per_class = self.mapping.c_dim > 0 and psi < 1
        ws = self._map(z, c, 1.0 if per_class else psi)
        if not per_class:
            return ws
        classes = [sample.cls for sample in samples if sample.cls is not None]  # all: the model has classes
        means = torch.stack([self.class_mean(cls) for cls in classes])[:, None]  # [S, 1, w_dim]
        return truncate(ws, means, psi)

    def class_mean(self, cls: int) -> Tensor:
        """The mean style [w_dim] of a class."""
        if cls not in self._means:
            random = np.random.RandomState([CLASS_MEAN_SEED, cls])
            z = torch.from_numpy(random.randn(CLASS_MEAN_SAMPLES, self.mapping.z_dim).astype(np.float32))
            c = torch.zeros(1, self.mapping.c_dim)
            c[0, cls] = 1.0
            self._means[cls] = self._map(z, c.expand(len(z), -1), 1.0)[:, 0].mean(dim=0)
        return self._means[cls]

    def _map(self, z: Tensor, c: Tensor, psi: float) -> Tensor:
        device = next(self.mapping.parameters()).device
        return self.mapping(z.to(device), c.to(device), self._angles(len(z)), truncation_psi=psi)

    def _angles(self, rows: int) -> Tensor | None:
        return None if self.camera_angles is None else self.camera_angles.expand(rows, -1)


def truncate(ws: Tensor, mean: Tensor, psi: float) -> Tensor:
    """ψ·w + (1−ψ)·mean; mean broadcasts against ws."""
    return psi * ws + (1.0 - psi) * mean


def interpolate(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Straight lines between styles: [S, num_ws, w_dim] twice -> [S, steps, num_ws, w_dim], both ends included."""
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)[None, :, None, None]
    return (1.0 - share) * first[:, None] + share * last[:, None]
