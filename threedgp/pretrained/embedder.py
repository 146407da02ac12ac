"""Feature extractors: pictures in, one row of numbers per picture out.

One small interface serves instance selection, the embeddings that the discriminator learns to predict (3DGP,
arXiv 2303.01416, knowledge distillation) and the metrics: `extractor(images)` takes uint8 RGB [batch, 3, H, W] and
returns float32 [batch, dim] on the extractor's device.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from threedgp.errors import UsageError, WeightsError
from threedgp.pretrained.names import INCEPTION_NAME, OFFLINE_NAME, VGG16_NAME, canonical_name
from threedgp.pretrained.weights import EFFICIENTNET_LITE0, FoundWeights, WeightFile, find_weights, load_state
from threedgp.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

# `resnet50` alone means other weights in each timm version; published embeddings used these.
TIMM_TAGS = {"resnet50": "resnet50.ram_in1k"}
CPU_PART = 4  # images at a time through a network on a CPU


@dataclass(frozen=True)
class Preprocess:
    """How a timm network wants its pictures: shorter side resized, centre crop, normalised channels."""

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False  # to a square, whatever the shape

    def __str__(self) -> str:
        how = f"{self.resize}x{self.resize}" if self.squash else f"shorter side {self.resize}"
        return (
            f"resize to {how} ({self.interpolation}, antialias, rounded to 8 bits), centre crop {self.crop}, "
            f"/255, mean {list(self.mean)}, std {list(self.std)}"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [batch, 3, H, W] to normalised float32 [batch, 3, crop, crop]."""
        x = images.float()
        height, width = self.resized_size(*x.shape[2:])
        # The networks were trained on pictures that Pillow resized: rows first, 8 bits after each pass.
        for size in ((x.shape[2], width), (height, width)):
            if size != tuple(x.shape[2:]):
                x = F.interpolate(x, size, mode=self.interpolation, align_corners=False, antialias=True)
                x = x.round().clamp(0, 255)
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        x = x[:, :, top : top + self.crop, left : left + self.crop] / 255
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.squash:
            return self.resize, self.resize
        short = min(height, width)
        return height * self.resize // short, width * self.resize // short


class FeatureExtractor:
    """A frozen network that turns pictures into feature rows. Made by `build_extractor`.

    Attributes:
        name: canonical name, goes into file names, manifests and cache keys.
        dim: features per picture.
        weights_sha256: of the file the weights came from.
        weights_verified: whether that is a published checksum.
        preprocess: what happens to a picture first, in words; part of cache keys.
        device: where it runs.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        dim: int,
        weights: FoundWeights,
        preprocess: str,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
    ):
        self.name = name
        self.dim = dim
        self.weights_sha256 = weights.sha256
        self.weights_verified = weights.verified
        self.preprocess = preprocess
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.prepare = prepare
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 RGB [batch, 3, H, W] to float32 [batch, dim]; the same row whatever shares the batch."""
        return torch.cat([output.float() for output in self._outputs(images)])

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> list[Any]:
        """What the network says; on a CPU in pieces whose activations stay in its caches (twice as fast).

        A GPU computes float32 as float32: scores and caches must not depend on TF32.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"an extractor needs uint8 [batch, 3, H, W], not {images.dtype} {list(images.shape)}")
        images = images.to(self.device)
        parts = images.split(CPU_PART) if self.device.type == "cpu" else (images,)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return [self.network(self.prepare(part)) for part in parts]


class InceptionExtractor(FeatureExtractor):
    """The FID network; also gives the class scores that the Inception score needs."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 features [batch, 2048] and logits without the classifier's bias [batch, 1008]."""
        outputs = self._outputs(images)
        return torch.cat([o.features for o in outputs]), torch.cat([o.logits_unbiased for o in outputs])


def build_extractor(
    name: str,
    weights: Path | str | None = None,
    *,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_unverified: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> FeatureExtractor:
    """Build a feature extractor with checked weights.

    Args:
        name: "inception" (FID network), "vgg16-torchvision" (precision and recall), "tf_efficientnet_lite0" (small,
            works offline; alias "efficientnet-lite0"), "resnet50" (timm's resnet50.ram_in1k) or any timm model name.
        weights: path of the weight file; None to look in the usual places.
        download: fetch missing weights.
        allow_unverified: accept weights whose checksum differs from the published one.

    Raises:
        UsageError: no such model.
        WeightsError: weights missing (with ways out), of the wrong checksum, or not fitting the network.
    """
    name = canonical_name(name)
    options: dict[str, Any] = {"download": download, "allow_unverified": allow_unverified, "progress": progress}
    if name == INCEPTION_NAME:
        from threedgp.pretrained.inception import load_inception

        found = find_weights("inception", weights, **options)
        text = "TF1 bilinear to 299x299 (aspect ratio not kept), (x - 128) / 128"
        return InceptionExtractor(name, load_inception(found.path), 2048, found, text, lambda x: x, device)
    if name == VGG16_NAME:
        from threedgp.pretrained.vgg import PREPROCESS, VGG16_WEIGHTS, load_vgg16, prepare

        found = find_weights(VGG16_WEIGHTS, weights, **options)
        return FeatureExtractor(name, load_vgg16(found.path), 4096, found, PREPROCESS, prepare, device)
    if name == OFFLINE_NAME:
        found = find_weights(EFFICIENTNET_LITE0, weights, **options)
        how = Preprocess(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return FeatureExtractor(name, _efficientnet_lite0(found.path), 1280, found, str(how), how, device)
    return _timm_extractor(name, weights, options, device)


def build_backbone(name: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A timm network whose inner maps are wanted, and the mean and deviation that its colours are normalised by.

    Raises:
        UsageError: no such network, or none whose maps can be read.
        WeightsError: its weights are missing.
    """
    if torch.get_default_device().type == "meta":  # only shapes are wanted: no weights are needed
        import timm

        name = canonical_name(name)
        return timm.create_model(TIMM_TAGS.get(name, name), num_classes=0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    extractor = build_extractor(name)
    if not isinstance(extractor.prepare, Preprocess) or not hasattr(extractor.network, "forward_intermediates"):
        raise UsageError(f"The network {name} does not give its inner feature maps; choose one of timm that does.")
    return extractor.network, extractor.prepare.mean, extractor.prepare.std


def _efficientnet_lite0(path: Path) -> nn.Module:
    """timm's network with the weights of the file, whose tensors stand in the same order under other names."""
    import timm

    network = timm.create_model(OFFLINE_NAME, pretrained=False)
    own, stored = network.state_dict(), load_state(path)
    if [value.shape for value in own.values()] != [getattr(value, "shape", None) for value in stored.values()]:
        raise WeightsError(f"{path} does not hold the {len(own)} tensors of efficientnet-lite0.")
    network.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]
    _fold_batch_norms(network.eval())
    return network


# Which normalisation follows which convolution, by the kind of timm module they are in.
NORMALIZED = {
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def _fold_batch_norms(network: nn.Module) -> None:
    """Let convolutions do their batch norm's work: the same function, and 1.5 times as fast on a CPU."""
    for module in network.modules():
        for conv, norm in NORMALIZED.get(type(module).__name__, ()):
            batch_norm = getattr(module, norm)
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), batch_norm))
            setattr(module, norm, batch_norm.act)


def _timm_extractor(
    name: str, weights: Path | str | None, options: dict[str, Any], device: torch.device | str
) -> FeatureExtractor:
    import timm
    from timm.data import resolve_data_config

    tagged = TIMM_TAGS.get(name, name)
    config = _timm_config(tagged)
    file = _timm_file(name, config)
    if weights is None:
        try:
            weights = find_weights(file).path
        except WeightsError:
            if not os.environ.get(file.variable):  # what the user named is not passed over
                weights = _hub_copy(config)
    if weights is not None and Path(weights).suffix == ".safetensors":
        file = replace(file, sha256=None)  # the published digits belong to the pickled form of the same weights
    found = find_weights(file, weights, **options)
    try:
        overlay = {"state_dict": load_state(found.path)}
        network = timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay).eval()
        # Only now: without a classifier timm would not insist on all other tensors.
        network.reset_classifier(0)  # type: ignore[operator]
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{found.path} does not fit the network {tagged}: {reason[:600]}") from None
    data = resolve_data_config({}, pretrained_cfg=config.to_dict())
    crop = data["input_size"][-1]
    squash = data["crop_mode"] == "squash"
    resize = crop if squash else int(crop / data["crop_pct"])
    interpolation = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    how = Preprocess(resize, crop, interpolation, tuple(data["mean"]), tuple(data["std"]), squash)
    with torch.no_grad():
        shape = list(network(torch.zeros(1, 3, crop, crop)).shape)
    if len(shape) != 2:
        raise UsageError(f"The model {tagged} gives no single feature vector (its output is {shape}).")
    return FeatureExtractor(name, network, shape[1], found, str(how), how, device)


def _timm_config(tagged: str) -> PretrainedCfg:
    """timm's record of a pretrained model. Raises `UsageError` with the nearest names for an unknown one."""
    import timm
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(tagged)
    except RuntimeError:
        config = None
    if config is None or not timm.is_model(tagged.split(".")[0]):
        known = [INCEPTION_NAME, *timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(tagged, known, n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise UsageError(f"There is no feature extractor '{tagged}'.{hint}")
    return config


def _timm_file(name: str, config: PretrainedCfg) -> WeightFile:
    """What timm publishes about a model's weights: the plain address with a checksum in its name, else the hub's."""
    address, file_name, digits = str(config.url or ""), f"{name}.safetensors", None
    if address.endswith((".pth", ".pt", ".safetensors", ".bin")):
        file_name = address.rsplit("/", 1)[-1]
        found = re.search(r"-([0-9a-f]{8,64})\.\w+$", file_name)
        digits = found.group(1) if found else None
    elif config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        address = hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    else:
        address = ""
    return WeightFile(
        name=name,
        file_name=file_name,
        purpose=f"the feature extractor {name}",
        sha256=digits,
        address=address or None,
        licence=config.license or "see the model's page",
        advice=(f"choose the offline extractor {OFFLINE_NAME}",),
    )


def _hub_copy(config: PretrainedCfg) -> Path | None:
    """The weights in the Hugging Face cache, where another program of the user may have put them."""
    if not config.hf_hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    return Path(found) if isinstance(found, str) else None
