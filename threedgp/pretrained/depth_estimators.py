"""Monocular depth estimators behind one interface: LeReS, models of the transformers library, and a synthetic one.

All give depth in which larger is farther, known up to scale and shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgp.errors import DataError, MissingExtraError, UsageError, WeightsError
from threedgp.pretrained.disparity import depth_of_disparity
from threedgp.pretrained.leres import NETWORKS, load_leres, preprocess
from threedgp.pretrained.weights import find_weights
from threedgp.progress import NULL_PROGRESS, Progress

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
HUB_PREFIX = "hf:"
SYNTHETIC_SIDE = 64


class DepthEstimator(Protocol):
    """Turns pictures into depth. `prepare` may run in any thread, `predict` in one."""

    def prepare(self, image: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 to the network's input for one picture; inputs of one shape can share a batch."""
        ...

    def predict(self, inputs: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """A batch of inputs, and each picture's (H, W), to one float32 depth map [h, w] a picture, of any size."""
        ...


@dataclass(frozen=True)
class EstimatorSpec:
    """Which estimator, completely.

    Attributes:
        name: "leres", "synthetic" or "hf:<model-id>".
        backbone: LeReS encoder; None to recognise it from the checkpoint.
        weights: LeReS checkpoint.
        weights_sha256: its checksum.
        dtype: precision of the network.
        output: what the network returns: depth (larger is farther) or disparity (larger is nearer).
        download: whether a transformers model may be downloaded.
    """

    name: str
    backbone: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    dtype: Precision = "fp32"
    output: Literal["depth", "disparity"] = "depth"
    download: bool = False

    def identity(self) -> dict[str, Any]:
        """All that decides the values of the maps, for the manifest."""
        if self.synthetic:
            return {"estimator": "synthetic"}
        entries = {"estimator": self.name, "dtype": self.dtype}
        if self.name == "leres":
            return {**entries, "weights_sha256": self.weights_sha256}
        return {**entries, "output": self.output}

    @property
    def synthetic(self) -> bool:
        return self.name == "synthetic"

    def build(self, device: str) -> DepthEstimator:
        """Load the network onto a device ("cpu", "cuda", "cuda:1").

        Raises:
            WeightsError: the checkpoint does not fit, or the model cannot be found.
            MissingExtraError: transformers is not installed.
        """
        if self.name == "synthetic":
            return SyntheticEstimator()
        if self.name == "leres":
            assert self.weights is not None
            return LeReSEstimator(self.weights, self.backbone, device, self.dtype)
        return TransformersEstimator(self.name.removeprefix(HUB_PREFIX), device, self.dtype, self.output, self.download)


def choose_estimator(
    name: str = "leres",
    *,
    backbone: str | None = None,
    weights: Path | str | None = None,
    sha256: str | None = None,
    dtype: Precision = "fp32",
    prediction: Literal["auto", "depth", "disparity"] = "auto",
    download: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> EstimatorSpec:
    """Check the choice of an estimator and find its weights, without loading them.

    For LeReS without a backbone and weights, ResNeXt-101 is looked for first, then ResNet-50.

    Raises:
        UsageError: no such estimator or backbone, or it cannot be known what the network returns.
        WeightsError: no LeReS checkpoint or transformers model was found, with the ways out.
        MissingExtraError: transformers is not installed.
    """
    if name.startswith(HUB_PREFIX) and name != HUB_PREFIX:
        if prediction == "auto":
            prediction = _known_output(name.removeprefix(HUB_PREFIX), download)
        return EstimatorSpec(name, dtype=dtype, output=prediction, download=download)
    if name == "synthetic":
        return EstimatorSpec(name)
    if name != "leres":
        raise UsageError(f"There is no depth estimator '{name}'. Choose leres, hf:<model-id> or synthetic.")
    if backbone is not None and backbone not in NETWORKS:
        raise UsageError(f"LeReS has no backbone '{backbone}'. Choose {' or '.join(NETWORKS)}.")
    options: dict[str, Any] = {"sha256": sha256, "download": download, "progress": progress}
    if backbone is not None or weights is not None:
        found = find_weights(f"leres-{backbone or 'resnext101'}", weights, **options)
    else:
        try:
            found = find_weights("leres-resnext101", **options)
        except WeightsError as missing:
            try:
                found = find_weights("leres-resnet50", **options)
            except WeightsError:
                raise WeightsError(
                    f"{missing}\nThe smaller network works too: --backbone resnet50 (res50.pth)."
                ) from None
    return EstimatorSpec("leres", backbone, str(found.path), found.sha256, dtype)


class LeReSEstimator:
    """LeReS at 448x448 (see `leres`)."""

    def __init__(self, weights: str, backbone: str | None, device: str, dtype: Precision):
        self.network = load_leres(weights, backbone).to(device)
        self.device, self.dtype = torch.device(device), dtype

    def prepare(self, image: np.ndarray) -> Tensor:
        return preprocess(image)

    @torch.no_grad()
    def predict(self, inputs: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        with torch.autocast(self.device.type, PRECISIONS[self.dtype], enabled=self.dtype != "fp32"):
            depth = self.network(inputs.to(self.device))[:, 0]  # [batch, 448, 448]
        return list(depth.float().cpu())


class TransformersEstimator:
    """A depth model of the transformers library, from its cache, a local folder, or (with leave) the hub."""

    def __init__(self, model: str, device: str, dtype: Precision, output: str, download: bool):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        local = {"local_files_only": not download}
        with _loading(model, download):
            self.processor = AutoImageProcessor.from_pretrained(model, **local)
            self.network = AutoModelForDepthEstimation.from_pretrained(model, use_safetensors=True, **local)
        self.network.eval().requires_grad_(False).to(device)
        self.device, self.dtype = torch.device(device), dtype
        self.disparity = output == "disparity"

    def prepare(self, image: np.ndarray) -> Tensor:
        try:  # a picture one pixel high has an ambiguous channel axis unless it is named
            prepared = self.processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        except (ValueError, RuntimeError) as error:
            raise DataError(f"the depth model cannot take it ({' '.join(str(error).split())[:120]})") from None
        return prepared["pixel_values"][0]

    @torch.no_grad()
    def predict(self, inputs: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        import inspect

        with torch.autocast(self.device.type, PRECISIONS[self.dtype], enabled=self.dtype != "fp32"):
            outputs = self.network(pixel_values=inputs.to(self.device))
        outputs.predicted_depth = outputs.predicted_depth.float()
        finish = self.processor.post_process_depth_estimation  # undoes the model's padding and scaling
        extra = {"source_sizes": sizes} if "source_sizes" in inspect.signature(finish).parameters else {}
        maps = [entry["predicted_depth"].float().cpu() for entry in finish(outputs, target_sizes=sizes, **extra)]
        return [torch.from_numpy(depth_of_disparity(depth.numpy())) for depth in maps] if self.disparity else maps


class SyntheticEstimator:
    """Made-up depth for trying the pipeline without weights: nearer at the bottom, in the middle, and where bright."""

    def prepare(self, image: np.ndarray) -> Tensor:
        x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        return F.interpolate(x, (SYNTHETIC_SIDE, SYNTHETIC_SIDE), mode="bilinear", antialias=True)[0]

    def predict(self, inputs: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        luminance = (inputs * weights).sum(1, keepdim=True)
        for _ in range(2):  # two box filters: smooth enough for a surface
            luminance = F.avg_pool2d(F.pad(luminance, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
        line = torch.linspace(-1, 1, SYNTHETIC_SIDE)
        y, x = torch.meshgrid(line, line, indexing="ij")
        depth = 2 - 0.5 * y + 0.5 * (x**2 + y**2) - luminance[:, 0]
        return list(depth)


@contextmanager
def _loading(model: str, download: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        how = "" if download else " It may be missing in the local cache: allow the download with --download."
        raise WeightsError(f"The depth model '{model}' could not be loaded ({reason}).{how}") from None


def _known_output(model: str, download: bool) -> Literal["depth", "disparity"]:
    """Whether a transformers model returns depth or disparity, by its configuration.

    Raises:
        UsageError: it cannot be known; the user must say.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise MissingExtraError("transformers", "depth", "A depth estimator from the hub") from None
    with _loading(model, download):
        config = AutoConfig.from_pretrained(model, local_files_only=not download)
    kind = config.model_type
    if kind == "depth_anything":
        return "disparity" if config.depth_estimation_type == "relative" else "depth"
    if kind in ("glpn", "zoedepth", "depth_pro", "prompt_depth_anything"):
        return "depth"
    if kind == "dpt":
        # Metric heads, fine-tuned on NYU or KITTI on top of DINOv2, are the ones with a projection before the head.
        if config.add_projection:
            return "depth"
        backbone = getattr(config.backbone_config, "model_type", None)
        if backbone != "dinov2" and not any(word in Path(model).name.lower() for word in ("nyu", "kitti", "metric")):
            return "disparity"
    raise UsageError(
        f"It cannot be known whether '{model}' returns depth or disparity: say --prediction depth (larger is farther) "
        "or --prediction disparity (larger is nearer)."
    )
