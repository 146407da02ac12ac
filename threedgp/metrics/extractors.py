"""The networks of an evaluation, decided and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from threedgp.config.metric_names import VGG16, MetricSpec
from threedgp.errors import WeightsError
from threedgp.pretrained.embedder import FeatureExtractor, build_extractor
from threedgp.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True)
class Extractors:
    """Builds each network of `MetricSpec.extractor` once.

    Attributes:
        weights: extractor name -> path of its weights, where they are not in the usual places.
        download: fetch what is missing.
        allow_unverified: accept weights with another checksum; every result then says so.
        device: where the networks run.
        progress: told about downloads and stand-ins.
    """

    weights: Mapping[str, Path] = field(default_factory=dict)
    download: bool = False
    allow_unverified: bool = False
    device: torch.device | str = "cpu"
    progress: Progress = NULL_PROGRESS
    built: dict[str, FeatureExtractor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, name: str) -> FeatureExtractor:
        """The network; raises `WeightsError` with the ways out when its weights are missing."""
        if name not in self.built:
            self.built[name] = build_extractor(
                name,
                self.weights.get(name),
                download=self.download,
                device=self.device,
                allow_unverified=self.allow_unverified,
                progress=self.progress,
            )
        return self.built[name]

    def choose(self, specs: Sequence[MetricSpec]) -> list[MetricSpec]:
        """The metrics as they can be computed here; builds their networks.

        Precision and recall fall back to the offline network, under its own name, when the VGG-16 weights are missing.

        Raises:
            WeightsError: other weights are missing, or a file has the wrong checksum.
        """
        chosen = []
        for spec in specs:
            try:
                if spec.extractor is not None:
                    self(spec.extractor)
            except WeightsError:
                if spec.extractor != VGG16 or VGG16 in self.weights:
                    raise
                spec = spec.offline()
                self.progress.note(
                    "The VGG-16 weights of precision and recall are missing, so they use efficientnet_lite0 "
                    f"({spec.name}): do not compare them with published values. --download fetches the weights."
                )
                self(str(spec.extractor))
            chosen.append(spec)
        return chosen
