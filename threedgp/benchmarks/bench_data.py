"""How fast the data stages are, next to the plain way of doing the same, on photos made for it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from threedgp.data.images import decode_image, write_bytes, write_depth
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize, square_image
from threedgp.data.source import open_source
from threedgp.data.workers import parallel
from threedgp.errors import DataError, WeightsError
from threedgp.progress import NULL_PROGRESS, Progress

SMALL, LARGE = (375, 500), (1500, 2000)  # height, width
DISTINCT = 8  # different photos; the others are copies, which decoders cannot know
JPEG_QUALITY = 90


class Timing(NamedTuple):
    """One line of the table; `ratio` compares with the plain way at the same number of jobs."""

    stage: str
    photos: str
    jobs: int
    images_per_second: float
    plain_per_second: float | None = None
    psnr: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.images_per_second / self.plain_per_second if self.plain_per_second else None


def bench_data(
    *,
    count: int = 96,
    size: int = 256,
    jobs: tuple[int, ...] = (1, 2),
    repeats: int = 3,
    scratch: Path | str | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Iterator[Timing]:
    """Time resize (exact and fast), merge, select, depth and embed, and yield the lines of the table one by one.

    The plain way is what a short script would do: Pillow's open, crop, Lanczos and save with their defaults, in
    joblib. Both ways use warm worker processes and alternate; the best of `repeats` counts, because a disturbed
    machine only ever makes a run slower. Stages whose weights are not installed are left out with a note.

    Args:
        count: photos of 2000x1500; of 500x375 there are four times as many.
        size: side of the resized images.
        scratch: folder for the temporary files (default: the system's).
    """
    with _scratch(scratch) as root:
        for label, (height, width), number in (("500x375", SMALL, 4 * count), ("2000x1500", LARGE, count)):
            photos = _make_photos(root / label, height, width, number, progress)
            for workers in jobs:
                yield from _bench_resize(photos, root / "out", label, size, workers, number, repeats)
        photos = root / "500x375"
        yield from _bench_merge(photos, root, jobs, 4 * count, repeats)
        yield from _bench_networks(photos, root, min(4 * count, 64), progress)


def psnr(images: np.ndarray, exact: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 arrays; infinite for equal ones."""
    error = np.mean((images.astype(np.float64) - exact) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def plain_resize(size: int, paths: tuple[Path, Path]) -> None:
    """What a short script does to one photo: (source, target)."""
    source, target = paths
    with Image.open(source) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        square.resize((size, size), Image.Resampling.LANCZOS).save(target)


def make_photo(seed: int, height: int, width: int) -> Image.Image:
    """A picture with the statistics of a photo: noise in all octaves, falling with frequency, and hard edges."""
    random = np.random.RandomState(seed)
    picture = np.zeros((height, width, 3), np.float32) + random.uniform(80, 150, 3).astype(np.float32)
    step = max(height, width) // 2
    while step >= 1:
        for share in (np.ones(3), random.uniform(-0.4, 0.4, 3)):  # brightness varies more than colour
            grid = random.standard_normal((height // step + 2, width // step + 2)).astype(np.float32)
            layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(layer)[..., None] * (2.5 * step**0.38 * share).astype(np.float32)
        step //= 2
    for _ in range(12):
        top, left = random.randint(height), random.randint(width)
        picture[top : top + height // 4, left : left + width // 6] += random.uniform(-60, 60, 3)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _make_photos(folder: Path, height: int, width: int, count: int, progress: Progress) -> Path:
    progress.start(f"Making photos of {width}x{height}", count)
    folder.mkdir()
    originals = []
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        if index < DISTINCT:
            make_photo(index, height, width).save(path, quality=JPEG_QUALITY)
            originals.append(path.read_bytes())
        else:
            path.write_bytes(originals[index % DISTINCT])
        progress.advance()
    progress.finish()
    return folder


def _bench_resize(
    photos: Path, output: Path, label: str, size: int, jobs: int, count: int, repeats: int
) -> Iterator[Timing]:
    output.mkdir(exist_ok=True)
    pairs = [(path, output / "plain" / f"{path.stem}.png") for path in sorted(photos.iterdir())]

    def plain() -> None:
        (output / "plain").mkdir()
        if jobs == 1:
            for pair in pairs:
                plain_resize(size, pair)
        else:
            from joblib import Parallel, delayed

            Parallel(n_jobs=jobs)(delayed(plain_resize)(size, pair) for pair in pairs)

    def ours(fast: bool) -> None:
        resize(photos, output / ("fast" if fast else "exact"), ResizeSettings(size, fast=fast), jobs=jobs)

    list(parallel(abs, range(2 * jobs), jobs=jobs))  # start the workers before any clock
    ways = {"plain": plain, "resize": partial(ours, False), "resize --fast": partial(ours, True)}
    best = dict.fromkeys(ways, 0.0)
    for repeat in range(repeats):
        if repeat:
            shutil.rmtree(output)
            output.mkdir()
        for name, way in ways.items():
            best[name] = max(best[name], _rate(way, count))
    exact = _stack(photos, size)
    for name, folder in (("resize", "exact"), ("resize --fast", "fast")):
        made = open_source(output / folder)
        loss = psnr(np.stack([decode_image(made.read(file)) for file in made.names[:DISTINCT]]), exact)
        yield Timing(name, label, jobs, best[name], best["plain"], loss)
    shutil.rmtree(output)


def _stack(photos: Path, size: int) -> np.ndarray:
    """What the plain way gives for the distinct photos, uint8 [DISTINCT, size, size, 3]."""
    source = open_source(photos)
    images = [Image.fromarray(decode_image(source.read(name))) for name in source.names[:DISTINCT]]
    return np.stack([np.asarray(square_image(image, size)) for image in images])


def _bench_merge(photos: Path, root: Path, jobs: tuple[int, ...], count: int, repeats: int) -> Iterator[Timing]:
    depth, output = root / "depth", root / "merged"
    y, x = np.mgrid[: SMALL[0], : SMALL[1]]
    for path in sorted(photos.iterdir()):
        write_depth(depth / f"{path.stem}_depth.png", (y * 80 + x * 60).astype(np.uint16))
    for workers in jobs:
        rates = []
        for _ in range(repeats):
            rates.append(_rate(lambda workers=workers: merge(photos, depth, output, jobs=workers), count))
            shutil.rmtree(output)
        yield Timing("merge", "500x375", workers, max(rates))


def _bench_networks(photos: Path, root: Path, count: int, progress: Progress) -> Iterator[Timing]:
    """Stages around a network, once each: the network decides their speed."""
    from threedgp.data.depth import run_depth
    from threedgp.data.embed import run_embed
    from threedgp.data.select import run_select
    from threedgp.pretrained.depth_estimators import choose_estimator
    from threedgp.pretrained.names import OFFLINE_NAME

    few = root / "few"
    for path in sorted(photos.iterdir())[:count]:
        write_bytes(few / path.name, path.read_bytes())
    resize(few, root / "set", ResizeSettings(256), jobs=1)
    stages: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("depth synthetic", "500x375", lambda: run_depth(few, root / "maps", choose_estimator("synthetic"))),
        (f"select {OFFLINE_NAME}", "500x375", lambda: run_select(few, root / "kept", extractor=OFFLINE_NAME)),
        (f"embed {OFFLINE_NAME}", "256x256", lambda: run_embed(root / "set", root / "rows", model=OFFLINE_NAME)),
    )
    for name, label, stage in stages:
        try:
            yield Timing(name, label, 1, _rate(stage, count))
        except WeightsError as error:
            progress.note(f"{name} is left out: {error}")


def _rate(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


@contextmanager
def _scratch(folder: Path | str | None) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="3dgp-bench-", dir=folder, ignore_cleanup_errors=True) as root:
            yield Path(root)
    except FileNotFoundError as error:
        if folder is None or Path(folder).is_dir():
            raise
        raise DataError(f"The scratch folder {folder} does not exist.") from error
