"""A trained model with everything that rendering it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from threedgp.camera.camera import Camera
from threedgp.config.schema import Profile
from threedgp.data.labels import DATASET_JSON, Labels, parse_labels, read_labels
from threedgp.data.source import open_source
from threedgp.errors import CheckpointError
from threedgp.files import read_json
from threedgp.inference.cameras import mean_camera, posterior_cameras
from threedgp.inference.latents import Sample, StyleMapper
from threedgp.models.build import build_generator
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.runs.catalog import checkpoint_nimg, read_manifest
from threedgp.runs.run import IMPORTED, load_generator, run_of

WEIGHTS = "G_ema.safetensors"


@dataclass
class TrainedModel:
    """A generator in evaluation mode and what is known about it.

    Attributes:
        generator: the averaged one.
        profile: of its run.
        run, checkpoint: names.
        sha256: of the weights.
        class_names: by number, where the training set is at hand and names them.
        data_angles: [N, 3] camera angles of the training set, if it has them.
        imported: whether it is a snapshot of the original.
    """

    generator: Generator | StyleGAN2Generator
    profile: Profile
    run: str
    checkpoint: str
    sha256: str
    class_names: list[str] | None = None
    data_angles: Tensor | None = None
    imported: bool = False

    def __post_init__(self):
        self._mapper: StyleMapper | None = None
        self._mean: Camera | None = None

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device | str, data: Path | None = None) -> TrainedModel:
        """Load a checkpoint.

        Args:
            checkpoint: its folder, inside a run.
            device: where it goes.
            data: its training set, which knows the names of the classes; None: not here.

        Raises:
            CheckpointError: damaged, of another profile, without an averaged generator, or not inside a run.
            DataError: `data` cannot be read.
        """
        run = run_of(checkpoint)
        files = read_manifest(checkpoint)["files"]
        if WEIGHTS not in files:
            raise CheckpointError(f"{checkpoint} has no averaged generator ({WEIGHTS}); it cannot be rendered.")
        generator = load_generator(checkpoint, device)
        names, angles = (None, None) if data is None else data_facts(data, run.profile.data.num_classes)
        sha256, imported = files[WEIGHTS]["sha256"], (run.folder / IMPORTED).is_file()
        return cls(generator, run.profile, run.name, Path(checkpoint).name, sha256, names, angles, imported)

    @classmethod
    def untrained(cls, profile: Profile, device: torch.device | str) -> TrainedModel:
        """The profile's networks as they are before training, always the same: for measuring speed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generator = build_generator(profile)
        generator = generator.eval().requires_grad_(False).to(device)
        return cls(generator, profile, profile.name, "000000000", "untrained")

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    @property
    def kimg(self) -> str:
        """Thousands of real images seen, for people."""
        return f"{checkpoint_nimg(self.checkpoint) / 1000:g}"

    @property
    def is_2d(self) -> bool:
        return isinstance(self.generator, StyleGAN2Generator)

    def mean_camera(self) -> Camera:
        """The canonical camera of all samples, see `threedgp.inference.cameras.mean_camera`."""
        if self._mean is None:
            self._mean = mean_camera(self.generator, self.profile, self.data_angles)
        return self._mean

    def canonical_cameras(self, samples: list[Sample], kind: str) -> Camera:
        """The camera of each sample: the `mean` one, or a `posterior` one of its own."""
        if kind == "mean":
            return self.mean_camera().repeat_interleave(len(samples))
        return posterior_cameras(self.generator, self.profile, samples, self.data_angles)

    def styles(self, samples: list[Sample], psi: float) -> Tensor:
        """Styles [S, num_ws, w_dim]. A mapping network that sees cameras is shown the mean one."""
        if self._mapper is None:
            sees_camera = self.generator.mapping.camera_encoding is not None
            self._mapper = StyleMapper(self.generator.mapping, self.mean_camera().angles if sees_camera else None)
        return self._mapper(samples, psi)

    def caption(self, sample: Sample) -> str:
        """What a sample is, in words."""
        if sample.cls is None:
            return f"seed {sample.seed}"
        name = self.class_names[sample.cls] if self.class_names else f"class {sample.cls}"
        return f"{name}, seed {sample.seed}"

    def description(self, sample: Sample) -> dict[str, object]:
        """What a sample is, for the JSON beside a render."""
        entry: dict[str, object] = {"label": sample.label, "seed": sample.seed}
        if sample.cls is not None:
            entry["class"] = sample.cls
            entry["class_name"] = self.class_names[sample.cls] if self.class_names else None
        return entry


def data_facts(path: Path, num_classes: int) -> tuple[list[str] | None, Tensor | None]:
    """Names of the classes, and camera angles [N, 3], that a training set's dataset.json knows.

    Raises:
        DataError: it cannot be read.
    """
    if path.is_dir():  # no need to list a large folder
        content = read_json(path / DATASET_JSON) if (path / DATASET_JSON).is_file() else None
        labels = Labels() if content is None else parse_labels(content, str(path / DATASET_JSON))
    else:
        labels = read_labels(open_source(path)) or Labels()
    names = labels.classes if labels.classes is not None and len(labels.classes) == num_classes else None
    angles = torch.tensor(list(labels.angles.values())) if labels.angles else None
    return names, angles
