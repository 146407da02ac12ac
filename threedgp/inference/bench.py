"""How fast pictures are made, and where the time goes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from threedgp.inference.jobs import render_video
from threedgp.inference.model import TrainedModel
from threedgp.inference.sampler import ViewOptions, ViewSampler, require_3d
from threedgp.inference.settings import VideoSettings, build_subjects
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class RenderSpeed:
    """One measured video.

    Attributes:
        samples, frames, size: of the video; frames of the grid, not of single samples.
        seconds: per part, see `threedgp.inference.jobs.Rendered`.
        seconds_per_planes: to make the feature planes of one sample.
    """

    samples: int
    frames: int
    size: int
    seconds: dict[str, float]
    seconds_per_planes: float

    @property
    def pictures_per_second(self) -> float:
        return self.samples * self.frames / self.seconds["total"]

    @property
    def network_share(self) -> float:
        """Share of the time inside the networks."""
        return self.seconds["network"] / self.seconds["total"]

    @property
    def saved_by_planes(self) -> float:
        """How many times longer it would take to make planes for each frame instead of once for each sample."""
        again = self.seconds_per_planes * self.samples * (self.frames - 1)
        return (self.seconds["total"] + again) / self.seconds["total"]


def bench_render(model: TrainedModel, settings: VideoSettings, progress: Progress = NULL_PROGRESS) -> RenderSpeed:
    """Render a video into a temporary folder and time it, after a short one that warms everything up.

    Raises:
        UsageError: a 2D model.
    """
    require_3d(model.generator, "This benchmark")
    short = settings.model_copy(update={"motion": {**settings.motion, "num_frames": 2}})
    with tempfile.TemporaryDirectory() as folder:
        render_video(model, short, Path(folder) / "warm")
        rendered = render_video(model, settings, Path(folder) / "timed", progress)
    sampler = ViewSampler(model.generator, ViewOptions(batch=1))
    samples = [subject[0] for subject in build_subjects(settings, model.profile.data.num_classes)]
    ws = model.styles(samples[:1], settings.truncation)
    sampler.planes(ws)
    sampler.watch.seconds.clear()
    began = time.perf_counter()
    sampler.planes(ws)
    alone = time.perf_counter() - began
    size = settings.size or model.generator.img_resolution
    return RenderSpeed(len(samples), int(settings.motion["num_frames"]), size, rendered.seconds, alone)
