"""Scores of images against a real set: each image is made once, shown to every network that needs it, and forgotten."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import threedgp
from threedgp.config.metric_names import MetricSpec
from threedgp.data.pictures import Images, Pictures
from threedgp.errors import DataError, NotFiniteError, UsageError
from threedgp.metrics.bank import Bank, StatisticsCache, extractor_key, fill, real_key
from threedgp.metrics.fid import Moments, frechet_distance
from threedgp.metrics.inception_score import inception_score
from threedgp.metrics.kid import draw_subsets, kernel_distance
from threedgp.metrics.nfs import DepthScores, score_depth
from threedgp.metrics.precision_recall import precision_recall
from threedgp.metrics.real_set import RealSet
from threedgp.metrics.scored_samples import GeneratedImages, Sampler, require_depth
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.processes import SINGLE, World, together
from threedgp.progress import NULL_PROGRESS, Progress

REAL_BATCH = 64
MOST_NAMES = 1000  # of pictures that could not be read, in a result
KEPT = {"kid": "rows", "pr": "rows", "is": "logits"}  # what a family needs of every image beside the moments


@dataclass(frozen=True)
class Result:
    """The answer to one metric.

    Attributes:
        metric: canonical name.
        label: name for people.
        results: value name -> number, the deciding one first; NaN where a model's output is not finite, empty where
            there is no answer for another reason.
        settings: everything else worth knowing: extractor, weights_sha256, seed, num_real, num_gen, time, ...
        problem: why there is no answer.
    """

    metric: str
    label: str
    results: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def line(self, checkpoint: str | None) -> dict[str, Any]:
        """As one line of metrics.jsonl."""
        return {"metric": self.metric, "results": self.results, "checkpoint": checkpoint, **self.settings}


@dataclass(frozen=True)
class Evaluator:
    """Computes scores. A metric that cannot be computed says why in `Result.problem` and costs no other its answer.

    Attributes:
        extractor: builds a network by the name in `MetricSpec.extractor`.
        batch: images to be scored at a time and process.
        seed: of the random choices of the metrics themselves, and recorded in the results.
        cache: keeps statistics of real images and unfinished work; None: neither is kept.
        world: processes that share the work; all get the same results.
        progress: of the first process.
    """

    extractor: Callable[[str], FeatureExtractor]
    batch: int
    seed: int = 0
    cache: StatisticsCache | None = None
    world: World = SINGLE
    progress: Progress = NULL_PROGRESS

    def score_generator(
        self,
        specs: Sequence[MetricSpec],
        sampler: Sampler,
        real: RealSet | None,
        *,
        checkpoint: str | None = None,
        adaptor: bool = True,
    ) -> tuple[list[Result], dict[str, DepthScores]]:
        """All metrics of one generator; torch's global random state stays untouched.

        Args:
            specs: metrics of images and of depth, in any order.
            sampler: holds generator, labels and seed.
            real: the real images; None: enough for is and nfs.
            checkpoint: identifies the weights, so that unfinished work can be continued; None: never continued.
            adaptor: non-flatness with the learned camera (True) or the exactly frontal one.

        Returns:
            Results in the order of `specs`, and the depth scores behind each nfs metric by name. Of a model that has
            diverged the values are NaN.

        Raises:
            UsageError: the non-flatness score of a 2D model.
        """
        flat = [spec for spec in specs if spec.family == "nfs"]
        if flat:
            require_depth(sampler.generator)  # before anything is computed
        images = [spec for spec in specs if spec.family != "nfs"]
        found = self.score_images(images, lambda count: GeneratedImages(sampler, count, checkpoint), real)
        results = dict(zip((spec.name for spec in images), found, strict=True))
        depths: dict[str, DepthScores] = {}
        for spec in flat:
            begin = time.monotonic()
            try:
                depths[spec.name] = score_depth(
                    spec, sampler, adaptor=adaptor, world=self.world, progress=self.progress
                )
                values = dict(zip(spec.values, depths[spec.name].values, strict=True))
                result = Result(spec.name, spec.label, values, {"num_gen": spec.num_gen, "adaptor": adaptor})
            except DataError as error:
                result = _without_answer(spec, error)
            results[spec.name] = self._signed(result, begin)
        for result in results.values():
            result.settings["resolution"] = sampler.generator.img_resolution
        return [results[spec.name] for spec in specs], depths

    def score_images(
        self, specs: Sequence[MetricSpec], generated: Callable[[int], Images], real: RealSet | None
    ) -> list[Result]:
        """Compare images with a real set, each image being made and shown to each network once.

        Args:
            specs: metrics of images (any family but nfs).
            generated: makes the first N images to be scored.
            real: None is enough for the Inception score.

        Returns:
            In the order of `specs`. Where pictures of a folder cannot be read, the metric is named after the number of
            those that can, and `left_out_real` and `left_out_gen` of its settings name the others.

        Raises:
            DataError: no real images that can be read.
        """
        for spec in specs:
            self.extractor(str(spec.extractor))  # all are there before any work
        if real is None and any(spec.needs_real for spec in specs):
            raise UsageError("This metric compares with real images: name their folder with --data.")
        results: dict[str, Result] = {}
        for count in dict.fromkeys(spec.num_gen for spec in specs):
            begin = time.monotonic()
            group = [spec for spec in specs if spec.num_gen == count]
            reals = self._real_banks(group, real) if real is not None else {}
            try:
                banks = self._generated_banks(group, generated(count))
            except NotFiniteError as error:
                results |= {spec.name: _without_answer(spec, error) for spec in group}
                continue
            for spec in group:
                try:
                    result = self._score(spec, banks[str(spec.extractor)], reals.get(spec.name))
                except DataError as error:
                    result = _without_answer(spec, error)
                results[spec.name] = self._signed(result, begin)
        return [results[spec.name] for spec in specs]

    def _real_banks(self, specs: Sequence[MetricSpec], real: RealSet) -> dict[str, Bank]:
        """A bank for each metric that needs one; metrics that see the same real images share it."""
        wanted: dict[tuple, tuple[Pictures, list[MetricSpec]]] = {}
        for spec in specs:
            if spec.needs_real:
                images = real.open(spec)
                wanted.setdefault((spec.extractor, images.limit, images.mirror), (images, []))[1].append(spec)
        banks: dict[str, Bank] = {}
        for images, members in wanted.values():
            bank = self._bank(members, len(images))
            self._fill_real(bank, images)
            if self.world.share(bank.statistics.count) == 0:  # only the first process reads the store
                raise DataError(f"None of the {len(images)} images in {images.path} could be read.")
            banks |= {spec.name: bank for spec in members}
        return banks

    def _fill_real(self, bank: Bank, images: Pictures) -> None:
        """From the cache if it can be."""
        world, cache = self.world, self.cache
        key = world.share(real_key(images, bank.extractor) if world.is_main else None)
        if world.share(cache is not None and world.is_main and cache.load(key, bank)):
            return
        parts = self._fill([bank], images, REAL_BATCH, "Real images")
        if world.is_main and cache is not None:
            if not bank.left_out:  # a picture may only be unreadable for the moment
                cache.save(key, bank)
            cache.forget(parts)

    def _generated_banks(self, specs: Sequence[MetricSpec], images: Images) -> dict[str, Bank]:
        """A bank for each network, by its name."""
        names = dict.fromkeys(str(spec.extractor) for spec in specs)
        banks = {name: self._bank([spec for spec in specs if spec.extractor == name], len(images)) for name in names}
        parts = self._fill(list(banks.values()), images, self.batch, "Scored images")
        if self.world.is_main and self.cache is not None:
            self.cache.forget(parts)
        return banks

    def _fill(self, banks: list[Bank], images: Images, batch: int, label: str) -> Path | None:
        """Returns where the unfinished work lay, for when it is no longer needed."""
        parts = None
        identity = self.world.share(images.identity if self.world.is_main else None)
        if self.cache is not None and identity is not None:
            asked = [[extractor_key(bank.extractor), bank.kept] for bank in banks]
            parts = self.cache.parts([identity, len(images), asked])
        fill(images, banks, batch=batch, world=self.world, parts=parts, label=label, progress=self.progress)
        for bank in banks:
            bank.left_out = self._left_out(images, bank)
        return parts

    def _bank(self, specs: Sequence[MetricSpec], total: int) -> Bank:
        """An empty bank for metrics of one network."""
        kept = sorted({KEPT[spec.family] for spec in specs if spec.family in KEPT})
        return Bank(self.extractor(str(specs[0].extractor)), total, kept)

    def _left_out(self, images: Images, bank: Bank) -> list[str]:
        """Names of a folder's pictures that could not be read, which is said where they are first met."""
        if not isinstance(images, Pictures):
            return []
        met = {name: reason for part in self.world.gather(images.problems) for name, reason in part.items()}
        unseen = {images.name(number) for number in (~bank.seen).nonzero()[:, 0].tolist()}
        reasons = {**dict.fromkeys(unseen, "it could not be read"), **images.source.problems, **met}
        names = sorted(reasons)
        if names and self.world.is_main:
            self.progress.note(
                f"{len(names)} of the pictures in {images.path} cannot be read and do not count. "
                f"{names[0]}: {reasons[names[0]]}."
            )
        return names

    def _score(self, spec: MetricSpec, bank: Bank, real: Bank | None) -> Result:
        """One metric, computed by the first process, its answer or its error on all."""
        world = self.world
        result = together(
            world, lambda: asdict(_score(spec, bank, real, self.seed, self.progress)) if world.is_main else {}
        )
        return Result(**world.share(result))

    def _signed(self, result: Result, begin: float) -> Result:
        made = {"seed": self.seed, "time": time.monotonic() - begin, "num_processes": self.world.size}
        result.settings.update(made, version=threedgp.__version__)
        return result


def _without_answer(spec: MetricSpec, error: DataError) -> Result:
    values = dict.fromkeys(spec.values, math.nan) if isinstance(error, NotFiniteError) else {}
    return Result(spec.name, spec.label, values, problem=str(error))


def _score(spec: MetricSpec, bank: Bank, real: Bank | None, seed: int, progress: Progress) -> Result:
    """One metric from finished banks; it is named after the images that there really were."""
    extractor, count = bank.extractor, bank.statistics.count
    spec = spec.of(count) if 0 < count < spec.num_gen else spec
    settings: dict[str, Any] = {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "weights_verified": extractor.weights_verified,
        "num_real": real.statistics.count if real is not None else 0,
        "num_gen": count,
    }
    for side, names in (("real", real.left_out if real is not None else []), ("gen", bank.left_out)):
        if names:
            settings[f"left_out_{side}"] = names[:MOST_NAMES]
    values: tuple[float, ...]
    if real is None:  # only the Inception score asks for no real images
        values = inception_score(bank.table("logits").double().softmax(dim=1))
    elif spec.family == "fid":
        moments = real.statistics.moments(), bank.statistics.moments()
        if min(m.count for m in moments) < 2:
            raise DataError(f"{spec.label} needs at least 2 images on each side: one image has no covariance.")
        values = (frechet_distance(*moments),)
        _warn_if_few(spec, *moments, progress)
    elif spec.family == "kid":
        x, y = real.table("rows"), bank.table("rows")
        values = kernel_distance(x, y, *draw_subsets(len(x), len(y), seed=seed))
    else:
        x, y = (side.table("rows").to(extractor.device) for side in (real, bank))
        values = precision_recall(x, y, neighbours=spec.neighbours)
    return Result(spec.name, spec.label, dict(zip(spec.values, values, strict=True)), settings)


def _warn_if_few(spec: MetricSpec, real: Moments, generated: Moments, progress: Progress) -> None:
    """Say what a Frechet distance from few images is worth."""
    dims = real.mean.numel()
    few = [f"{m.count} {side} images" for m, side in ((real, "real"), (generated, "generated")) if m.count <= dims]
    if few:
        progress.note(
            f"{spec.label} from only {' and '.join(few)} with {dims}-dimensional features is biased upwards: compare "
            "it only with values from the same numbers of images."
        )
