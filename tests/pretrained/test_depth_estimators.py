"""Depth estimators: farther is larger for all of them, weights are checked before work, choices are explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threedgp.errors import UsageError, WeightsError
from threedgp.pretrained.depth_estimators import SyntheticEstimator, choose_estimator
from threedgp.pretrained.disparity import depth_of_disparity
from threedgp.pretrained.leres import postprocess


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def picture(height=48, width=64, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """Randomly initialised transformers models with their processors, saved like published ones."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    glpn = transformers.GLPNConfig(
        num_encoder_blocks=4, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )  # fmt: skip
    transformers.GLPNForDepthEstimation(glpn).save_pretrained(root / "glpn")
    transformers.GLPNImageProcessor().save_pretrained(root / "glpn")
    dpt = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    transformers.DPTForDepthEstimation(dpt).save_pretrained(root / "dpt")
    transformers.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "dpt")
    return root


@pytest.mark.parametrize("kind", ["glpn", "dpt"])
def test_transformers_models_give_depth_of_the_photo_s_size(tiny_models, kind):
    estimator = choose_estimator(f"hf:{tiny_models / kind}").build("cpu")
    assert estimator.disparity == (kind == "dpt")
    photos = [picture(seed=i) for i in range(2)]
    inputs = torch.stack([estimator.prepare(photo) for photo in photos])
    maps = estimator.predict(inputs, [photo.shape[:2] for photo in photos])
    assert [tuple(depth.shape) for depth in maps] == [(48, 64)] * 2
    stored = postprocess(maps[0], 48, 64)
    assert stored.max() == 60000


def test_half_precision_is_close(tiny_models):
    exact, half = (
        choose_estimator(f"hf:{tiny_models / 'glpn'}", dtype=dtype).build("cpu") for dtype in ("fp32", "bf16")
    )
    inputs = exact.prepare(picture())[None]
    a, b = (estimator.predict(inputs, [(48, 64)])[0] for estimator in (exact, half))
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.1 * a.abs().max()


def test_disparity_is_turned_into_depth(tiny_models):
    as_depth, as_disparity = (
        choose_estimator(f"hf:{tiny_models / 'dpt'}", prediction=output).build("cpu")
        for output in ("depth", "disparity")
    )
    inputs = as_depth.prepare(picture())[None]
    depth, turned = (e.predict(inputs, [(48, 64)])[0].flatten() for e in (as_depth, as_disparity))
    assert torch.equal(depth.argmax(), turned.argmin())
    assert turned.max() / turned.min() == pytest.approx(10)


def test_disparity_of_a_plane_stays_a_plane():
    disparity = np.linspace(0.2, 1.1, 50)  # in a pinhole camera, 1/depth of a plane is linear over the image
    depth = depth_of_disparity(disparity)
    assert np.abs(np.diff(1 / depth, n=2)).max() < 1e-5
    assert (np.diff(depth) < 0).all()
    assert np.unique(depth_of_disparity(np.full((3, 3), 5))).tolist() == [1]


def test_dpt_models_with_a_metric_head_give_depth(tmp_path):
    """Those fine-tuned on NYU and KITTI over DINOv2 have a projection before the head, the others give disparity."""
    transformers = pytest.importorskip("transformers")

    def saved(name, **options):
        transformers.DPTConfig(**options).save_pretrained(tmp_path / name)
        return choose_estimator(f"hf:{tmp_path / name}").identity()["output"]

    dinov2 = {"backbone_config": transformers.Dinov2Config(out_features=["stage1"]), "is_hybrid": False}
    assert saved("dpt-dinov2-nyu", add_projection=True, **dinov2) == "depth"
    assert saved("dpt-large") == "disparity"
    for name, options in (("dpt-dinov2", dinov2), ("dpt-hybrid-kitti", {})):
        with pytest.raises(UsageError, match="say --prediction depth"):
            saved(name, **options)
    told = choose_estimator(f"hf:{tmp_path / 'dpt-dinov2'}", prediction="disparity")
    assert told.identity()["output"] == "disparity"


def test_a_model_that_is_not_here_says_how_to_get_it():
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"nobody/nothing.*--download"):
        choose_estimator("hf:nobody/nothing").build("cpu")


def test_leres_without_weights_explains_all_ways_out():
    with pytest.raises(WeightsError) as caught:
        choose_estimator()
    message = str(caught.value)
    for part in ("res101.pth", "res50.pth", "--estimator hf:", "--estimator synthetic", "non-commercial"):
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "midas"}, "leres, hf:<model-id> or synthetic"),
        ({"name": "hf:"}, "There is no depth estimator"),
        ({"backbone": "resnet18"}, "resnet50 or resnext101"),
    ],
)
def test_impossible_choices_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        choose_estimator(**arguments)


def test_synthetic_depth_is_smooth_and_sensible():
    estimator = SyntheticEstimator()
    dark, bright = np.zeros((30, 40, 3), np.uint8), np.full((30, 40, 3), 255, np.uint8)
    maps = estimator.predict(torch.stack([estimator.prepare(photo) for photo in (dark, bright)]), [(30, 40)] * 2)
    assert (maps[0] > maps[1]).all()
    assert maps[0][0].mean() > maps[0][-1].mean()  # the sky is farther than the ground
    rough = estimator.predict(estimator.prepare(picture())[None], [(48, 64)])[0]
    assert torch.diff(rough, dim=0).abs().max() < 0.1
