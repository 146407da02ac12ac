"""`3dgp data select`: keep the typical photos of each class and leave the outliers behind.

Instance selection (arXiv 2007.15255) as 3DGP prepares its sets (arXiv 2303.01416, Sec. 4): features of every photo,
one Gaussian per class, the most likely third stays.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from threedgp.cores import available_cores
from threedgp.data.features import FeatureTable, compute_features, find_or_build
from threedgp.data.images import write_bytes, write_image
from threedgp.data.journal import Job, Outcome, Recorder, digest, do_job, make_place
from threedgp.data.labels import DATASET_JSON, read_labels
from threedgp.data.likelihood import keep_count, log_likelihood, parse_ratio, ranking
from threedgp.data.montage import COLUMNS, draw_montage
from threedgp.data.source import MAX_NAME_BYTES, FolderSource, ImageSource, class_of, depth_name_of, open_source
from threedgp.data.stage import Policy, Stage
from threedgp.data.workers import map_ahead
from threedgp.errors import DataError, UsageError
from threedgp.files import atomic_path, best_effort, write_json
from threedgp.pretrained.names import INCEPTION_NAME, canonical_name
from threedgp.progress import NULL_PROGRESS, bar

if TYPE_CHECKING:
    from typing_extensions import Unpack

Link = Literal["copy", "hardlink", "symlink"]
DEFAULT_RATIO = "1/3"
SCORES_NAME = "scores.csv"


@dataclass(frozen=True)
class ClassScores:
    """One class after scoring.

    Attributes:
        name: folder name, "" when all photos form one group.
        rows: indices into the feature table, in path order.
        likelihood: float64, one per row; NaN where a tiny class is kept whole without a score.
        order: positions within `rows`, most typical first.
        kept: how many of `order` stay.
    """

    name: str
    rows: np.ndarray
    likelihood: np.ndarray
    order: np.ndarray
    kept: int


def run_select(
    source: Path | str,
    target: Path | str,
    *,
    keep: int | None = None,
    keep_ratio: str | float | None = None,
    per_class: bool | None = None,
    reg_covar: float = 1e-5,
    extractor: str = INCEPTION_NAME,
    weights: Path | str | None = None,
    download: bool = False,
    allow_unverified: bool = False,
    device: str | None = None,
    square: int = 256,
    batch_size: int = 64,
    link: Link = "copy",
    montage: bool = True,
    **policy: Unpack[Policy],
) -> Stage:
    """Copy (or link) the most typical photos of `source` to `target` under the same names.

    Writes `scores.csv` (path, class, log-likelihood, rank, kept) and `manifest.json` into `target`, and one picture a
    class with its most and least typical photos into the folder `<target>-montage`. Features stay in a hidden folder
    of `target`, so that another ratio needs no network. Depth maps beside the photos travel with them.

    Args:
        keep: photos to keep in each class (or in all); at most one of `keep` and `keep_ratio`.
        keep_ratio: share to keep, read exactly ("1/3", 0.29); 1/3 if neither is given.
        per_class: one Gaussian per first-level folder; None: if all photos lie in folders.
        reg_covar: added to each variance; must be above 0 when a class has fewer photos than features.
        extractor: "inception", "tf_efficientnet_lite0" (offline) or a timm model.
        square: photos are centre-cropped and resized to this side before the network.
        link: copies, hard links or relative symbolic links.

    Raises:
        UsageError: impossible arguments, or a target that holds foreign files.
        WeightsError: the extractor's weights are missing (before anything is written).
        DataError: no usable photo, singular covariance, or too many broken photos.
    """
    if keep is not None and keep_ratio is not None:
        raise UsageError("Give either a number of photos to keep or a share, not both.")
    ratio = None if keep is not None else str(keep_ratio if keep_ratio is not None else DEFAULT_RATIO)
    if ratio is not None:
        parse_ratio(ratio)
    if not 0 <= reg_covar < float("inf"):
        raise UsageError(f"reg_covar must be 0 or a positive number, not {reg_covar}.")
    photos, target = open_source(source), Path(target)
    labels = read_labels(photos)
    if link != "copy" and not isinstance(photos, FolderSource):
        raise UsageError(f"Files inside {photos.root.name} cannot be linked: use copies.")
    per_class = all(class_of(name) for name in photos.names) if per_class is None else per_class
    cache = target / ".features" / f"{canonical_name(extractor).replace('/', '_')}-{square}.memmap"
    found = find_or_build(
        photos, cache, extractor, weights, square=square, device=device, download=download,
        allow_unverified=allow_unverified, progress=policy.get("progress", NULL_PROGRESS),
    )  # fmt: skip
    policy["overwrite"] = True  # a new choice only adds and removes files; the costly features stay
    stage = Stage.begin("select", photos, target, {"link": link}, **policy)
    stage.skip_problems()
    jobs = stage.jobs or available_cores()
    table = compute_features(stage, cache, found, square=square, batch_size=batch_size)
    scored = _score(stage, table, _group(stage, table.names, per_class), keep, ratio, reg_covar)
    _tell_small_classes(stage, scored, keep)
    _write_scores(target / SCORES_NAME, table, scored)
    if montage:
        _draw_montages(stage, table, scored)
    kept = sorted(table.names[row] for part in scored for row in part.rows[part.order[: part.kept]])
    with_depth = set(photos.depth_names)

    def place(name: str) -> Outcome:
        names = [name, depth_name_of(name)] if depth_name_of(name) in with_depth else [name]
        job = stage.journal.job({name: name for name in names})
        return _copy(photos, target, job) if link == "copy" else _link(photos.root, target, job, link)

    with bar(stage.progress, "Placing photos", len(kept)):
        stage.record(map_ahead(place, kept, jobs, window=4 * jobs))
    if labels is not None:
        write_json(target / DATASET_JSON, labels.as_json(kept))
    stage.extra |= {
        "choice": {"keep": keep, "keep_ratio": ratio, "per_class": per_class, "reg_covar": reg_covar},
        "features": table.identity,
        "classes": {part.name: {"photos": len(part.rows), "kept": part.kept} for part in scored},
    }
    return stage.finish(total=len(photos.names) + len(photos.problems))


def _group(stage: Stage, names: list[str], per_class: bool) -> dict[str, np.ndarray]:
    """Rows of each class, classes sorted; photos outside every class folder are left out with a note."""
    if not per_class:
        return {"": np.arange(len(names))}
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        group = class_of(name)
        if group is None:
            stage.dropped[name] = "lies in no class folder"
        else:
            groups.setdefault(group, []).append(row)
    if stage.dropped:
        stage.progress.note(
            f"{len(stage.dropped)} photos lie in no class folder and are left out (select globally to keep them)."
        )
    if not groups:
        raise DataError(f"{stage.source} has no class folders with photos: select over all photos instead.")
    return {name: np.array(groups[name]) for name in sorted(groups)}


def _score(
    stage: Stage,
    table: FeatureTable,
    groups: dict[str, np.ndarray],
    keep: int | None,
    ratio: str | None,
    reg_covar: float,
) -> list[ClassScores]:
    """Score and rank every class; classes are independent and run in threads."""
    features, jobs = table.rows, stage.jobs or available_cores()

    def score(item: tuple[str, np.ndarray]) -> ClassScores:
        name, rows = item
        kept = keep_count(len(rows), keep=keep, ratio=ratio)
        if kept == len(rows) and reg_covar == 0 and len(rows) <= table.dim:
            likelihood = np.full(len(rows), np.nan)  # no density exists, and none is needed to keep all
        else:
            try:
                likelihood = log_likelihood(features, reg_covar, rows)
            except DataError as error:
                raise DataError(f"Class '{name}': {error}" if name else str(error)) from None
        return ClassScores(name, rows, likelihood, ranking(likelihood), kept)

    scored = []
    with bar(stage.progress, "Scoring", len(groups), "classes"):
        for part in map_ahead(score, groups.items(), jobs, window=2 * jobs):
            scored.append(part)
            stage.progress.advance()
    return scored


def _tell_small_classes(stage: Stage, scored: list[ClassScores], keep: int | None) -> None:
    single = [part.name for part in scored if part.name and len(part.rows) == 1]
    short = [part.name or "the set" for part in scored if keep is not None and len(part.rows) < keep]
    for names, what in (
        (single, "have a single photo, which is kept"),
        (short, f"have fewer than {keep} photos and are kept whole"),
    ):
        if names:
            some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            stage.progress.note(f"{len(names)} classes {what}: {some}.")


def _write_scores(path: Path, table: FeatureTable, scored: list[ClassScores]) -> None:
    """CSV in path order: path, class, log_likelihood (6 decimals), rank within the class from 1, kept 0/1."""
    lines = []
    for part in scored:
        rank = np.empty(len(part.order), dtype=int)
        rank[part.order] = np.arange(1, len(part.order) + 1)
        for row, value, place in zip(part.rows, part.likelihood, rank, strict=True):
            score = "" if np.isnan(value) else f"{value:.6f}"
            lines.append((table.names[row], part.name, score, place, int(place <= part.kept)))
    lines.sort()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(("path", "class", "log_likelihood", "rank", "kept"))
    writer.writerows(lines)
    write_bytes(path, buffer.getvalue().encode())


def _draw_montages(stage: Stage, table: FeatureTable, scored: list[ClassScores]) -> None:
    """One picture a class: the two ends of its ranking and the two sides of the cut. For looking at, so best effort."""
    folder, jobs = stage.output.with_name(stage.output.name + "-montage"), stage.jobs or available_cores()

    def draw(part: ClassScores) -> None:
        names = [table.names[row] for row in part.rows[part.order]]
        kept, rest = names[: part.kept], names[part.kept :]
        rows = [
            ("most typical", kept[:COLUMNS]),
            ("last kept", kept[COLUMNS:][-COLUMNS:]),
            ("first left out", rest[:COLUMNS]),
            ("least typical", rest[COLUMNS:][-COLUMNS:]),
        ]
        title = f"{part.name or 'all photos'}: {part.kept} of {len(names)} kept"
        name = part.name or "all"
        if len(name.encode()) > MAX_NAME_BYTES - len(".png"):
            name = name.encode()[:200].decode(errors="ignore") + digest(name.encode())
        with best_effort(f"Pictures in {folder}", stage.progress):
            write_image(folder / f"{name}.png", draw_montage(stage.found, title, [row for row in rows if row[1]]))

    with bar(stage.progress, f"Drawing {folder.name}", len(scored), "classes"):
        for _ in map_ahead(draw, scored, jobs, window=jobs):
            stage.progress.advance()


def _copy(photos: ImageSource, target: Path, job: Job) -> Outcome:
    """Copy a photo and its depth map, unless the copies are there."""

    def work(job: Job, files: Recorder) -> None:
        for name in job.files:
            files.write(name, files.read(name))

    linked = any((target / name).is_symlink() for name in job.files)
    return do_job(work, photos, target, job._replace(before=None) if linked else job)


def _link(photos: Path, target: Path, job: Job, link: Link) -> Outcome:
    """Link a photo and its depth map by atomic rename, unless the links are there."""
    for name in job.files:
        place, original = make_place(target, name), photos / name
        if place.exists() and place.is_symlink() == (link == "symlink") and place.samefile(original):
            continue
        try:
            with atomic_path(place) as temporary:
                if link == "hardlink":
                    os.link(original.resolve(), temporary)
                else:
                    os.symlink(os.path.relpath(original.resolve(), place.parent.resolve()), temporary)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise UsageError(f"{place} cannot be a {link} to {original} ({error.strerror}): use copies.") from None
            raise
    return Outcome(job)
