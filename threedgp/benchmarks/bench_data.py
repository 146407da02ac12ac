"""How fast the data stages are, next to the plain way of doing the same, on photos made for it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from threedgp.data.depth import run_depth
from threedgp.data.embed import run_embed
from threedgp.data.images import decode_image, write_depth
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize
from threedgp.data.select import run_select
from threedgp.data.workers import parallel
from threedgp.errors import DataError, WeightsError
from threedgp.pretrained.depth_estimators import choose_estimator
from threedgp.pretrained.names import OFFLINE_NAME
from threedgp.progress import NULL_PROGRESS, Progress, bar

SMALL, LARGE = (375, 500), (1500, 2000)  # height, width
DISTINCT = 8  # different photos; the others are copies, which decoders cannot know
JPEG_QUALITY = 90
FEW = 64  # photos for the stages around a network


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
    if scratch is not None and not Path(scratch).is_dir():
        raise DataError(f"The scratch folder {scratch} does not exist.")
    with tempfile.TemporaryDirectory(prefix="3dgp-bench-", dir=scratch, ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for (height, width), number in ((SMALL, 4 * count), (LARGE, count)):
            label = f"{width}x{height}"
            with bar(progress, f"Making photos of {label}", number):
                _make_photos(root / label, height, width, number)
            for workers in jobs:
                yield from _bench_resize(root / label, root / "out", size, workers, number, repeats)
        yield from _bench_others(root / f"{SMALL[1]}x{SMALL[0]}", root, jobs, 4 * count, repeats, progress)


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


def _make_photos(folder: Path, height: int, width: int, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        if index < DISTINCT:
            make_photo(index, height, width).save(folder / f"{index:05d}.jpg", quality=JPEG_QUALITY)
        else:
            shutil.copyfile(folder / f"{index % DISTINCT:05d}.jpg", folder / f"{index:05d}.jpg")


def _bench_resize(photos: Path, output: Path, size: int, jobs: int, count: int, repeats: int) -> Iterator[Timing]:
    pairs = [(path, output / "plain" / f"{path.stem}.png") for path in sorted(photos.iterdir())]

    def plain() -> None:
        from joblib import Parallel, delayed

        (output / "plain").mkdir()
        Parallel(n_jobs=jobs)(delayed(plain_resize)(size, pair) for pair in pairs)

    def ours(fast: bool) -> None:
        resize(photos, output / ("fast" if fast else "exact"), ResizeSettings(size, fast=fast), jobs=jobs)

    list(parallel(abs, range(2 * jobs), jobs=jobs))  # start the workers before any clock
    ways: dict[str, Callable[[], None]] = {
        "plain": plain, "resize": partial(ours, False), "resize --fast": partial(ours, True),
    }  # fmt: skip
    best = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        for name, way in ways.items():
            best[name] = max(best[name], _rate(way, count))
    made = {
        folder: np.stack([decode_image((output / folder / f"{i:05d}.png").read_bytes()) for i in range(DISTINCT)])
        for folder in ("plain", "exact", "fast")
    }
    for name, folder in (("resize", "exact"), ("resize --fast", "fast")):
        error = np.mean((made[folder].astype(np.float64) - made["plain"]) ** 2)
        psnr = float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
        yield Timing(name, photos.name, jobs, best[name], best["plain"], psnr)
    shutil.rmtree(output)


def _bench_others(
    photos: Path, root: Path, jobs: tuple[int, ...], count: int, repeats: int, progress: Progress
) -> Iterator[Timing]:
    """Merge, and once each the stages around a network, which decides their speed."""
    y, x = np.mgrid[: SMALL[0], : SMALL[1]]
    for path in photos.iterdir():
        write_depth(root / "depth" / f"{path.stem}_depth.png", (y * 80 + x * 60).astype(np.uint16))
    for workers in jobs:
        work, best = partial(merge, photos, root / "depth", root / "merged", jobs=workers), 0.0
        for _ in range(repeats):
            best = max(best, _rate(work, count))
            shutil.rmtree(root / "merged")
        yield Timing("merge", photos.name, workers, best)
    few = root / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:FEW]:
        shutil.copyfile(path, few / path.name)
    resize(few, root / "set", ResizeSettings(256), jobs=1)
    stages: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("depth synthetic", photos.name, lambda: run_depth(few, root / "maps", choose_estimator("synthetic"))),
        (f"select {OFFLINE_NAME}", photos.name, lambda: run_select(few, root / "kept", extractor=OFFLINE_NAME)),
        (f"embed {OFFLINE_NAME}", "256x256", lambda: run_embed(root / "set", root / "rows", model=OFFLINE_NAME)),
    )
    for name, label, stage in stages:
        try:
            yield Timing(name, label, 1, _rate(stage, min(count, FEW)))
        except WeightsError as error:
            progress.note(f"{name} is left out: {error}")


def _rate(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
