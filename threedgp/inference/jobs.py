"""Whole renders: from settings to finished files with the JSON beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threedgp
from threedgp.camera.camera import Camera
from threedgp.errors import UsageError
from threedgp.files import best_effort
from threedgp.inference.captions import caption_strips
from threedgp.inference.grid import image_columns, make_grid, panels, save_picture, video_columns
from threedgp.inference.latents import Sample, interpolate
from threedgp.inference.model import TrainedModel
from threedgp.inference.sampler import ViewOptions, Views, ViewSampler, require_3d
from threedgp.inference.settings import (
    GridSettings,
    MeshSettings,
    PictureSettings,
    SubjectSettings,
    VideoSettings,
    build_motion,
    build_subjects,
    recorded_format,
    write_record,
)
from threedgp.inference.video import check_frame, check_video, open_video
from threedgp.progress import NULL_PROGRESS, Progress

Subject = tuple[Sample, ...]
CAMERA_NUMBERS = ("yaw", "pitch", "roll", "fov", "radius", "look_at_yaw", "look_at_pitch", "look_at_radius")


@dataclass(frozen=True)
class Rendered:
    """What a render made.

    Attributes:
        files: the results, in order.
        record: the JSON beside them; None: it could not be written.
        samples: how many tiles or surfaces.
        seconds: time in each part: `network`, of it `styles`, `planes` and `rays`; `compose`, `encode`; `total`.
        failed: label of a sample that could not be made -> the reason.
    """

    files: list[Path]
    record: Path | None
    samples: int
    seconds: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)


def require_memory(needed: float, advice: str) -> None:
    """Refuse what this machine cannot hold, before work starts.

    Args:
        needed: bytes, estimated from below.
        advice: how to need less.

    Raises:
        UsageError: the machine has less memory.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UsageError(
            f"This render needs about {needed / 1e9:,.0f} GB of memory, and this machine has {there / 1e9:,.0f} GB. "
            f"{advice}"
        )


def render_video(
    model: TrainedModel, settings: VideoSettings, out: Path, progress: Progress = NULL_PROGRESS
) -> Rendered:
    """Samples moving along a trajectory, in a grid: one video for every `per_file` samples.

    Args:
        model: a 3D model.
        settings: see VideoSettings.
        out: path without ending; several videos append the labels of their first and last sample.
        progress: told about frames.

    Raises:
        UsageError: a 2D model, or settings that do not fit it; no ffmpeg.
        VideoError, OSError: a video could not be written. Nothing half-written is left.
    """
    require_3d(model.generator, "A video")
    job = _Job(model, settings, "video", out)
    check_video(settings.format, settings.fps)
    groups = job.groups()
    columns = settings.columns or video_columns(len(groups[0]))
    width, rows = job.sampler.size * len(settings.show), -(-len(groups[0]) // columns)
    check_frame(settings.format, rows * job.sampler.size, min(columns, len(groups[0])) * width)
    ending = "" if settings.format == "png" else f".{settings.format}"
    files = []
    progress.start("Rendering", len(groups) * job.frames, "frames")
    for group in groups:
        columns = settings.columns or video_columns(len(group))
        path = job.path(group, len(groups), ending)
        ws, cameras = job.prepare(group)
        captions = job.captions(group, job.sampler.size * len(settings.show))
        with open_video(path, settings.format, fps=settings.fps, crf=settings.crf) as add:
            for views in job.sampler.by_frame(ws, cameras):
                with job.watch("compose"):
                    tiles = torch.cat(panels(views, settings.show), dim=-1)
                    frame = make_grid(_append(tiles, captions), columns).cpu()
                with job.watch("encode"):
                    add(frame)
                progress.advance()
            closing = time.perf_counter()
        job.watch.seconds["encode"] = job.watch.seconds.get("encode", 0.0) + time.perf_counter() - closing
        files.append(path)
    progress.finish()
    return job.finish(files, progress)


def render_grid(model: TrainedModel, settings: GridSettings, out: Path, progress: Progress = NULL_PROGRESS) -> Rendered:
    """Samples in a grid, each with all views of its trajectory side by side and depth beneath: a picture for every
    `per_file` samples.

    A 2D model shows one picture a sample, or the steps of an interpolation.

    Arguments, errors as for `render_video`.
    """
    job = _Job(model, settings, "grid", out)
    groups = job.groups()
    files = []
    progress.start("Rendering", len(job.subjects), "samples")
    for group in groups:
        columns = settings.columns or (1 if settings.interpolate else image_columns(len(group), settings.per_file))
        captions = job.captions(group, job.sampler.size * job.frames)
        tiles = []
        for views in job.views(group):
            with job.watch("compose"):
                strips = [torch.cat(list(panel), dim=-1) for panel in panels(views, settings.show)]  # [3, h, F·w]
                tiles.append(torch.cat(strips, dim=-2).cpu())
            progress.advance()
        with job.watch("encode"):
            path = job.path(group, len(groups), f".{settings.format}")
            save_picture(path, make_grid(_append(torch.stack(tiles), captions), columns))
        files.append(path)
    progress.finish()
    return job.finish(files, progress)


class _Job:
    """What grids and videos do alike: samples to styles, cameras, captions and files."""

    def __init__(self, model: TrainedModel, settings: PictureSettings, kind: str, out: Path):
        self.model, self.settings, self.kind, self.out = model, settings, kind, out
        self.began = time.perf_counter()
        self.subjects = build_subjects(settings, model.profile.data.num_classes)
        if model.is_2d and settings.show != ["rgb"]:
            raise UsageError("This 2D model (model.kind=stylegan2) has no depth: use --show rgb.")
        options = ViewOptions(
            size=settings.size,
            step_multiplier=settings.steps,
            far_offset=settings.far_offset,
            adapted="adapted" in settings.show,
            batch=settings.batch,
        )
        self.sampler = ViewSampler(model.generator, options)
        self.watch = self.sampler.watch
        self.motion = None if model.is_2d else build_motion(settings)
        self.frames = settings.interpolate or (1 if self.motion is None else self.motion.frames())
        self.canonical: list[Camera] = []
        tiles = min(settings.per_file, len(self.subjects)) * (1 if kind == "video" else self.frames)
        pixels = tiles * self.sampler.size**2 * len(settings.show)
        require_memory(9 * pixels, "Lower --size, --per-file or the number of frames.")  # RGB as tiles, stack and grid

    def groups(self) -> list[list[Subject]]:
        """Subjects file by file."""
        step = self.settings.per_file
        return [self.subjects[first : first + step] for first in range(0, len(self.subjects), step)]

    def styles(self, group: Sequence[Subject]) -> Tensor:
        """[S, num_ws, w_dim], or [S, steps, num_ws, w_dim] between two ends."""
        with torch.no_grad(), self.watch("styles"):
            first, *last = (
                self.model.styles(list(samples), self.settings.truncation) for samples in zip(*group, strict=True)
            )
            return (
                first if self.settings.interpolate is None else interpolate(first, last[0], self.settings.interpolate)
            )

    def prepare(self, group: Sequence[Subject]) -> tuple[Tensor, Camera]:
        """Styles and S·F cameras of a group; an interpolation keeps the camera of its first end."""
        ws = self.styles(group)
        with self.watch("styles"):
            canonical = self.model.canonical_cameras([subject[0] for subject in group], self.settings.camera)
        self.canonical.append(canonical)
        assert self.motion is not None  # a 2D model has no cameras
        cameras = self.motion.cameras(canonical)
        if self.motion.frames() < self.frames:
            cameras = cameras.repeat_interleave(self.frames)
        return ws, cameras

    def views(self, group: Sequence[Subject]) -> Iterator[Views]:
        """The views of each subject in turn."""
        if self.model.is_2d:
            return self.sampler.pictures(self.styles(group))
        return self.sampler.by_sample(*self.prepare(group))

    def captions(self, group: Sequence[Subject], width: int) -> Tensor | None:
        if not self.settings.captions:
            return None
        texts = [" to ".join(self.model.caption(sample) for sample in subject) for subject in group]
        return caption_strips(texts, width)

    def path(self, group: Sequence[Subject], files: int, ending: str) -> Path:
        labels = "" if files == 1 else f"-{subject_label(group[0])}-{subject_label(group[-1])}"
        return self.out.with_name(f"{self.out.name}{labels}{ending}")

    def finish(self, files: list[Path], progress: Progress) -> Rendered:
        content: dict[str, Any] = {"files": [path.name for path in files]}
        content["samples"] = [
            dict(zip(("sample", "to"), map(self.model.description, subject), strict=False)) for subject in self.subjects
        ]
        if self.canonical and self.motion is not None:
            content["trajectory"] = self.motion.model_dump()
            for entry, row in zip(content["samples"], Camera.cat(self.canonical).to_vector().tolist(), strict=True):
                entry["camera"] = dict(zip(CAMERA_NUMBERS, row, strict=True))
        record = write_job_record(self.model, self.kind, self.settings, self.out, content, progress)
        seconds = {"network": self.watch.network, **self.watch.seconds, "total": time.perf_counter() - self.began}
        return Rendered(files, record, len(self.subjects), seconds)


def write_job_record(
    model: TrainedModel,
    kind: str,
    settings: SubjectSettings,
    out: Path,
    content: dict[str, Any],
    progress: Progress = NULL_PROGRESS,
) -> Path | None:
    """Write `<out>.json`: program, checkpoint with its checksum, settings, and `content`; None if that is impossible.

    Where that describes a render of the same name in another format, it is `<out>.<format>.json`.
    """
    path = out.with_name(f"{out.name}.json")
    form = settings.formats[0] if isinstance(settings, MeshSettings) else settings.model_dump()["format"]
    if recorded_format(path, kind) not in (None, form):
        path = out.with_name(f"{out.name}.{form}.json")
    checkpoint = {"run": model.run, "name": model.checkpoint, "sha256": model.sha256}
    with best_effort("The record of the render", progress):
        write_record(path, kind, settings, {"version": threedgp.__version__, "checkpoint": checkpoint, **content})
        return path
    return None


def subject_label(subject: Subject) -> str:
    """Name of a tile in file names: one sample's label, or both ends'."""
    return "-".join(sample.label for sample in subject)


def _append(tiles: Tensor, captions: Tensor | None) -> Tensor:
    """Captions under tiles [N, 3, h, w]."""
    return tiles if captions is None else torch.cat([tiles, captions.to(tiles.device)], dim=-2)
