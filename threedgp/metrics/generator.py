"""Scores a generator: everything between a checkpoint's network and its lines in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from threedgp.config.metric_names import EFFLITE0, INCEPTION, VGG16, MetricSpec
from threedgp.config.schema import Profile
from threedgp.data.dataset import TrainingSet
from threedgp.errors import DataError, WeightsError
from threedgp.metrics.cache import StatisticsCache
from threedgp.metrics.depth import DepthScores, score_depth
from threedgp.metrics.evaluate import RealSets, Result, evaluate, without_answer
from threedgp.metrics.processes import SINGLE, Processes
from threedgp.metrics.samples import GeneratedImages, Labels, Sampler, UniformLabels, require_depth
from threedgp.pretrained.embedder import FeatureExtractor, build_extractor
from threedgp.pretrained.vgg import VGG16_WEIGHTS, build_vgg16
from threedgp.pretrained.weights import find_weights
from threedgp.progress import NULL_PROGRESS, Progress


class Extractors:
    """Builds each network of `MetricSpec.extractor` once.

    Args:
        weights: extractor name -> path of its weights, where they are not in the usual places.
        download: fetch what is missing.
        allow_unverified: accept weights with another checksum; every result then says so.
        device: where the networks run.
        progress: told about downloads.
    """

    def __init__(
        self,
        *,
        weights: dict[str, Path] | None = None,
        download: bool = False,
        allow_unverified: bool = False,
        device: torch.device | str = "cpu",
        progress: Progress = NULL_PROGRESS,
    ):
        self.weights = weights or {}
        self.device = device
        self.options = {"download": download, "allow_unverified": allow_unverified, "progress": progress}
        self._built: dict[str, FeatureExtractor] = {}

    def __call__(self, name: str) -> FeatureExtractor:
        """The network; raises `WeightsError` with the ways out when its weights are missing."""
        if name not in self._built:
            build = build_vgg16 if name == VGG16 else lambda path, **options: build_extractor(name, path, **options)
            self._built[name] = build(self.weights.get(name), device=self.device, **self.options)
        return self._built[name]

    def find(self, name: str) -> None:
        """Find (or fetch) and check the weights without building anything. Raises `WeightsError`."""
        file = {VGG16: VGG16_WEIGHTS, EFFLITE0: "efficientnet-lite0", INCEPTION: "inception"}[name]
        find_weights(file, self.weights.get(name), **self.options)


def choose_extractors(
    specs: Sequence[MetricSpec], extractors: Extractors, progress: Progress = NULL_PROGRESS
) -> list[MetricSpec]:
    """The metrics as they can be computed here, before anything expensive starts.

    Precision and recall fall back to the offline network, under its own name, when the VGG-16 weights are missing.

    Raises:
        WeightsError: other weights are missing, or a file has the wrong checksum.
    """
    chosen = []
    for spec in specs:
        if spec.extractor == VGG16 and spec.extractor not in extractors.weights:
            try:
                extractors.find(VGG16)
            except WeightsError:
                spec = spec.offline()
                progress.note(
                    f"The VGG-16 weights of precision and recall are missing, so they use efficientnet_lite0 "
                    f"({spec.name}): do not compare them with published values. --download fetches the weights."
                )
        if spec.extractor is not None:
            extractors.find(spec.extractor)
        chosen.append(spec)
    return chosen


def open_labels(profile: Profile, path: Path | str | None, progress: Progress = NULL_PROGRESS) -> Labels:
    """Classes and camera angles as frequent as in the training set.

    Args:
        profile: of the run.
        path: its training set; None: it is not here, and all classes are drawn equally often.
    """
    conditional = profile.data.num_classes > 0 or profile.camera.origin.dist == "custom"
    if not conditional:
        return UniformLabels(0)
    if path is None:
        progress.note("The training set is not here, so all classes are drawn equally often.")
        return UniformLabels(profile.data.num_classes)
    return TrainingSet(
        path,
        resolution=profile.data.resolution,
        num_classes=profile.data.num_classes,
        use_depth=False,
        use_angles=profile.camera.origin.dist == "custom",
        mirror=False,
        max_images=profile.data.max_images,
        seed=profile.training.seed,
    )


def score_generator(
    specs: Sequence[MetricSpec],
    sampler: Sampler,
    real: RealSets | None,
    extractor: Callable[[str], FeatureExtractor],
    *,
    batch: int,
    checkpoint: str | None = None,
    adaptor: bool = True,
    cache: StatisticsCache | None = None,
    resume: bool = True,
    world: Processes = SINGLE,
    progress: Progress = NULL_PROGRESS,
) -> tuple[list[Result], dict[str, DepthScores]]:
    """All metrics of one generator; torch's global random state stays untouched.

    Args:
        specs: metrics of images and of depth, in any order.
        sampler: holds generator, labels and seed.
        real: the real images; None: enough for is and nfs.
        extractor: networks by name, such as `Extractors`.
        batch: generated images at a time and process.
        checkpoint: identifies the weights, so that unfinished work can be continued; None: never continued.
        adaptor: non-flatness with the learned camera (True) or the exactly frontal one.
        cache, resume, world, progress: see `evaluate`.

    Returns:
        Results in the order of `specs`, and the depth scores behind each nfs metric by name. A metric that cannot be
        computed says why in `Result.problem`; of a model that has diverged its values are NaN.

    Raises:
        UsageError: the non-flatness score of a 2D model.
    """
    flat = [spec for spec in specs if spec.family == "nfs"]
    results: dict[str, Result] = {}
    depths: dict[str, DepthScores] = {}
    images = [spec for spec in specs if spec.family != "nfs"]
    if flat:
        require_depth(sampler.generator)  # before anything is computed
    if images:
        for result in evaluate(
            images,
            lambda count: GeneratedImages(sampler, count, checkpoint),
            real,
            extractor,
            batch=batch,
            seed=sampler.seed,
            cache=cache,
            resume=resume,
            world=world,
            progress=progress,
        ):
            result.settings["resolution"] = sampler.generator.img_resolution
            results[result.metric] = result
    for spec in flat:
        try:
            results[spec.name], depths[spec.name] = score_depth(
                spec, sampler, adaptor=adaptor, world=world, progress=progress
            )
        except DataError as error:
            results[spec.name] = without_answer(spec, error)
    return [results[spec.name] for spec in specs], depths
