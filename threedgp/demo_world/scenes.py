"""The embedded RGB-D demo set: eight kinds of toy-like objects in unaligned photos with ground-truth depth.

It stands in for a folder of photos, so that every stage, the training and the scores can be tried offline. Layout:

    <root>/images/<class>/<index:05d>.png         what a user would bring
    <root>/depth/<class>/<index:05d>_depth.png    16 bit, larger = farther, 0..60000
    <root>/cameras.json                           ground truth for evaluation; training never reads it
    <root>/manifest.json                          the settings it was made with
    <root>/contact_sheet.png                      a first look: images with their depth beneath

Depth is stored as a monocular estimator would give it, up to an unknown scale, shift and gamma for each image
(affine-invariant depth, as LeReS, arXiv 2012.09365, gives; 3DGP, arXiv 2303.01416, Sec. 3.3, learns to cope with
it), or exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from threedgp.colormap import depth_colormap
from threedgp.data.images import write_image
from threedgp.data.workers import parallel
from threedgp.demo_world.render import CLASSES, FAR, NEAR, Scene, render_scene
from threedgp.errors import DataError, UsageError
from threedgp.files import TEMPORARY_MARK, atomic_path, read_json, write_json
from threedgp.progress import NULL_PROGRESS, Progress

__all__ = [
    "CLASSES",
    "DemoSummary",
    "Scene",
    "contact_sheet",
    "quantize_depth",
    "render_scene",
    "restore_depth",
    "write_demo_set",
]

SMALLEST, LARGEST = 16, 2048  # pixels
FULL_SCALE = 60000  # the largest value in a stored depth map, as depth estimators here write it
VERSION = 1  # raise when the same seed gives other pictures
RECORD = "threedgp-demo"  # key of the text in each depth file that holds the image's line of cameras.json
PAPER = (246, 244, 238)


@dataclass(frozen=True)
class DemoSummary:
    """What `write_demo_set` did: counts of images, and where the files are."""

    root: Path
    images: int
    written: int
    kept: int
    per_class: dict[str, int]
    size: int
    seed: int
    exact_depth: bool
    contact_sheet: Path


@dataclass(frozen=True)
class DepthCode:
    """How ray distances became stored values: trunc(60000·(shift + scale·((d - low)/(high - low))^gamma))."""

    low: float
    high: float
    shift: float
    scale: float
    gamma: float


def depth_code(depth: np.ndarray, index: int, seed: int, exact: bool) -> DepthCode:
    """The stored range of one image: its own for a monocular estimate, the set's near and far for exact depth."""
    if exact:
        return DepthCode(NEAR, FAR, 0.0, 1.0, 1.0)
    rng = np.random.default_rng([seed, index, 1])  # a stream of its own: pictures do not depend on the depth mode
    shift = float(rng.uniform(0, 0.12))
    scale, gamma = float(rng.uniform(0.8, 1) * (1 - shift)), float(np.exp(rng.uniform(-0.3, 0.3)))
    return DepthCode(float(depth.min()), float(depth.max()), shift, scale, gamma)


def quantize_depth(depth: np.ndarray, code: DepthCode) -> np.ndarray:
    """Ray distances [S, S] to uint16 [S, S], larger = farther, in 0..60000."""
    share = np.clip((depth.astype(np.float64) - code.low) / max(code.high - code.low, 1e-9), 0, 1)
    return np.trunc(FULL_SCALE * (code.shift + code.scale * share**code.gamma)).astype(np.uint16)


def restore_depth(stored: np.ndarray, code: DepthCode) -> np.ndarray:
    """Stored values [S, S] back to ray distances [S, S] float64, up to the rounding of 16 bits."""
    share = np.clip((stored / FULL_SCALE - code.shift) / code.scale, 0, 1) ** (1 / code.gamma)
    return code.low + (code.high - code.low) * share


def write_demo_set(
    root: Path | str,
    count: int = 2048,
    size: int = 64,
    seed: int = 0,
    exact_depth: bool = False,
    jobs: int | None = None,
    progress: Progress = NULL_PROGRESS,
) -> DemoSummary:
    """Render the demo set into `root`; a second call finishes an interrupted one and gives the same bytes.

    Args:
        root: the data set's folder, e.g. `data/demo`; created if missing.
        count: number of images; image i shows class `CLASSES[i % 8]`, so classes differ by at most one image.
        size: side of the images in pixels, 16..2048.
        seed: another seed, another world. Must not be negative.
        exact_depth: store true ray distance, near..far (see cameras.json) as 0..60000, in place of an estimate.
        jobs: worker processes; None: one for each processor this process may use.

    Raises:
        UsageError: a number out of range.
        DataError: `root` cannot be written or holds other data.
    """
    root = Path(root)
    _check_numbers(count, size, seed, jobs)
    settings = {"version": VERSION, "size": size, "seed": seed, "exact_depth": exact_depth}
    try:
        _claim(root, settings, count)
        progress.start("demo set", count)
        records, written = [], 0
        for record, fresh in _rendered(root, count, settings, jobs):
            records.append(record)
            written += fresh
            progress.advance()
        progress.finish()
        description = {
            **settings,
            "count": count,
            "classes": list(CLASSES),
            "near": NEAR,
            "far": FAR,
            "camera": [
                "yaw",
                "pitch",
                "roll",
                "fov_degrees",
                "radius",
                "look_at_yaw",
                "look_at_pitch",
                "look_at_radius",
            ],
            "depth": "value = trunc(60000 * (shift + scale * ((distance - low) / (high - low)) ** gamma))",
            "images": records,
        }
        write_json(root / "cameras.json", description)
        sheet = root / "contact_sheet.png"
        write_image(sheet, contact_sheet(root))
        write_json(
            root / "manifest.json", {"stage": "demo", "arguments": {**settings, "count": count}, "complete": True}
        )
    except OSError as error:
        raise DataError(
            f"Cannot write the demo set to {root}: {error.strerror or error}. Check space and rights."
        ) from error
    per_class = {name: len(range(i, count, len(CLASSES))) for i, name in enumerate(CLASSES)}
    return DemoSummary(root, count, written, count - written, per_class, size, seed, exact_depth, sheet)


def _check_numbers(count: int, size: int, seed: int, jobs: int | None) -> None:
    if count < 1:
        raise UsageError(f"A demo set needs at least one image, not {count}: give a larger -n.")
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"Demo images can be {SMALLEST} to {LARGEST} pixels wide, not {size}: give another -s.")
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"The number of jobs must be at least 1, not {jobs}.")


def _claim(root: Path, settings: dict, count: int) -> None:
    """Write down what is being made in `root`, or refuse to mix it with something else that lies there."""
    manifest = root / "manifest.json"
    if manifest.exists():
        found = read_json(manifest)
        before = found.get("arguments") if isinstance(found, dict) and found.get("stage") == "demo" else None
        if not isinstance(before, dict) or {key: before.get(key) for key in settings} != settings:
            made = ", ".join(f"{k} {v}" for k, v in before.items()) if isinstance(before, dict) else "something else"
            raise DataError(f"{root} already holds other data ({made}). Remove that folder or write to another one.")
        if int(before.get("count", 0)) > count:
            raise DataError(
                f"{root} already holds {before['count']} demo images, more than {count}. Remove it or ask for more."
            )
    elif (root / "images").exists() or (root / "depth").exists():
        raise DataError(f"{root} already holds images that are no demo set. Write to another folder.")
    write_json(manifest, {"stage": "demo", "arguments": {**settings, "count": count}, "complete": False})
    for leftover in root.glob(f"*/*/.*{TEMPORARY_MARK}*"):  # of a killed run
        leftover.unlink(missing_ok=True)


def _rendered(root: Path, count: int, settings: dict, jobs: int | None) -> Iterator[tuple[dict, bool]]:
    """The record of each image in order, and whether it had to be rendered."""
    return parallel(partial(_write_one, root.resolve(), **settings), range(count), jobs=jobs)


def _write_one(root: Path, index: int, version: int, size: int, seed: int, exact_depth: bool) -> tuple[dict, bool]:
    """Render image `index` unless both files are whole; the depth file comes last and carries the record."""
    name = CLASSES[index % len(CLASSES)]
    image, depth = image_path(root, index), depth_path(root, index)
    record = _finished(image, depth, size)
    if record is not None:
        return record, False
    scene = render_scene(index, size, seed)
    code = depth_code(scene.depth, index, seed, exact_depth)
    record = {
        "image": f"{name}/{image.name}",
        "class": scene.class_id,
        "camera": [float(v) for v in scene.camera],
        "depth": asdict(code),
    }
    write_image(image, scene.rgb)
    text = PngInfo()
    text.add_text(RECORD, json.dumps(record))
    with atomic_path(depth) as temporary:
        Image.fromarray(quantize_depth(scene.depth, code)).save(temporary, pnginfo=text)
    return record, True


def image_path(root: Path | str, index: int) -> Path:
    """Where image `index` of the demo set in `root` lies."""
    return Path(root) / "images" / CLASSES[index % len(CLASSES)] / f"{index:05d}.png"


def depth_path(root: Path | str, index: int) -> Path:
    """Where the depth map of image `index` lies."""
    return Path(root) / "depth" / CLASSES[index % len(CLASSES)] / f"{index:05d}_depth.png"


def _finished(image: Path, depth: Path, size: int) -> dict | None:
    """The record stored with a finished pair of files, or None if one is missing or damaged."""
    try:
        with Image.open(image) as file:
            file.load()
            whole = file.size == (size, size) and file.mode == "RGB"
        with Image.open(depth) as file:
            file.load()
            whole &= file.size == (size, size) and file.mode.startswith("I")
            return json.loads(file.info[RECORD]) if whole else None
    except (OSError, ValueError, KeyError, AttributeError, SyntaxError):
        return None


def contact_sheet(root: Path | str, columns: int = 12, tile: int = 96) -> Image.Image:
    """The first images of each class of a demo set side by side, their depth maps beneath (near is bright).

    Args:
        root: the demo set's folder.
        columns: most images a class.
        tile: largest side of one picture; larger images are reduced.

    Raises:
        DataError: there is no demo set in `root`.
    """
    shown: dict[str, list[tuple[Path, Path]]] = {}
    for name in CLASSES:
        images = sorted((Path(root) / "images" / name).glob("[0-9]*.png"))[:columns]
        pairs = [(path, Path(root) / "depth" / name / f"{path.stem}_depth.png") for path in images]
        if pairs := [pair for pair in pairs if pair[1].exists()]:
            shown[name] = pairs
    if not shown:
        raise DataError(f"{root} holds no demo images. Make them with: 3dgp data demo")
    with Image.open(next(iter(shown.values()))[0][0]) as first:
        side = min(tile, first.width)
    wide, gap = max(map(len, shown.values())), max(1, side // 32)
    pair = 2 * side + 3 * gap
    sheet = Image.new("RGB", (wide * (side + gap) + gap, len(shown) * pair + gap), PAPER)
    for row, pairs in enumerate(shown.values()):
        for column, (image, depth) in enumerate(pairs):
            corner = (gap + column * (side + gap), gap + row * pair)
            with Image.open(image) as file:
                sheet.paste(file.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), corner)
            with Image.open(depth) as file:
                small = Image.fromarray(np.asarray(file, np.float32)).resize((side, side), Image.Resampling.BOX)
            sheet.paste(Image.fromarray(_tint(np.asarray(small))), (corner[0], corner[1] + side + gap))
    return sheet


def _tint(depth: np.ndarray) -> np.ndarray:
    """Depth [S, S] as colours uint8 [S, S, 3], near bright and warm, far dark and cool."""
    return depth_colormap(1 - (depth - depth.min()) / max(float(np.ptp(depth)), 1.0))
