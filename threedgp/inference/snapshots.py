"""Pictures of a model while it trains: a sheet of all classes with their depth, and a short video.

Both show the same samples every time, so that pictures of one run can be compared, and both use the ray sampling of
training, which keeps them cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from threedgp.camera.trajectories import FrontCircle
from threedgp.config.schema import Profile
from threedgp.inference.cameras import mean_camera, posterior_cameras
from threedgp.inference.grid import color_depth, make_grid, panels, to_uint8, video_columns
from threedgp.inference.latents import Sample, StyleMapper, plan_samples
from threedgp.inference.sampler import ViewOptions, Views, ViewSampler, require_3d
from threedgp.inference.video import open_video
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator

if TYPE_CHECKING:
    from PIL import Image

MOST_ROWS = 16
VIDEO_FPS, VIDEO_CRF = 25.0, 20


def sample_sheet(
    generator: Generator | StyleGAN2Generator,
    profile: Profile,
    *,
    seed: int = 0,
    rows: int | None = None,
    columns: int = 8,
    data_angles: Tensor | None = None,
) -> Image.Image:
    """Samples of every class, a class a row, with the depth under each row (near is bright).

    Latents, classes and cameras follow from `seed`; cameras are posterior ones, styles are not truncated, layer noise
    is constant. The depth is the adapted one where the model has a depth adaptor. A 2D model shows images only.

    Args:
        generator: the averaged generator on any device; left in the mode it came in.
        profile: of its run.
        seed: of the first sample; row r, column q has the seed seed + r·columns + q.
        rows: by default one for each class up to 16 (classes are then spread evenly), 4 without classes.
        columns: samples of each row.
        data_angles: [N, 3] angles of the training set, for a camera prior of dist `custom`.
    """
    from PIL import Image

    classes = profile.data.num_classes
    rows = rows or (min(classes, MOST_ROWS) if classes else 4)
    samples = [
        Sample(seed + row * columns + column, row * classes // rows if classes else None)
        for row in range(rows)
        for column in range(columns)
    ]
    with _evaluation(generator):
        sampler = _sampler(generator, profile)
        depth_shown = None if sampler.is_2d else ("adapted" if sampler.options.adapted else "depth")
        ws, _ = _styles(sampler, profile, samples, data_angles)
        if sampler.is_2d:
            views = Views.join(sampler.pictures(ws))
        else:
            views = Views.join(sampler.by_sample(ws, posterior_cameras(generator, profile, samples, data_angles)))
    tiles = to_uint8(views.rgb).unflatten(0, (rows, columns))  # [rows, columns, 3, h, w]
    if depth_shown is not None:
        depth = color_depth(getattr(views, depth_shown)).unflatten(0, (rows, columns))
        tiles = torch.stack([tiles, depth], dim=1).flatten(0, 1)
    sheet = make_grid(tiles.flatten(0, 1), columns)
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().cpu().numpy())


def short_video(
    generator: Generator | StyleGAN2Generator,
    profile: Profile,
    path: Path | str,
    *,
    seed: int = 0,
    count: int = 4,
    frames: int = 32,
    data_angles: Tensor | None = None,
) -> None:
    """A front circle of a few samples as MP4, colour and depth side by side.

    The camera is the mean one; styles are not truncated.

    Args:
        generator, profile, data_angles: as for `sample_sheet`; not a 2D model.
        path: of the MP4 file.
        seed: of the first sample.
        count: samples, in a grid about square.
        frames: of the circle, shown at 25 a second.

    Raises:
        UsageError: a 2D model, or there is no ffmpeg.
        VideoError, OSError: it could not be written; nothing is left behind.
    """
    samples = plan_samples(range(seed, seed + count), None, profile.data.num_classes)
    require_3d(generator, "A video")
    sampler = _sampler(generator, profile)
    with _evaluation(generator), open_video(path, "mp4", fps=VIDEO_FPS, crf=VIDEO_CRF) as add:
        ws, camera = _styles(sampler, profile, samples, data_angles)
        cameras = FrontCircle(num_frames=frames).cameras(camera.repeat_interleave(count))
        shown = ["rgb", "adapted" if sampler.options.adapted else "depth"]
        for views in sampler.by_frame(ws, cameras):
            add(make_grid(torch.cat(panels(views, shown), dim=-1), video_columns(count)))


def _sampler(generator: Generator | StyleGAN2Generator, profile: Profile) -> ViewSampler:
    adapted = getattr(generator, "depth_adaptor", None) is not None
    options = ViewOptions(step_multiplier=1.0, adapted=adapted, batch=profile.training.test_batch_gpu)
    return ViewSampler(generator, options)


def _styles(sampler: ViewSampler, profile: Profile, samples: list[Sample], data_angles: Tensor | None):
    """Styles of samples without truncation, and the mean camera (None for a 2D model that does not see cameras)."""
    generator = sampler.generator
    sees_camera = generator.mapping.camera_encoding is not None
    camera = None
    if sees_camera or not isinstance(generator, StyleGAN2Generator):
        camera = mean_camera(generator, profile, data_angles)
    angles = camera.angles if sees_camera and camera is not None else None
    return StyleMapper(generator.mapping, angles)(samples, 1.0), camera


@contextmanager
def _evaluation(generator: Generator | StyleGAN2Generator) -> Iterator[None]:
    training = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(training)
