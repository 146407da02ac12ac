"""What an evaluation will do, decided and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from threedgp.config.metric_names import EFFLITE0, Family, metric_name, parse_metric
from threedgp.config.schema import Profile
from threedgp.data.images import image_size
from threedgp.data.source import open_source
from threedgp.errors import DataError
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class RealChoice:
    """The real images of an evaluation, and what to say about the choice."""

    path: Path
    notes: list[str] = field(default_factory=list)


def choose_real_set(given: Path | None, training_set: Path | None, resolution: int, reason: str = "") -> RealChoice:
    """The set that generated images are compared with.

    Args:
        given: the user's choice.
        training_set: what the model was trained on; the whole, unselected set lies beside it as `full-<size>`.
        resolution: side of the images in pixels.
        reason: why there is no training set.

    Raises:
        DataError: there is none, or its first image has another size.
    """
    notes = []
    if given is not None:
        path = given
    elif training_set is None:
        raise DataError(f"There are no real images to compare with. {reason} Or name a folder or zip with --data.")
    else:
        whole = training_set.with_name(f"full-{training_set.stem if training_set.is_file() else training_set.name}")
        found = [path for path in (whole, whole.with_name(f"{whole.name}.zip")) if path.exists()]
        path = found[0] if found else training_set
        if not found:
            notes.append(
                f"There is no {whole}, so the real images are the training set. Published scores use the unselected "
                "set."
            )
    source = open_source(path)
    try:
        height, width = image_size(source.read(source.names[0]))
    except DataError:
        return RealChoice(path, notes)  # counted and named while the images are read
    if (height, width) != (resolution, resolution):
        raise DataError(
            f"{path}: {source.names[0]} is {width}x{height}, but the model makes {resolution}x{resolution} images. "
            f"Prepare the set first: 3dgp data resize -s {resolution}"
        )
    return RealChoice(path, notes)


def choose_names(
    families: Sequence[Family],
    *,
    num_gen: int,
    num_real: int | None = None,
    num_depth: int = 256,
    neighbours: int = 3,
    per_image: bool = False,
    offline: bool = False,
) -> list[str]:
    """Metric names of an evaluation; an offline one leaves out what only Inception can answer.

    Args:
        families: what is asked.
        num_gen: generated images of image metrics.
        num_real: size of a random part of the real set; None: all of it.
        num_depth: depth maps of the non-flatness score.
        neighbours: k of precision and recall.
        per_image: non-flatness with a quantile for each image.
        offline: EfficientNet-Lite0 instead of Inception and VGG-16.

    Raises:
        UsageError: a number is not positive, or offline leaves nothing to do.
    """
    names = []
    for family in families:
        if family == "nfs":
            names.append(metric_name("nfs", num_depth) + ("_perimage" if per_image else ""))
        elif family != "is" or not offline or len(families) == 1:
            real = None if family == "is" else num_real
            names.append(metric_name(family, num_gen, num_real=real, offline=offline, neighbours=neighbours))
    return names


def prefers_offline(profile: Profile) -> bool:
    """Whether the profile's own metrics use the offline extractor."""
    return any(parse_metric(name).extractor == EFFLITE0 for name in profile.training.metrics)


def compare_sizes(real: Path, scored: Path, progress: Progress = NULL_PROGRESS) -> None:
    """Note when two folders start with images of different sizes: resizing then becomes part of the distance."""
    sizes = []
    for path in (real, scored):
        source = open_source(path)
        try:
            height, width = image_size(source.read(source.names[0]))
        except DataError:
            return
        sizes.append(f"{width}x{height}")
    if sizes[0] != sizes[1]:
        progress.note(
            f"{real} holds {sizes[0]} images and {scored} {sizes[1]}: their different sharpness is part of the "
            "distance. Bring both to one size first: 3dgp data resize"
        )
