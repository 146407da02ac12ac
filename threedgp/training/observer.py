"""Looking at a model while it trains: sample sheets, a short video, learned cameras, scores.

Nothing here changes the training: no random state is touched and the networks stay as they are.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from threedgp.camera.priors import CameraPrior
from threedgp.config.metric_names import larger_is_better, parse_metric
from threedgp.config.schema import Profile
from threedgp.data.dataset import TrainingSet
from threedgp.files import atomic_path, best_effort
from threedgp.inference.cameras import AnyGenerator
from threedgp.inference.snapshots import sample_sheet, short_video
from threedgp.metrics.bank import StatisticsCache
from threedgp.metrics.evaluate import Evaluator
from threedgp.metrics.extractors import Extractors
from threedgp.metrics.real_set import RealSet
from threedgp.metrics.scored_samples import Sampler
from threedgp.models.generator import Generator
from threedgp.processes import World
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import checkpoint_name
from threedgp.runs.run import Run
from threedgp.training.camera_regularizers import COLUMNS, PARAMETERS
from threedgp.training.histograms import histogram_sheet
from threedgp.training.log import RunLog

DIVERSITY_SAMPLES = 64
CAMERA_SAMPLES = 1024
JPEG_QUALITY = 95


class Evaluation(NamedTuple):
    """The scores of one checkpoint.

    Attributes:
        scores: every value of every metric by name; NaN where the model's output is not finite.
        lower_is_better: the main metric's value, if that is its direction; else None.
        best: by the main metric no earlier checkpoint of the run was better.
    """

    scores: dict[str, float]
    lower_is_better: float | None
    best: bool


class Observer:
    """Draws and scores the averaged generator of a run; every process calls the same methods.

    Args:
        run, world, dataset: of the training.
        log: rank 0's log, None elsewhere.

    Raises:
        WeightsError: the profile's metrics need weights that are not here; says the ways out.
        UsageError: a metric's name is unknown.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        dataset: TrainingSet,
        *,
        log: RunLog | None = None,
        progress: Progress = NULL_PROGRESS,
    ):
        self.run, self.world, self.dataset, self.log = run, world, dataset, log
        self.progress = progress
        self.profile: Profile = run.profile
        self.extractors = Extractors(device=world.device, progress=progress if world.is_main else NULL_PROGRESS)
        self.specs = self.extractors.choose([parse_metric(name) for name in self.profile.training.metrics])

    # -------------------------------------------------------------------------------------------------------- pictures

    def draw(self, generator: AnyGenerator, nimg: int) -> None:
        """Write a sheet of samples, a short video and the learned cameras into samples/, on rank 0."""
        if self.world.is_main:
            stem = self.run.samples / checkpoint_name(nimg)
            angles = self.dataset.all_angles() if self.profile.camera.origin.dist == "custom" else None
            try:
                sheet = sample_sheet(generator, self.profile, data_angles=angles)
                with atomic_path(stem.with_suffix(".jpg")) as path:
                    sheet.save(path, quality=JPEG_QUALITY)
                if self.profile.model.kind != "stylegan2":
                    short_video(generator, self.profile, stem.with_suffix(".mp4"), data_angles=angles)
                if self.profile.training.learn_camera and isinstance(generator, Generator):
                    self._draw_cameras(generator, nimg)
            except OSError as error:
                self.progress.note(f"Samples cannot be written ({error}); training goes on without them.")
        self.world.barrier()

    @torch.no_grad()
    def _draw_cameras(self, generator: Generator, nimg: int) -> None:
        random = torch.Generator().manual_seed(0)
        prior = CameraPrior(self.profile.camera).sample(CAMERA_SAMPLES, generator=random).to(self.world.device)
        z = torch.randn(CAMERA_SAMPLES, self.profile.model.generator.z_dim, generator=random).to(self.world.device)
        items = torch.randint(len(self.dataset), (CAMERA_SAMPLES,), generator=random).tolist()
        c = torch.stack([self.dataset.label(item) for item in items]).to(self.world.device)
        before = prior.to_vector().cpu()[:, COLUMNS]
        after = generator.adapt_camera(prior, z, c).to_vector().cpu()[:, COLUMNS]
        sheet = histogram_sheet(dict(zip(PARAMETERS, zip(before.T, after.T, strict=True), strict=True)))
        with atomic_path(self.run.samples / f"{checkpoint_name(nimg)}-cameras.png") as path:
            sheet.save(path)
        if self.log is not None:
            values = {f"Camera_dist/{name}_mean": after[:, k].mean().item() for k, name in enumerate(PARAMETERS)}
            values |= {f"Camera_dist/{name}_std": after[:, k].std().item() for k, name in enumerate(PARAMETERS)}
            self.log.event("cameras", nimg, **values)
            self.log.scalars(nimg, values)

    # ---------------------------------------------------------------------------------------------------------- scores

    def evaluate(self, generator: AnyGenerator, nimg: int) -> Evaluation:
        """Score the generator with the profile's metrics, on all processes together, and write the results down."""
        began = time.time()
        cache = StatisticsCache(progress=self.progress)
        evaluator = Evaluator(self.extractors, self.profile.training.test_batch_gpu, cache=cache, world=self.world)
        results, _ = evaluator.score_generator(
            self.specs,
            Sampler(generator, self.profile, self.dataset),
            RealSet(self.dataset.source.root, self.profile.data.resolution, self.profile.data.mirror),
        )
        scores = {name: number for result in results for name, number in result.results.items()}
        for result in results:
            if result.problem:
                self.progress.note(f"At {nimg / 1000:g} thousand images there is no {result.metric}: {result.problem}")
        results = [result for result in results if not result.problem]
        main = self.specs[0].main_value
        value = scores.get(main, math.nan)
        larger = larger_is_better(main)
        best = False
        if self.world.is_main:
            earlier = self.run.best()
            if math.isfinite(value):
                best = earlier is None or (value >= earlier.value if larger else value <= earlier.value)
            with best_effort("Scores", self.progress):
                for result in results:
                    self.run.append_metrics({**result.line(checkpoint_name(nimg)), "nimg": nimg})
            if self.log is not None:
                self.log.event("metrics", nimg, seconds=time.time() - began, **scores)
                self.log.scalars(nimg, {f"Metrics/{name}": number for name, number in scores.items()})
            shown = ", ".join(f"{result.label} {next(iter(result.results.values())):.4g}" for result in results)
            if shown:
                self.progress.note(f"At {nimg / 1000:g} thousand images: {shown}{' (best so far)' if best else ''}.")
        scores = self.world.share(scores)
        return Evaluation(scores, value if not larger and math.isfinite(value) else None, self.world.share(best))

    @torch.no_grad()
    def diversity(self, generator: AnyGenerator) -> float | None:
        """Mean over pixels of the deviation of 64 fixed samples from each other, in grey levels, on rank 0."""
        if not self.world.is_main:
            return None
        sampler = Sampler(generator, self.profile, self.dataset)
        size, numbers = self.profile.training.test_batch_gpu, range(DIVERSITY_SAMPLES)
        images = torch.cat([sampler.images(numbers[first : first + size]) for first in numbers[::size]])
        return images.float().std(dim=0, correction=0).mean().item()
