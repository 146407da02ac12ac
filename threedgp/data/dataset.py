"""The training set: image, depth, label, camera angles and embedding of one picture, always aligned.

Reads what resize and embed wrote, from a folder or zip. Every item is a function of its index alone, so that any
number of loader processes gives the same stream.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from threedgp.config.schema import Profile
from threedgp.data.embeddings import Embeddings
from threedgp.data.images import decode_depth, decode_image, image_size
from threedgp.data.labels import DATASET_JSON, Labels, read_labels
from threedgp.data.source import depth_name_of, embeddings_folder, open_source, stem_of
from threedgp.errors import DataError

SHOWN_NAMES = 3  # how many file names a problem lists


class Item(NamedTuple):
    """One training item; the batch of `collate` stacks each field along a new first axis.

    image uint8 [3, S, S]; depth int32 [1, S, S] (0..65535; [1, 1, 1] zeros when unused); label float32 [C];
    camera_angles float32 [3] (yaw, pitch, roll in radians; zeros when the set has none); embedding float32 [D]
    (D = 0 when unused); index int64 (position in the doubled set).
    """

    image: torch.Tensor
    depth: torch.Tensor
    label: torch.Tensor
    camera_angles: torch.Tensor
    embedding: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks


def collate(items: list[Item]) -> Item:
    """Stack items into a batch."""
    return Item(*[torch.stack(field) for field in zip(*items, strict=True)])


class TrainingSet(torch.utils.data.Dataset):
    """Items of a prepared set; with `mirror`, items N..2N-1 are the same pictures flipped left-right.

    Args:
        path: folder or zip that resize wrote.
        resolution: required side in pixels.
        num_classes: width of one-hot labels; 0 for an unconditional model (labels are then ignored).
        use_depth: read `<stem>_depth.png` of every image.
        embeddings: the `.memmap` file, or None.
        embedding_dim: required width of the embeddings.
        use_angles: require camera angles in dataset.json (camera prior "custom").
        mirror: double the set by flipped copies (depth flipped too, yaw mirrored about `mean_yaw`).
        mean_yaw: None: the mean over the data.
        max_images: keep a seeded random subset.
        cache_bytes: a set that is not larger when decoded stays in memory; all loader workers and processes of a
            machine together take no more than this.

    Raises:
        DataError: all that is missing or inconsistent, found by names and one header, in one message.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        resolution: int,
        num_classes: int = 0,
        use_depth: bool = True,
        embeddings: Path | str | None = None,
        embedding_dim: int = 0,
        use_angles: bool = False,
        mirror: bool = True,
        mean_yaw: float | None = None,
        max_images: int | None = None,
        seed: int = 0,
        cache_bytes: int = 1 << 30,
    ):
        self.source = open_source(path)
        self.resolution, self.num_classes, self.use_depth, self.mirror = resolution, num_classes, use_depth, mirror
        self.embeddings = Embeddings.open(embeddings) if embeddings is not None else None
        labels = read_labels(self.source, complete=False) or Labels()
        self.classes = labels.classes
        self._labels = (labels.values or {}) if num_classes else {}
        self._angles = labels.angles
        self.names = subset(self.source.names, max_images, seed)
        problems = [*self._problems(embedding_dim, use_angles), *(self._label_problems() if num_classes else [])]
        if problems:
            raise DataError(f"{path} cannot be used for training: " + " ".join(problems))
        yaws = [self._angles[stem_of(name)][0] for name in self.names if stem_of(name) in self._angles]
        self.mean_yaw = float(np.mean(yaws)) if mean_yaw is None and yaws else (mean_yaw or 0.0)
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # A part of a set would be of little use: pictures come in random order.
        self._copies_allowed = cache_bytes // (len(self.names) * resolution * resolution * (7 if use_depth else 3))

    def __len__(self) -> int:
        return len(self.names) * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> Item:
        row = index % len(self.names)
        image, depth = self._pixels(row)
        if index >= len(self.names):
            image, depth = image.flip(-1), depth.flip(-1)
        embedding = torch.zeros(0)
        if self.embeddings is not None:
            embedding = torch.from_numpy(np.array(self.embeddings.rows[self.embeddings.row_of[self.names[row]]]))
        return Item(image, depth, self.label(index), self.camera_angles(index), embedding, torch.tensor(index))

    def label(self, index: int) -> torch.Tensor:
        """Label of an item, float32 [C]: one-hot for integer labels, stored numbers otherwise."""
        if not self.num_classes:
            return torch.zeros(0)
        value = self._labels[stem_of(self.names[index % len(self.names)])]
        if isinstance(value, int):
            return torch.nn.functional.one_hot(torch.tensor(value), self.num_classes).float()
        return torch.tensor(value, dtype=torch.float32)

    def camera_angles(self, index: int) -> torch.Tensor:
        """Stored yaw, pitch, roll of an item in radians, float32 [3]; zeros when the set has none."""
        yaw, pitch, roll = self._angles.get(stem_of(self.names[index % len(self.names)]), (0.0, 0.0, 0.0))
        if index >= len(self.names) and self._angles:
            yaw = 2 * self.mean_yaw - yaw
        return torch.tensor([yaw, pitch, roll], dtype=torch.float32)

    def identity(self) -> dict[str, Any]:
        """What a run remembers of its set: the number of pictures, the classes, and a digest of all names."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name in self.source.names:
            digest.update(f"{name} {self._labels.get(stem_of(name))}\n".encode())
        return {"images": len(self.source.names), "classes": self.classes, "fingerprint": digest.hexdigest()}

    def all_angles(self) -> torch.Tensor:
        """Yaw, pitch, roll of every picture, float32 [N, 3]; zeros where the set has none."""
        return torch.tensor([self._angles.get(stem_of(name), (0.0, 0.0, 0.0)) for name in self.names])

    def require_finite_embeddings(self) -> None:
        """Read all embeddings once. Raises `DataError` naming pictures with NaN or Inf."""
        if self.embeddings is None:
            return
        used = set(self.names).intersection(self.embeddings.non_finite())
        if used:
            raise DataError(
                f"{self.embeddings.path} holds NaN or Inf for {_some(sorted(used))}. Delete it and run 3dgp data embed."
            )

    def _pixels(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        if row in self._cache:
            return self._cache[row]
        name, size = self.names[row], self.resolution
        with self._named(name):
            image = torch.from_numpy(decode_image(self.source.read(name)))  # [S, S, 3]
            depth = torch.zeros(1, 1, 1, dtype=torch.int32)
            if self.use_depth:
                pixels = decode_depth(self.source.read(depth_name_of(name)), first_channel=True)
                depth = torch.from_numpy(pixels.astype(np.int32))[None]  # [1, S, S]
            if image.shape != (size, size, 3) or (self.use_depth and depth.shape != (1, size, size)):
                raise DataError(f"or its depth map is not {size}x{size}")
        image = image.permute(2, 0, 1).contiguous()  # [3, S, S]
        worker = torch.utils.data.get_worker_info()
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * (worker.num_workers if worker else 1)
        if processes <= self._copies_allowed:
            self._cache[row] = image, depth
        return image, depth

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Say of which picture an error speaks."""
        try:
            yield
        except DataError as error:
            raise DataError(
                f"{self.source.root}: {name} {error}. Find all such files: 3dgp data check --decode"
            ) from None

    def _problems(self, embedding_dim: int, use_angles: bool) -> Iterator[str]:
        with self._named(self.names[0]):
            height, width = image_size(self.source.read(self.names[0]))
        if (height, width) != (self.resolution, self.resolution):
            yield (
                f"its images are {width}x{height} but the profile says data.resolution={self.resolution}"
                f" (make that size: 3dgp data resize -s {self.resolution})."
            )
        if self.use_depth:
            maps = set(self.source.depth_names)
            advice = " (run 3dgp data depth, merge and resize, or set training.use_depth=false)"
            yield from self._without("depth map", lambda name: depth_name_of(name) in maps, advice)
        if self.embeddings is not None:
            if self.embeddings.dim != embedding_dim:
                yield (
                    f"the embeddings in {self.embeddings.path.name} have {self.embeddings.dim} numbers but the profile "
                    f"says data.embedding_dim={embedding_dim}."
                )
            yield from self._without("embedding", self.embeddings.row_of.__contains__, " (run 3dgp data embed again)")
        if use_angles:
            yield from self._without(f"camera_angles in {DATASET_JSON}", lambda name: stem_of(name) in self._angles)

    def _label_problems(self) -> Iterator[str]:
        if not self._labels:
            yield (
                f"it has no labels but the profile says data.num_classes={self.num_classes} (put the photos into one "
                "folder a class and run 3dgp data resize, or set data.num_classes=0)."
            )
            return
        yield from self._without(f"label in {DATASET_JSON}", lambda name: stem_of(name) in self._labels)
        used = [self._labels[stem_of(name)] for name in self.names if stem_of(name) in self._labels]
        largest = max((value for value in used if isinstance(value, int)), default=-1)
        count = len(self.classes) if self.classes else largest + 1
        widths = {len(value) for value in used if not isinstance(value, int)}
        if largest >= self.num_classes or (widths or {count}) != {self.num_classes}:
            said = ", ".join(map(str, sorted(widths or {count})))
            yield (
                f"it has {said} classes but the profile says data.num_classes={self.num_classes} "
                f"(--set data.num_classes={said})."
            )

    def _without(self, what: str, has: Callable[[str], bool], advice: str = "") -> Iterator[str]:
        missing = [name for name in self.names if not has(name)]
        if missing:
            yield f"{len(missing)} of {len(self.names)} images have no {what}: {_some(missing)}{advice}."


def open_training_set(profile: Profile, path: Path | str) -> TrainingSet:
    """The training set as a resolved profile wants it: depth, labels, embeddings and mirroring only where used.

    Raises:
        DataError: something the profile needs is missing; says all of it and which command makes it.
    """
    data, training, camera = profile.data, profile.training, profile.camera
    embeddings = None
    if profile.loss.distillation.weight > 0:
        embeddings = embeddings_folder(Path(path)) / f"{data.embedder}.memmap"
        if not embeddings.is_file():
            raise DataError(
                f"The profile distils '{data.embedder}' embeddings but there is no {embeddings}. "
                f"Make them with `3dgp data embed --model {data.embedder}`, or set loss.distillation.weight=0.0."
            )
    yaw, custom = camera.origin.yaw, camera.origin.dist == "custom"
    mean_yaw = yaw.mean if camera.origin.dist in ("normal", "hybrid") else ((yaw.min or 0.0) + (yaw.max or 0.0)) / 2
    return TrainingSet(
        path,
        resolution=data.resolution,
        num_classes=data.num_classes,
        use_depth=training.use_depth,
        embeddings=embeddings,
        embedding_dim=data.embedding_dim,
        use_angles=custom,
        mirror=data.mirror,
        mean_yaw=None if custom else mean_yaw,
        max_images=data.max_images,
        seed=training.seed,
    )


def subset(names: list[str], max_images: int | None, seed: int) -> list[str]:
    """A seeded random subset in the original order; all names when `max_images` is None or not smaller."""
    if max_images is None or max_images >= len(names):
        return names
    order = np.arange(len(names))
    np.random.RandomState(seed % (1 << 31)).shuffle(order)
    return [names[row] for row in np.sort(order[:max_images])]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
