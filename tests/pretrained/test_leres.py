"""LeReS equals the published network, reads its checkpoints strictly and stores depth the documented way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pretrained.filled import filled
from tests.tools import relative_error
from threedgp.errors import DataError, WeightsError
from threedgp.pretrained.disparity import quantize
from threedgp.pretrained.leres import (
    LeReS,
    load_leres,
    normalize,
    postprocess,
    preprocess,
    resize_depth,
    resize_input,
)


@pytest.fixture(scope="module")
def resnet50():
    return filled(lambda: LeReS("resnet50"), seed=0, gain=1)


def check_network(network, expected, backbone):
    state = network.state_dict()
    assert len(state) == expected[f"{backbone}/num_tensors"]
    assert sum(p.numel() for p in network.parameters()) == expected[f"{backbone}/num_parameters"]
    maps = {}

    def keep(name):
        def hook(module, inputs, output):
            maps[name] = output

        return hook

    decoder = network.depth_model["decoder_modules"]
    for name, module in {
        "dec32": decoder.conv,
        "ffm2_low": decoder.ffm2.ftb1,
        "ffm2": decoder.ffm2,
        "ffm1": decoder.ffm1,
        "ffm0": decoder.ffm0,
    }.items():
        module.register_forward_hook(keep(name))
    images = torch.from_numpy(expected[f"{backbone}/input"])
    for i, output in enumerate(network.encode(images)):
        maps[f"enc{i + 1}"] = output
    output = network(images)
    for name, value in maps.items():
        assert relative_error(value[:, ::32], expected[f"{backbone}/{name}"]) < 1e-4, name
        mean_std = torch.stack([value.mean(), value.std(unbiased=False)])
        assert relative_error(mean_std, expected[f"{backbone}/{name}_mean_std"]) < 1e-3, name
    assert relative_error(output, expected[f"{backbone}/output"]) < 1e-4


def test_reference_vectors_resnet50(golden, resnet50):
    check_network(resnet50, golden("leres"), "resnet50")


@pytest.mark.slow
def test_reference_vectors_resnext101(golden):
    check_network(filled(lambda: LeReS("resnext101"), seed=0, gain=1), golden("leres"), "resnext101")


def test_reference_input_and_stored_depth(golden):
    expected = golden("leres")
    resized = expected["pipe/resized"]  # [448, 448, 3]
    image = resize_input(expected["pipe/image"].astype(np.uint8))
    assert np.abs(image.permute(1, 2, 0).numpy() - resized).max() <= 1
    net_input = normalize(torch.from_numpy(resized).permute(2, 0, 1).float())
    assert relative_error(net_input[:, ::16, ::16], expected["pipe/net_input_sub"]) < 1e-5
    assert np.array_equal(quantize(expected["pipe/depth"].astype(np.float32)), expected["pipe/depth_uint16"])


@pytest.mark.slow
def test_reference_pipeline(golden, resnet50):
    expected = golden("leres")
    image = expected["pipe/image"].astype(np.uint8)
    net_input = normalize(torch.from_numpy(expected["pipe/resized"]).permute(2, 0, 1).float())
    prediction = resnet50(net_input[None])[0, 0]
    shifted = prediction - prediction.min() + 0.01
    assert relative_error(shifted[::4, ::4], expected["pipe/depth448_sub"]) < 1e-4
    assert relative_error(torch.stack([shifted.min(), shifted.max()]), expected["pipe/depth448_min_max"]) < 1e-4
    height, width = image.shape[:2]
    assert relative_error(resize_depth(prediction, height, width), expected["pipe/depth"]) < 1e-4
    stored = postprocess(prediction, height, width)
    assert stored.dtype == np.uint16
    assert np.abs(stored.astype(int) - expected["pipe/depth_uint16"].astype(int)).max() <= 8
    own = resize_depth(resnet50(preprocess(image)[None])[0, 0], height, width)
    assert relative_error(own, expected["pipe/depth"]) < 2e-2


def test_constant_depth_is_far_everywhere():
    assert np.unique(postprocess(torch.full((4, 4), 3.0), 4, 4)).tolist() == [60000]
    assert postprocess(torch.full((4, 4), 3.0), 5, 7).min() >= 59999  # resizing rounds


def test_depth_that_is_not_finite_is_an_error():
    with pytest.raises(DataError, match="not finite"):
        postprocess(torch.tensor([[1.0, float("nan")]]), 2, 2)


@pytest.mark.parametrize("layout", ["published", "bare"])
def test_checkpoints_load_in_both_layouts(resnet50, tmp_path, layout):
    state = resnet50.state_dict()
    if layout == "published":
        state = {"depth_model": {f"module.{name}": value for name, value in state.items()}, "shift_model": {}}
    torch.save(state, tmp_path / "res50.pth")
    network = load_leres(tmp_path / "res50.pth")
    assert network.backbone == "resnet50"
    assert not network.training
    expected = resnet50.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_checkpoints_that_do_not_fit_are_listed(resnet50, tmp_path):
    path = tmp_path / "w.pth"
    state = dict(resnet50.state_dict())
    del state["depth_model.decoder_modules.conv.conv1.bias"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"405 tensors, but a LeReS checkpoint has 406 \(resnet50\)"):
        load_leres(path)
    with pytest.raises(WeightsError, match=r"1 missing: depth_model\.decoder_modules\.conv\.conv1\.bias"):
        load_leres(path, "resnet50")
    torch.save({"depth_model": {"module.a": torch.zeros(1), "b": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"unexpected: module\.a, b"):  # a prefix on some names only is not stripped
        load_leres(path, "resnet50")
    torch.save({"epoch": 3, "arch": "x"}, path)
    with pytest.raises(WeightsError, match="found the entries epoch, arch"):
        load_leres(path)
