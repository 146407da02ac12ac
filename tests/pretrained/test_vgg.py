"""The VGG-16 feature space: layers up to the second fully connected one, its preprocessing, missing weights."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import WeightsError
from threedgp.pretrained.embedder import build_extractor
from threedgp.pretrained.vgg import load_vgg16, prepare


def test_preprocessing_equals_torch_fidelity():
    interpolation = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = interpolation.interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(224, 224), align_corners=False
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (resized / 255 - mean[:, None, None]) / std[:, None, None]
    assert relative_error(prepare(images), expected) < 1e-5


def test_features_end_after_the_second_relu(tmp_path):
    vgg16 = pytest.importorskip("torchvision.models").vgg16
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vgg16().state_dict().items()}
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    network = load_vgg16(tmp_path / "w.pth")
    kinds = [type(layer).__name__ for layer in network]
    assert kinds[-6:] == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU"]
    assert (network[-2].in_features, network[-2].out_features) == (4096, 4096)


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("THREEDGP_VGG16_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"(?s)vgg16-397923af\.pth.*--download.*tf_efficientnet_lite0"):
        build_extractor("vgg16-torchvision")
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not the published"):
        build_extractor("vgg16-torchvision", tmp_path / "vgg16-397923af.pth")
