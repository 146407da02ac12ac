"""How fast pictures are made, and where the time goes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from threedgp.inference.jobs import render_video
from threedgp.inference.model import TrainedModel
from threedgp.inference.sampler import require_3d
from threedgp.inference.settings import VideoSettings
from threedgp.progress import NULL_PROGRESS, Progress


class RenderSpeed(NamedTuple):
    """One measured video.

    Attributes:
        samples, frames, size: of the video; frames of the grid, not of single samples.
        seconds: per part, see `threedgp.inference.jobs.Rendered`.
    """

    samples: int
    frames: int
    size: int
    seconds: dict[str, float]

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
        return 1 + self.seconds["planes"] * (self.frames - 1) / self.seconds["total"]


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
    size = settings.size or model.generator.img_resolution
    return RenderSpeed(rendered.samples, int(settings.motion["num_frames"]), size, rendered.seconds)
