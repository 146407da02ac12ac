"""Scores of images against a real set: each image is made once, shown to every network that needs it, and forgotten."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import threedgp
from threedgp.config.metric_names import MetricSpec
from threedgp.errors import DataError, NotFiniteError, UsageError
from threedgp.metrics.cache import StatisticsCache, digest_of, extractor_key, real_key
from threedgp.metrics.features import Bank, Images, collect
from threedgp.metrics.fid import Moments, frechet_distance
from threedgp.metrics.images import RealImages
from threedgp.metrics.inception_score import inception_score
from threedgp.metrics.kid import draw_subsets, kernel_distance
from threedgp.metrics.precision_recall import precision_recall
from threedgp.metrics.processes import SINGLE, Processes, together
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.progress import NULL_PROGRESS, Progress

REAL_BATCH = 64
MOST_NAMES = 1000  # of pictures that could not be read, in a result


class ScoredImages(Images, Protocol):
    """Images to be scored."""

    @property
    def identity(self) -> str | None:
        """Changes with everything that decides the images; None: unfinished work cannot be continued."""
        ...


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
class RealSets:
    """How to open the real side.

    Attributes:
        path: folder or zip.
        resolution: side that the images must have; None: any.
        mirror: whether metrics that are not `_full` also see flipped copies.
        seed: of random parts.
    """

    path: Any
    resolution: int | None = None
    mirror: bool = False
    seed: int = 0

    def open(self, spec: MetricSpec) -> RealImages:
        """The images that a metric compares with."""
        return RealImages(
            self.path,
            resolution=self.resolution,
            mirror=self.mirror and not spec.full,
            limit=spec.num_real,
            seed=self.seed,
        )


def without_answer(spec: MetricSpec, error: DataError) -> Result:
    """The result of a metric that cannot be computed, so that it does not cost the others theirs."""
    values = dict.fromkeys(spec.values, math.nan) if isinstance(error, NotFiniteError) else {}
    return Result(spec.name, spec.label, values, problem=str(error))


def evaluate(
    specs: Sequence[MetricSpec],
    generated: Callable[[int], ScoredImages],
    real: RealSets | None,
    extractor: Callable[[str], FeatureExtractor],
    *,
    batch: int,
    seed: int = 0,
    cache: StatisticsCache | None = None,
    resume: bool = True,
    label: str = "Generated images",
    world: Processes = SINGLE,
    progress: Progress = NULL_PROGRESS,
) -> list[Result]:
    """Compute metrics of images against a real set, each image being made and shown to each network once.

    Args:
        specs: metrics of images (any family but nfs).
        generated: makes the first N images to be scored.
        real: the real side; None is enough for the Inception score.
        extractor: builds a network by the name in `MetricSpec.extractor`; asked for every network before any work.
        batch: generated images at a time and process.
        seed: of the random choices of the metrics themselves, and recorded in the results.
        cache: where statistics of real images are kept; None: they are always computed.
        resume: continue and save unfinished work in the cache's folder.
        label: what progress calls the scored images.
        world: processes that share the work; all get the same results.
        progress: told on the first process only.

    Returns:
        In the order of `specs`. A metric that cannot be computed says why in `Result.problem`. Where pictures of a
        folder cannot be read, the metric is named after the number of those that can, and `left_out_real` and
        `left_out_gen` of its settings name the others.

    Raises:
        DataError: no real images that can be read.
    """
    networks = {name: extractor(name) for name in dict.fromkeys(spec.extractor for spec in specs)}
    if real is None and any(spec.needs_real for spec in specs):
        raise UsageError("This metric compares with real images: name their folder with --data.")
    results: dict[str, Result] = {}
    for count in dict.fromkeys(spec.num_gen for spec in specs):
        begin = time.monotonic()
        group = [spec for spec in specs if spec.num_gen == count]
        reals = _real_banks(group, real, networks, cache, resume, world, progress)
        folder = cache if resume else None
        try:
            banks = _generated_banks(group, generated(count), networks, batch, folder, label, world, progress)
        except NotFiniteError as error:
            results |= {spec.name: without_answer(spec, error) for spec in group}
            continue
        for spec in group:
            try:
                result = _score_once(spec, banks[spec.extractor], reals.get(spec.name), seed, world, progress)
            except DataError as error:
                result = without_answer(spec, error)
            result.settings.update(seed=seed, time=time.monotonic() - begin, num_processes=world.size)
            results[spec.name] = result
    return [results[spec.name] for spec in specs]


def needs(spec: MetricSpec) -> dict[str, bool]:
    """What a metric asks a bank to keep beside the moments."""
    return {"rows": spec.family in ("kid", "pr"), "logits": spec.family == "is"}


def _real_banks(
    specs: Sequence[MetricSpec],
    real: RealSets | None,
    networks: Mapping[str, FeatureExtractor],
    cache: StatisticsCache | None,
    resume: bool,
    world: Processes,
    progress: Progress,
) -> dict[str, Bank]:
    """A bank for each metric that needs one; metrics that see the same real images share it."""
    wanted: dict[tuple, tuple[RealImages, list[MetricSpec]]] = {}
    for spec in specs:
        if spec.needs_real and real is not None:
            images = real.open(spec)
            wanted.setdefault((spec.extractor, images.limit, images.mirror), (images, []))[1].append(spec)
    banks = {}
    for (name, _, _), (images, members) in wanted.items():
        bank = Bank(networks[name], len(images), rows=any(needs(spec)["rows"] for spec in members))
        _fill_real(bank, images, cache, resume, world, progress)
        if world.share(bank.statistics.count) == 0:  # only the first process reads the store
            raise DataError(f"None of the {len(images)} images in {images.path} could be read.")
        banks |= {spec.name: bank for spec in members}
    return banks


def _fill_real(
    bank: Bank,
    images: RealImages,
    cache: StatisticsCache | None,
    resume: bool,
    world: Processes,
    progress: Progress,
) -> None:
    key = world.share(real_key(images, bank.extractor) if world.rank == 0 else None)
    if world.share(cache is not None and world.rank == 0 and cache.load(key, bank)):
        return
    parts = cache.parts(digest_of([key, bank.keep_rows])) if cache is not None and resume else None
    collect(images, [bank], batch=REAL_BATCH, world=world, parts=parts, label="Real images", progress=progress)
    bank.left_out = _left_out(images, bank, world, progress)
    if world.rank == 0 and cache is not None:
        if not bank.left_out:  # a picture may only be unreadable for the moment
            cache.save(key, bank)
        if parts is not None:
            shutil.rmtree(parts, ignore_errors=True)


def _generated_banks(
    specs: Sequence[MetricSpec],
    images: ScoredImages,
    networks: Mapping[str, FeatureExtractor],
    batch: int,
    cache: StatisticsCache | None,
    label: str,
    world: Processes,
    progress: Progress,
) -> dict[str, Bank]:
    banks = {}
    for name in dict.fromkeys(spec.extractor for spec in specs):
        kept = [needs(spec) for spec in specs if spec.extractor == name]
        banks[name] = Bank(
            networks[name],
            len(images),
            rows=any(need["rows"] for need in kept),
            logits=any(need["logits"] for need in kept),
        )
    parts = None
    identity = world.share(images.identity if world.rank == 0 else None)
    if cache is not None and identity is not None:
        asked = [[extractor_key(bank.extractor), bank.keep_rows, bank.keep_logits] for bank in banks.values()]
        parts = cache.parts(digest_of([identity, len(images), asked]))
    collect(
        images,
        list(banks.values()),
        batch=batch,
        world=world,
        parts=parts,
        label=label,
        progress=progress,
    )
    for bank in banks.values():
        bank.left_out = _left_out(images, bank, world, progress)
    if parts is not None and world.rank == 0:
        shutil.rmtree(parts, ignore_errors=True)
    return banks


def _left_out(images: ScoredImages, bank: Bank, world: Processes, progress: Progress) -> list[str]:
    """Names of a folder's pictures that could not be read, which is said where they are first met."""
    if not isinstance(images, RealImages):
        return []
    met = {name: reason for part in world.gather(images.problems) for name, reason in part.items()}
    unseen = {images.name(number) for number in (~bank.seen).nonzero()[:, 0].tolist()}
    reasons = {**dict.fromkeys(unseen, "it could not be read"), **images.source.problems, **met}
    names = sorted(reasons)
    if names and world.rank == 0:
        example = f"{names[0]}: {reasons[names[0]]}"
        progress.note(f"{len(names)} of the pictures in {images.path} cannot be read and do not count. {example}.")
    return names


def _score_once(
    spec: MetricSpec, bank: Bank, real: Bank | None, seed: int, world: Processes, progress: Progress
) -> Result:
    """`_score` on the first process, its answer or its error on all."""
    first = world.rank == 0
    result = together(world, lambda: _score(spec, bank, real, seed, progress) if first else None)
    return Result(**world.share(asdict(result) if result else None))


def _score(spec: MetricSpec, bank: Bank, real: Bank | None, seed: int, progress: Progress) -> Result:
    """One metric from finished banks; it is named after the images that there really were."""
    extractor = bank.extractor
    spec = spec.of(bank.statistics.count) if 0 < bank.statistics.count < spec.num_gen else spec
    settings: dict[str, Any] = {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "weights_verified": extractor.weights_verified,
        "num_real": real.statistics.count if real is not None else 0,
        "num_gen": bank.statistics.count,
        "version": threedgp.__version__,
    }
    for side, names in (("real", real.left_out if real is not None else []), ("gen", bank.left_out)):
        if names:
            settings[f"left_out_{side}"] = names[:MOST_NAMES]
    match spec.family:
        case "fid":
            moments = real.statistics.moments(), bank.statistics.moments()
            if min(m.count for m in moments) < 2:
                raise DataError(f"{spec.label} needs at least 2 images on each side: one image has no covariance.")
            values = [frechet_distance(*moments)]
            warn_if_few(spec, *moments, progress)
        case "kid":
            x, y = real.rows(), bank.rows()
            distance = kernel_distance(x, y, *draw_subsets(len(x), len(y), seed=seed))
            values = [distance.mean, distance.std]
        case "pr":
            device = extractor.device
            scores = precision_recall(real.rows().to(device), bank.rows().to(device), neighbours=spec.neighbours)
            values = [scores.precision, scores.recall]
        case "is":
            score = inception_score(bank.logits().double().softmax(dim=1))
            values = [score.mean, score.std]
    return Result(spec.name, spec.label, dict(zip(spec.values, values, strict=True)), settings)


def warn_if_few(spec: MetricSpec, real: Moments, generated: Moments, progress: Progress) -> None:
    """Say what a Frechet distance from few images is worth."""
    dims = real.mean.numel()
    few = [f"{m.count} {side} images" for m, side in ((real, "real"), (generated, "generated")) if m.count <= dims]
    if few:
        progress.note(
            f"{spec.label} from only {' and '.join(few)} with {dims}-dimensional features is biased upwards: compare "
            "it only with values from the same numbers of images."
        )
