"""Photos meet their depth maps whatever these are called; what does not fit is named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.make_images import depth_map, picture
from tests.data.photos import contents
from threedgp.data.depth import run_depth
from threedgp.data.images import decode_depth, decode_image, encode_depth, write_bytes, write_depth, write_image
from threedgp.data.merge import merge
from threedgp.errors import DataError, UsageError
from threedgp.pretrained.depth_estimators import EstimatorSpec

NAMES = ["n01/n01_1.JPEG", "n01/n01_2.png", "n02 ü/a'b.jpg"]


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(NAMES):
        write_image(tmp_path / "in" / name.replace(".JPEG", ".jpeg"), picture(seed))
    (tmp_path / "in/n01/n01_1.jpeg").rename(tmp_path / "in/n01/n01_1.JPEG")
    (tmp_path / "depth").mkdir()
    return tmp_path


def run(root, **options):
    return merge(root / "in", root / "depth", root / "out", jobs=1, **options)


@pytest.mark.parametrize("ending", ["_depth.png", ".png", "-depth_raw.png", ".-depth_raw.png", "._depth.png"])
def test_every_naming_of_depth_maps_is_found(photos, ending):
    for seed, stem in enumerate(["n01/n01_1", "n01/n01_2", "n02 ü/a'b"]):
        write_depth(photos / "depth" / f"{stem}{ending}", depth_map(seed))
    report = run(photos)
    assert report.images == 3
    files = contents(photos / "out")
    assert sorted(files) == sorted(
        [*NAMES, "n01/n01_1_depth.png", "n01/n01_2_depth.png", "n02 ü/a'b_depth.png", "manifest.json"]
    )
    for name in NAMES:
        assert files[name] == (photos / "in" / name).read_bytes()
    assert np.array_equal(decode_depth(files["n01/n01_2_depth.png"]), depth_map(1))


def test_eight_bit_and_numpy_maps_become_sixteen_bit(photos):
    eight = (depth_map(0) >> 8).astype(np.uint8)
    (photos / "depth/n01").mkdir()
    Image.fromarray(eight).save(photos / "depth/n01/n01_1_depth.png")
    np.save(photos / "depth/n01/n01_2.npy", depth_map(1))
    assert run(photos).images == 2
    assert np.array_equal(
        decode_depth((photos / "out/n01/n01_1_depth.png").read_bytes()), eight.astype(np.uint16) * 256
    )
    assert np.array_equal(decode_depth((photos / "out/n01/n01_2_depth.png").read_bytes()), depth_map(1))


def test_the_copy_of_the_photo_that_leres_leaves_is_not_the_depth(photos):
    write_image(photos / "depth/n01/n01_2.png", picture(1))
    write_depth(photos / "depth/n01/n01_2-depth_raw.png", depth_map(1))
    assert run(photos).images == 1


def test_depth_beside_the_photos(photos):
    write_depth(photos / "in/n01/n01_1_depth.png", depth_map(0))
    report = merge(photos / "in", photos / "in", photos / "out", jobs=1)
    assert report.images == 1
    assert run_images(photos) == ["n01/n01_1.JPEG", "n01/n01_1_depth.png"]


@pytest.mark.parametrize("ending", ["_depth.tif", "_DEPTH.PNG", "_depth.TIFF"])
def test_depth_of_other_formats_and_cases_beside_the_photos(photos, ending):
    path = photos / f"in/n01/n01_1{ending}"
    Image.fromarray(depth_map(0)).save(path, "PNG" if ending.endswith("PNG") else "TIFF")
    (photos / "in/notes.txt").write_text("what I remember")
    report = merge(photos / "in", photos / "in", photos / "out", jobs=1)
    assert run_images(photos) == ["n01/n01_1.JPEG", "n01/n01_1_depth.png"]
    assert np.array_equal(decode_depth((photos / "out/n01/n01_1_depth.png").read_bytes()), depth_map(0))
    assert report.extra["other_files"] == ["notes.txt"]


def run_images(root):
    return [name for name in contents(root / "out") if name != "manifest.json"]


def test_partial_depth_is_counted_and_wrong_depth_is_named(photos):
    write_depth(photos / "depth/n01/n01_1_depth.png", depth_map(0))
    write_depth(photos / "depth/n01/n01_2_depth.png", depth_map(1, 20, 20))
    write_depth(photos / "depth/n09/lonely_depth.png", depth_map(1))
    report = run(photos)
    assert report.extra == {"images_without_depth": 1, "depth_without_image": 1}
    assert report.dropped == {
        "n02 ü/a'b.jpg": "it has no depth map",
        "../depth/n09/lonely_depth.png": "no image belongs to this map",
    }
    assert report.skipped == {"n01/n01_2.png": "its depth map n01_2_depth.png is 20x20, the image 52x40"}
    assert run_images(photos) == ["n01/n01_1.JPEG", "n01/n01_1_depth.png"]
    write_image(photos / "depth/n01/n01_2_depth.png", picture(1))
    write_bytes(photos / "in/n02 ü/a'b.jpg", b"")
    write_depth(photos / "depth/n02 ü/a'b_depth.png", depth_map(2))
    skipped = run(photos).skipped
    assert "one channel" in skipped["n01/n01_2.png"]
    assert skipped["n02 ü/a'b.jpg"] == "the file is empty"


def test_nothing_to_merge_is_an_error(photos):
    with pytest.raises(DataError, match="None of the 3 images"):
        run(photos)
    shutil.rmtree(photos / "depth")
    with pytest.raises(DataError, match="3dgp data depth"):
        run(photos)
    assert not (photos / "out").exists()


def test_of_same_stems_the_first_is_used(photos):
    write_image(photos / "in/n01/n01_1.png", picture(5))
    write_depth(photos / "depth/n01/n01_1_depth.png", depth_map(0))
    report = run(photos)
    assert report.skipped == {
        "n01/n01_1.png": "it differs from n01/n01_1.JPEG only in its extension; rename one of them"
    }
    assert run_images(photos) == ["n01/n01_1.JPEG", "n01/n01_1_depth.png"]


def test_interrupted_and_undisturbed_runs_agree(photos):
    for seed, stem in enumerate(["n01/n01_1", "n01/n01_2"]):
        write_depth(photos / "depth" / f"{stem}_depth.png", depth_map(seed))
    run(photos)
    whole = contents(photos / "out")
    (photos / "out/n01/n01_1.JPEG").unlink()
    (photos / "out/n01/n01_2_depth.png").write_bytes(b"cut")
    run(photos)
    assert contents(photos / "out") == whole
    shutil.copytree(photos / "depth", photos / "other")
    with pytest.raises(UsageError, match="depth"):
        merge(photos / "in", photos / "other", photos / "out", jobs=1)


def test_labels_travel_with_the_photos(photos):
    own = {"labels": [[name, index] for index, name in enumerate(NAMES)], "classes": ["a", "b", "c"]}
    (photos / "in/dataset.json").write_text(json.dumps(own))
    write_depth(photos / "depth/n01/n01_2_depth.png", depth_map(1))
    run(photos)
    written = json.loads((photos / "out/dataset.json").read_text())
    assert written["labels"] == [["n01/n01_2.png", 1]]
    assert written["classes"] == ["a", "b", "c"]


def test_a_read_photo_is_never_changed(photos):
    write_depth(photos / "depth/n01/n01_1_depth.png", depth_map(0))
    before = contents(photos / "in"), contents(photos / "depth")
    run(photos)
    write_bytes(photos / "out/n01/n01_1.JPEG", b"changed")
    assert (contents(photos / "in"), contents(photos / "depth")) == before
    assert decode_image((photos / "in/n01/n01_1.JPEG").read_bytes()).shape == (40, 52, 3)
    assert encode_depth(depth_map(0)) == (photos / "out/n01/n01_1_depth.png").read_bytes()


class Notes:
    """A progress bar that remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, *args, **options): ...

    def advance(self, count=1): ...

    def finish(self): ...

    def note(self, text):
        self.told.append(text)


def test_maps_of_disparity_are_turned_round_and_what_was_assumed_is_said(photos):
    """MiDaS and Depth-Anything write disparity: larger is nearer."""
    disparity = np.linspace(1, 255, 40 * 52).reshape(40, 52).astype(np.uint8)
    (photos / "depth/n01").mkdir()
    Image.fromarray(disparity).save(photos / "depth/n01/n01_2.png")
    notes = Notes()
    run(photos, progress=notes)
    assert any("far-large" in note and "--depth-is near-large" in note for note in notes.told)
    run(photos, depth_is="near-large", overwrite=True)
    turned = decode_depth((photos / "out/n01/n01_2_depth.png").read_bytes()).astype(int)
    assert turned.max() == turned[0, 0] == 60000
    assert turned[-1, -1] == turned.min() < 100
    assert (np.diff(turned.flatten()) <= 0).all()
    assert json.loads((photos / "out/manifest.json").read_text())["arguments"]["depth_is"] == "near-large"


def test_maps_of_the_depth_command_need_no_direction_and_refuse_the_wrong_one(photos):
    run_depth(photos / "in", photos / "depth", EstimatorSpec("synthetic"), jobs=1)
    notes = Notes()
    assert run(photos, progress=notes).images == 3
    assert notes.told == []
    with pytest.raises(UsageError, match="drop --depth-is"):
        run(photos, depth_is="near-large", overwrite=True)
