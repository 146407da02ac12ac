"""The depth stage: one 16-bit map a photo, the same bytes however often it was stopped and however many share it."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.photos import break_photos, contents, make_photos, run_and_kill
from tests.pretrained.filled import filled
from threedgp.data.depth import run_depth
from threedgp.data.images import decode_depth, decode_image
from threedgp.data.source import open_source
from threedgp.errors import WeightsError
from threedgp.pretrained.depth_estimators import EstimatorSpec, LeReSEstimator, choose_estimator
from threedgp.pretrained.leres import LeReS, postprocess

SYNTHETIC = EstimatorSpec("synthetic")


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    root = tmp_path_factory.mktemp("depth")
    names = make_photos(root / "images", count=6)
    broken = break_photos(root / "images")
    report = run_depth(root / "images", root / "depth", SYNTHETIC, batch_size=4, jobs=2)
    return root, names, broken, report


def test_every_photo_gets_a_map_of_its_size(estimated):
    root, names, broken, report = estimated
    assert report.images == len(names) + 1
    for name in names:
        depth = decode_depth((root / "depth" / name.replace(".png", "_depth.png")).read_bytes())
        assert depth.shape == decode_image((root / "images" / name).read_bytes()).shape[:2]
        assert depth.max() == 60000
    assert len(open_source(root / "depth", allow_empty=True).depth_names) == report.images
    manifest = json.loads((root / "depth" / "manifest.json").read_text())
    assert sorted(manifest["skipped"]) == broken
    assert manifest["synthetic"] is True


def test_maps_are_kept_until_their_photo_changes(estimated, tmp_path):
    make_photos(tmp_path / "images", count=3, classes=("",))
    run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "depth").glob("*.png")}
    Image.new("RGB", (20, 30), (3, 100, 3)).save(tmp_path / "images" / "01.png")
    run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1)
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "depth").glob("*.png")}
    assert [name for name in times if times[name] != again[name]] == ["01_depth.png"]
    assert decode_depth((tmp_path / "depth" / "01_depth.png").read_bytes()).shape == (30, 20)


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(estimated):
    root = estimated[0]
    code = f"""
from threedgp.data.depth import run_depth
from threedgp.files import write_json
from threedgp.pretrained.depth_estimators import EstimatorSpec
run_depth({str(root / "images")!r}, {str(root / "killed")!r}, EstimatorSpec("synthetic"), batch_size=4, jobs=1)
"""
    run_and_kill(code, "threedgp.data.journal:Recorder.write", times=6)
    assert 0 < len(list((root / "killed").rglob("*_depth.png"))) < 13
    run_depth(root / "images", root / "killed", SYNTHETIC, batch_size=4, jobs=2)
    assert contents(root / "killed") == contents(root / "depth")


def test_a_zip_gives_the_same_maps(estimated, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", estimated[0] / "images")
    for _ in range(2):
        assert run_depth(archive, tmp_path / "depth", SYNTHETIC, batch_size=4, jobs=2).images == estimated[3].images
    maps, expected = contents(tmp_path / "depth"), contents(estimated[0] / "depth")
    assert {name: data for name, data in maps.items() if name != "manifest.json"} == {
        name: data for name, data in expected.items() if name != "manifest.json"
    }


def test_several_gpus_give_the_same_bytes(estimated):
    root = estimated[0]
    report = run_depth(root / "images", root / "shared", SYNTHETIC, device="cpu", batch_size=4, gpus=3, jobs=2)
    assert report.images == estimated[3].images
    assert contents(root / "shared") == contents(root / "depth")


@pytest.fixture(scope="module")
def leres_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "res50.pth"
    state = filled(lambda: LeReS("resnet50"), seed=0, gain=1).state_dict()
    torch.save({"depth_model": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.mark.slow
def test_leres_maps_are_those_of_the_network(leres_weights, tmp_path, monkeypatch):
    names = make_photos(tmp_path / "images", count=1, classes=("",), size=(30, 45))
    spec = choose_estimator("leres", weights=leres_weights)
    predict, predictions = LeReSEstimator.predict, []

    def recorded(self, inputs, sizes):
        predictions.extend(predict(self, inputs, sizes))
        return predictions[-len(sizes) :]

    monkeypatch.setattr(LeReSEstimator, "predict", recorded)
    run_depth(tmp_path / "images", tmp_path / "depth", spec, batch_size=2, colormap=True)
    for name, prediction in zip(names, predictions, strict=True):
        assert prediction.shape == (448, 448)
        stored = decode_depth((tmp_path / "depth" / name.replace(".png", "_depth.png")).read_bytes())
        assert np.array_equal(stored, postprocess(prediction, 30, 45))
        with Image.open(tmp_path / "depth-preview" / name.replace(".png", "_depth.jpg")) as preview:
            assert preview.size == (45, 30)
            brightness = np.asarray(preview.convert("L"), dtype=float)
        assert np.corrcoef(brightness.ravel(), stored.ravel())[0, 1] < -0.8  # near is bright
    manifest = json.loads((tmp_path / "depth" / "manifest.json").read_text())
    assert manifest["arguments"]["weights_sha256"] == spec.weights_sha256
    assert "synthetic" not in manifest


def test_a_checkpoint_that_does_not_fit_writes_nothing(tmp_path):
    make_photos(tmp_path / "images", count=1)
    torch.save({"depth_model": {"module.x": torch.zeros(1)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="1 tensors, but a LeReS checkpoint has"):
        run_depth(tmp_path / "images", tmp_path / "depth", choose_estimator("leres", weights=tmp_path / "w.pth"))
    assert not (tmp_path / "depth").exists()


def test_a_prediction_that_is_not_finite_is_one_broken_photo(tmp_path, monkeypatch):
    make_photos(tmp_path / "images", count=3, classes=("",))
    from threedgp.pretrained.depth_estimators import SyntheticEstimator

    original = SyntheticEstimator.predict

    def predict(self, inputs, sizes):
        maps = original(self, inputs, sizes)
        maps[1][0, 0] = float("inf")
        return maps

    monkeypatch.setattr(SyntheticEstimator, "predict", predict)
    report = run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1)
    assert report.skipped == {"01.png": "the depth network returned values that are not finite"}
    assert report.images == 2


def test_two_photos_with_one_stem(tmp_path):
    make_photos(tmp_path / "images", count=2, classes=("",))
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "00.jpg")
    report = run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1)
    assert list(report.skipped) == ["00.png"]
    assert "00.jpg" in report.skipped["00.png"]


def test_another_batch_size_keeps_the_maps(tmp_path):
    make_photos(tmp_path / "images", count=1)
    run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1)
    run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=1, batch_size=3)  # not a setting of the maps


def test_a_full_disk_stops_the_stage_and_blames_no_photo(tmp_path, monkeypatch):
    make_photos(tmp_path / "images", count=4, classes=("",))

    def full(self, target, data):
        raise OSError(errno.ENOSPC, "No space left on device", target)

    with monkeypatch.context() as patch:
        patch.setattr("threedgp.data.journal.Recorder.write", full)
        with pytest.raises(OSError, match="No space left"):
            run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=2)
    assert run_depth(tmp_path / "images", tmp_path / "depth", SYNTHETIC, jobs=2).skipped == {}
