"""The FID network equals the published graph: same names, same features, same resizing."""

from __future__ import annotations

import pytest
import torch

from tests.pretrained.filled import filled
from tests.tools import relative_error
from threedgp.errors import WeightsError
from threedgp.pretrained.inception import InceptionV3, load_inception, resize_bilinear_tf1


@pytest.fixture(scope="module")
def network():
    return filled(InceptionV3, seed=0, gain=2)


def test_reference_vectors(golden, network):
    expected = golden("inception_fill")
    assert (int(expected["seed"]), float(expected["gain"])) == (0, 2)
    for i in range(3):
        images = torch.from_numpy(expected[f"images{i}"]).to(torch.uint8)
        resized = resize_bilinear_tf1(images.float(), 299)[0, 0, ::23, ::23]
        assert relative_error(resized, expected[f"resized{i}"]) < 1e-5
        output = network(images)
        for name in output._fields:
            assert relative_error(getattr(output, name), expected[f"{name}{i}"]) < 1e-4, (i, name)


def test_equal_to_torch_fidelity_under_the_same_weights(network, tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    assert len(network.state_dict()) == 566
    torch.save(network.state_dict(), tmp_path / "w.pth")
    other = fidelity.FeatureExtractorInceptionV3(
        "inception", ["64", "192", "768", "2048", "logits_unbiased"], feature_extractor_weights_path=tmp_path / "w.pth"
    )
    assert list(other.state_dict()) == list(network.state_dict())
    images = torch.randint(0, 256, (2, 3, 96, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours = network(images)
    with torch.no_grad():
        theirs = other(images)
    names = ("pool64", "pool192", "pool768", "features", "logits_unbiased")
    for name, expected in zip(names, theirs, strict=True):
        assert relative_error(getattr(ours, name), expected) < 1e-6, name


def test_resize_reads_shifted_coordinates():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize_bilinear_tf1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resize_bilinear_tf1(ramp, 4), ramp)
    assert resize_bilinear_tf1(torch.full((1, 1, 1, 1), 7.0), 299).unique().tolist() == [7]


def test_a_batch_equals_its_images_one_by_one(network):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    together = network(images).features
    alone = torch.cat([network(image[None]).features for image in images])
    assert relative_error(together, alone) < 1e-6


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"565 missing.*fc\.weight \(\[1000, 2048\] instead of \[1008, 2048\]\)"):
        load_inception(tmp_path / "w.pth")
