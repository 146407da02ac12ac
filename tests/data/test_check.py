"""A good set passes; every kind of damage is found, and all of it in one go."""

import json

import numpy as np
import pytest

from tests.data.make_images import depth_map, make_set, picture
from tests.data.photos import contents
from threedgp.data.check import Problem, check
from threedgp.data.images import write_depth, write_image
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize
from threedgp.errors import DataError

NAMES = ["cat/1.png", "cat/2.jpg", "dog/3 照片.png", "dog/4.png"]


@pytest.fixture
def made(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    resize(tmp_path / "in", tmp_path / "16", ResizeSettings(16), jobs=1, pack=True)
    add_embeddings(tmp_path / "16", ["cat/1.png", "cat/2.png", "dog/3 照片.png", "dog/4.png"])
    return tmp_path / "16"


def add_embeddings(root, names, rows=None):
    (root / "embeddings").mkdir(exist_ok=True)
    table = np.ones((len(names), 5), np.float32) if rows is None else rows
    table.tofile(root / "embeddings/net.memmap")
    description = {"shape": [len(names), 5], "filepath_to_idx": {name: row for row, name in enumerate(names)}}
    (root / "embeddings/net_desc.json").write_text(json.dumps(description))


@pytest.mark.parametrize("decode", [False, True])
def test_a_good_set(made, decode):
    before = contents(made)
    report = check(made, decode=decode, jobs=1)
    assert report.problems == []
    assert (report.images, report.depth_maps, report.labels) == (4, 4, 4)
    assert report.sizes == {"16x16": 4}
    assert report.modes == {"RGB": 4}
    assert report.classes == {"cat": 2, "dog": 2}
    assert report.embeddings == {"net": [4, 5]}
    assert contents(made) == before
    json.dumps(report.as_json())
    assert check(f"{made}.zip", decode=decode, jobs=2).problems == []


def test_depth_maps_without_depth_are_found_by_every_step(made, tmp_path):
    constant = np.full((16, 16), 700, np.uint16)
    write_depth(made / "cat/1_depth.png", constant)
    reason = "all its pixels are 700, so it holds no depth; make it again"
    assert check(made, decode=True, jobs=1).problems == [Problem("cat/1_depth.png", reason)]
    again = resize(made, tmp_path / "again", ResizeSettings(8), jobs=1)
    merged = merge(made, made, tmp_path / "merged", jobs=1)
    assert list(again.skipped) == list(merged.skipped) == ["cat/1.png"]
    assert again.skipped["cat/1.png"].endswith(reason)
    assert merged.skipped["cat/1.png"].endswith(reason)


def test_an_unfinished_set_is_refused(made):
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(DataError, match="unfinished: run '3dgp data resize' again"):
        check(made, jobs=1)


def test_all_damage_is_reported_at_once(made):
    (made / "cat/1.png").write_bytes(b"")
    (made / "cat/2_depth.png").unlink()
    write_depth(made / "dog/4_depth.png", depth_map(0, 8, 8))
    write_image(made / "dog/5.png", picture(0, 16, 20))
    write_depth(made / "dog/lonely_depth.png", depth_map(0, 16, 16))
    labels = json.loads((made / "dataset.json").read_text())
    labels["labels"].append(["gone.png", 0])
    (made / "dataset.json").write_text(json.dumps(labels))
    (made / "classes.json").write_text('["cat"]')
    problems = check(made, jobs=1).problems
    assert problems == [
        Problem("cat/1.png", "the file is empty"),
        Problem("cat/2.png", "has no depth map, though others of this set have one"),
        Problem("classes.json", "names other classes than dataset.json"),
        Problem("dataset.json", "names 1 images that are not there (first: gone)"),
        Problem("dog/4_depth.png", "is 8x8, its image 16x16"),
        Problem("dog/5.png", "has no depth map, though others of this set have one"),
        Problem("dog/5.png", "has no label in dataset.json"),
        Problem("dog/5.png", "is 20x16 instead of 16x16"),
        Problem("dog/lonely_depth.png", "is a depth map without an image"),
        Problem("embeddings/net.memmap", "has no row for 1 images (first: dog/5.png)"),
    ]


def test_only_decoding_finds_damage_inside(made):
    data = bytearray((made / "dog/4.png").read_bytes())
    data[-30] ^= 0x55
    (made / "dog/4.png").write_bytes(bytes(data))
    (made / "cat/2.png").write_bytes((made / "cat/2.png").read_bytes()[:300])
    write_image(made / "cat/1_depth.png", picture(0, 16, 16))
    add_embeddings(made, ["cat/1.png", "cat/2.png", "dog/3 照片.png", "dog/4.png"], np.full((4, 5), np.nan, "<f4"))
    assert [path for path, _ in check(made, jobs=1).problems] == ["cat/1_depth.png"]
    problems = dict(check(made, decode=True, jobs=1).problems)
    assert sorted(problems) == ["cat/1_depth.png", "cat/2.png", "dog/4.png", "embeddings/net.memmap"]
    assert problems["embeddings/net.memmap"] == "holds NaN or Inf for 4 images (first: cat/1.png)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: (made / "embeddings/net.memmap").write_bytes(b"12"), "does not hold the (4, 5) numbers"),
        (lambda made: (made / "embeddings/net_desc.json").unlink(), "does not exist"),
        (lambda made: (made / "embeddings/net_desc.json").write_text("{"), "not valid JSON"),
        (lambda made: (made / "embeddings/net_desc.json").write_text('{"shape": 3}'), "damaged"),
        (lambda made: (made / "dataset.json").write_text("["), "Expecting value"),
        (lambda made: (made / "dataset.json").write_text('{"labels": [["cat/1.png", -1]]}'), "start at 0"),
        (lambda made: (made / "dataset.json").write_text('{"labels": [["cat/1.png", true]]}'), "must look like"),
        (lambda made: (made / "classes.json").write_text("no"), "not valid JSON"),
    ],
)
def test_damaged_descriptions(made, change, words):
    change(made)
    assert any(words in reason for _, reason in check(made, jobs=1).problems)


def test_a_folder_of_photos_may_have_all_sizes(tmp_path):
    make_set(tmp_path, ["a/1.png"], height=30)
    make_set(tmp_path, ["b/2.png", "b/2.jpg"])
    report = check(tmp_path, jobs=1)
    assert report.problems == [Problem("b/2.png", "it differs from b/2.jpg only in its extension; rename one of them")]
    assert report.classes == {"a": 1, "b": 2}
    assert report.sizes == {"52x30": 1, "52x40": 2}
    assert report.labels is None


def test_nothing_to_check(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        check(tmp_path)
