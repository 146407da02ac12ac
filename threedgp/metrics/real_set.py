"""The real images that generated ones are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from threedgp.config.metric_names import MetricSpec
from threedgp.config.schema import Profile
from threedgp.data.images import image_size
from threedgp.data.pictures import Pictures
from threedgp.data.source import open_source
from threedgp.errors import DataError
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class RealSet:
    """The real side.

    Attributes:
        path: folder or zip.
        resolution: side that the images must have; None: any.
        mirror: whether metrics that are not `_full` also see flipped copies.
        seed: of random parts.
    """

    path: Path
    resolution: int | None = None
    mirror: bool = False
    seed: int = 0

    def open(self, spec: MetricSpec) -> Pictures:
        """The images that a metric compares with."""
        mirror = self.mirror and not spec.full
        return Pictures(self.path, resolution=self.resolution, mirror=mirror, limit=spec.num_real, seed=self.seed)

    @classmethod
    def of_model(
        cls,
        profile: Profile,
        given: Path | None,
        training_set: Path | None,
        *,
        reason: str = "",
        seed: int = 0,
        progress: Progress = NULL_PROGRESS,
    ) -> RealSet:
        """What a model's images are compared with.

        Args:
            given: the user's choice.
            training_set: what the model was trained on; the whole, unselected set lies beside it as `full-<size>`.
            reason: why there is no training set.

        Raises:
            DataError: there is none.
        """
        path = given or training_set
        if path is None:
            raise DataError(f"There are no real images to compare with. {reason} Or name a folder or zip with --data.")
        if given is None:
            whole = path.with_name(f"full-{path.stem if path.is_file() else path.name}")
            found = [path for path in (whole, whole.with_name(f"{whole.name}.zip")) if path.exists()]
            if found:
                path = found[0]
            else:
                progress.note(
                    f"There is no {whole}, so the real images are the training set. Published scores use the "
                    "unselected set."
                )
        open_source(path)  # a mistake is found before anything is computed
        return cls(path, profile.data.resolution, profile.data.mirror, seed)


def compare_sizes(real: Path, scored: Path, progress: Progress = NULL_PROGRESS) -> None:
    """Note when two folders start with images of different sizes: resizing then becomes part of the distance."""
    sizes = []
    for source in (open_source(real), open_source(scored)):
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
