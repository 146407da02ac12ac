"""Resized sets: exact pixels, pairs that stay pairs, labels for every image, and runs that can be killed."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.make_images import depth_map, make_set, picture
from tests.data.photos import contents
from tests.tools import relative_error
from threedgp.data.images import decode_depth, decode_image, encode_image, open_image, write_bytes, write_depth
from threedgp.data.resize import (
    ResizeSettings,
    centre_square,
    is_grey,
    resize,
    square_depth,
    square_image,
    square_image_fast,
)
from threedgp.data.source import open_source
from threedgp.errors import DataError, UsageError

NAMES = ["cat/1.png", "cat/2.jpg", "dog's/3 照片.png"]


def run(source, output, size=16, **options):
    settings = {key: options.pop(key) for key in list(options) if key in ResizeSettings.__dataclass_fields__}
    return resize(source, output, ResizeSettings(size, **settings), jobs=options.pop("jobs", 1), **options)


def test_images_equal_the_reference_exactly(golden):
    data = golden("resize")
    for index in range(8):
        image = Image.fromarray(data[f"rgb{index}/input"].astype(np.uint8))
        result = np.asarray(square_image(image, int(data[f"rgb{index}/size"])))
        assert np.array_equal(result, data[f"rgb{index}/output"]), index


def test_depth_equals_the_exact_filter(golden):
    data = golden("resize")
    for index in range(4):
        result = square_depth(data[f"depth{index}/input"].astype(np.uint16), int(data[f"depth{index}/size"]))
        assert np.abs(result.astype(int) - data[f"depth{index}/ours"]).max() <= 1, index
        assert relative_error(result, np.clip(data[f"depth{index}/exact"], 0, 65535)) < 2e-5


def test_other_modes_are_brought_to_rgb_before_resampling(golden):
    data = golden("resize")
    size = int(data["modes/size"])
    rgba = Image.fromarray(data["modes/rgba_input"].astype(np.uint8))
    grey = Image.fromarray(data["modes/gray_input"].astype(np.uint8))
    colours = data["modes/palette_rgb_input"].astype(np.uint8)
    table, index = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    palette = Image.fromarray(index.reshape(colours.shape[:2]).astype(np.uint8), "P")
    palette.putpalette(table.tobytes())
    for image, name, tolerance in ((rgba, "rgba", 1), (grey, "gray", 0), (palette, "palette", 0)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        result = np.asarray(square_image(open_image(buffer.getvalue()), size)).astype(int)
        assert np.abs(result - data[f"modes/{name}_ours"]).max() <= tolerance, name


def test_the_crop_is_centred_with_halves_to_even():
    assert centre_square(4, 9) == (0, 2, 4)
    assert centre_square(4, 7) == (0, 2, 4)
    assert centre_square(5, 4) == (0, 0, 4)
    assert centre_square(3, 3) == (0, 0, 3)


def test_a_set_with_depth_and_labels(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    before = contents(tmp_path / "in")
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.images == 3
    assert contents(tmp_path / "in") == before
    files = contents(tmp_path / "out")
    assert sorted(files) == [
        "cat/1.png",
        "cat/1_depth.png",
        "cat/2.png",
        "cat/2_depth.png",
        "classes.json",
        "dataset.json",
        "dog's/3 照片.png",
        "dog's/3 照片_depth.png",
        "manifest.json",
    ]
    assert np.array_equal(decode_image(files["cat/1.png"]), square_image(Image.fromarray(picture(0)), 16))
    assert np.array_equal(decode_depth(files["cat/1_depth.png"]), square_depth(depth_map(0), 16))
    assert json.loads(files["classes.json"]) == ["cat", "dog's"]
    assert json.loads(files["dataset.json"]) == {
        "labels": [["cat/1.png", 0], ["cat/2.png", 0], ["dog's/3 照片.png", 1]],
        "classes": ["cat", "dog's"],
        "num_classes": 2,
        "resolution": 16,
    }
    assert json.loads(files["manifest.json"])["files"]["cat/2_depth.png"] == "cat/2_depth.png"


def test_the_number_of_jobs_does_not_matter(tmp_path):
    make_set(tmp_path / "in", [f"c{index % 3}/{index}.png" for index in range(24)], depth=True)
    run(tmp_path / "in", tmp_path / "one" / "x")
    run(tmp_path / "in", tmp_path / "two" / "x", jobs=2)
    one, two = contents(tmp_path / "one" / "x"), contents(tmp_path / "two" / "x")
    assert one.keys() == two.keys()
    for name in one.keys() - {"manifest.json"}:
        assert one[name] == two[name]
    assert json.loads(one["manifest.json"])["files"] == json.loads(two["manifest.json"])["files"]


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    run(tmp_path / "in", tmp_path / "out")
    whole = contents(tmp_path / "out")
    kept = (tmp_path / "out" / "cat" / "1.png").stat().st_mtime_ns
    (tmp_path / "out" / "cat" / "2_depth.png").unlink()
    (tmp_path / "out" / "dog's" / "3 照片.png").write_bytes(whole["dog's/3 照片.png"][:100])
    (tmp_path / "out" / "cat" / ".2.tmp-00ff00ff.png").write_bytes(b"half")
    run(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert (tmp_path / "out" / "cat" / "1.png").stat().st_mtime_ns == kept


def test_changed_and_removed_sources_are_noticed(tmp_path):
    make_set(tmp_path / "in", NAMES)
    run(tmp_path / "in", tmp_path / "out")
    write_bytes(tmp_path / "in" / "cat/1.png", encode_image(picture(9), ".png"))
    os.utime(tmp_path / "in" / "cat/1.png", (2**31, 2**31))
    (tmp_path / "in" / "cat/2.jpg").unlink()
    run(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(
        decode_image((tmp_path / "out/cat/1.png").read_bytes()), square_image(Image.fromarray(picture(9)), 16)
    )
    assert not (tmp_path / "out/cat/2.png").exists()


def test_broken_pictures_are_skipped_named_and_do_not_leave_their_depth(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    (tmp_path / "in/cat/1.png").write_bytes(b"")
    (tmp_path / "in/cat/2_depth.png").unlink()
    make_set(tmp_path / "in", ["cat/4.png"], depth=True)
    write_depth(tmp_path / "in/cat/4_depth.png", depth_map(0, 30, 30))
    make_set(tmp_path / "in", ["cat/x_depth.jpg"])
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.skipped == {
        "cat/1.png": "the file is empty",
        "cat/2.jpg": "it has no depth map, though others of this set have one",
        "cat/4.png": "its depth map 4_depth.png is 30x30, the image 52x40",
        "cat/x_depth.jpg": "a name ending in _depth marks a depth map (as _depth.png); rename the image",
    }
    assert [name for name in contents(tmp_path / "out") if name.endswith(".png")] == [
        "dog's/3 照片.png",
        "dog's/3 照片_depth.png",
    ]
    assert [name for name, _ in json.loads((tmp_path / "out/dataset.json").read_text())["labels"]] == [
        "dog's/3 照片.png"
    ]


def test_of_files_that_differ_only_in_extension_the_first_is_used(tmp_path):
    make_set(tmp_path / "in", ["a/1.jpg", "a/1.png", "a/2.png"])
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.skipped == {"a/1.png": "it differs from a/1.jpg only in its extension; rename one of them"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["files"] == {"a/1.png": "a/1.jpg", "a/2.png": "a/2.png"}
    with pytest.raises(DataError, match=r"a/1.png: it differs"):
        run(tmp_path / "in", tmp_path / "strict", on_error="fail")


def test_jpeg_format_keeps_depth_in_sixteen_bits(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    run(tmp_path / "in", tmp_path / "out", format="jpg")
    source = open_source(tmp_path / "out")
    assert source.names == ["cat/1.jpg", "cat/2.jpg", "dog's/3 照片.jpg"]
    assert np.array_equal(decode_depth(source.read("cat/1_depth.png")), square_depth(depth_map(0), 16))
    assert json.loads(source.read("dataset.json"))["labels"][0] == ["cat/1.jpg", 0]


def test_a_one_pixel_image_is_enlarged_or_left_out(tmp_path):
    make_set(tmp_path / "in", ["1.png"], height=1, width=1)
    make_set(tmp_path / "in", ["2.png"])
    assert run(tmp_path / "in", tmp_path / "all").images == 2
    report = run(tmp_path / "in", tmp_path / "big", min_size=8)
    assert report.dropped == {"1.png": "1x1 is smaller than 8 pixels"}
    assert not (tmp_path / "big/1.png").exists()


def test_drop_grey_sees_grey_however_it_is_stored(tmp_path):
    make_set(tmp_path / "in", ["colour.png"])
    grey = picture(3)[..., :1]
    for name, pixels in (("l.png", grey[..., 0]), ("rgb.jpg", np.repeat(grey, 3, 2))):
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    report = run(tmp_path / "in", tmp_path / "out", drop_grey=True)
    assert sorted(report.dropped) == ["l.png", "rgb.jpg"]
    assert not is_grey(Image.fromarray(picture(0)))


def test_rename_keeps_pairs_and_folders(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    run(tmp_path / "in", tmp_path / "out", rename=True)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["files"]["cat/00000001.png"] == "cat/2.jpg"
    assert manifest["files"]["cat/00000001_depth.png"] == "cat/2_depth.png"
    assert "dog's/00000002_depth.png" in manifest["files"]
    assert json.loads((tmp_path / "out/dataset.json").read_text())["labels"][2] == ["dog's/00000002.png", 1]


def test_labels_of_all_kinds(tmp_path):
    make_set(tmp_path / "in", NAMES)
    run(tmp_path / "in", tmp_path / "none", labels="none")
    assert json.loads((tmp_path / "none/dataset.json").read_text())["labels"] is None
    run(tmp_path / "in", tmp_path / "forced", classes=["ape", "cat", "dog's"])
    assert json.loads((tmp_path / "forced/dataset.json").read_text())["labels"][0] == ["cat/1.png", 1]
    with pytest.raises(DataError, match="does not name: dog's"):
        run(tmp_path / "in", tmp_path / "no", classes=["cat"])
    own = {"labels": [[name, [0.5, index]] for index, name in enumerate(NAMES)]}
    own["camera_angles"] = [[name, [0.1, 1.5, 0]] for name in NAMES]
    (tmp_path / "own.json").write_text(json.dumps(own))
    run(tmp_path / "in", tmp_path / "file", labels=str(tmp_path / "own.json"))
    written = json.loads((tmp_path / "file/dataset.json").read_text())
    assert written["labels"][1] == ["cat/2.png", [0.5, 1.0]]
    assert written["camera_angles"][1] == ["cat/2.png", [0.1, 1.5, 0.0]]
    (tmp_path / "in/dataset.json").write_text(json.dumps(own))
    run(tmp_path / "in", tmp_path / "carried")
    assert json.loads((tmp_path / "carried/dataset.json").read_text()) == written
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": own["labels"][:2]}))
    with pytest.raises(DataError, match="no label for 1 images"):
        run(tmp_path / "in", tmp_path / "no")
    (tmp_path / "in/dataset.json").unlink()
    make_set(tmp_path / "in", ["loose.png"])
    with pytest.raises(DataError, match=r"beside the class folders \(first: loose.png\)"):
        run(tmp_path / "in", tmp_path / "no")
    with pytest.raises(UsageError, match="auto, none or a JSON file"):
        run(tmp_path / "in", tmp_path / "no", labels="folders")


def test_a_flat_folder_has_no_labels(tmp_path):
    make_set(tmp_path / "in", ["1.png", "2.png"])
    run(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == {"labels": None, "resolution": 16}
    assert not (tmp_path / "out/classes.json").exists()


def test_the_zip_is_the_folder_and_reproducible(tmp_path):
    make_set(tmp_path / "in", NAMES, depth=True)
    run(tmp_path / "in", tmp_path / "out", pack=True)
    first = (tmp_path / "out.zip").read_bytes()
    run(tmp_path / "in", tmp_path / "out", pack=True)
    assert (tmp_path / "out.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == sorted(set(contents(tmp_path / "out")) - {"manifest.json"})
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    run(tmp_path / "out.zip", tmp_path / "small", size=8, jobs=2)
    run(tmp_path / "out", tmp_path / "same", size=8)
    assert contents(tmp_path / "small").keys() == contents(tmp_path / "same").keys()
    assert contents(tmp_path / "small")["cat/1_depth.png"] == contents(tmp_path / "same")["cat/1_depth.png"]


@pytest.mark.parametrize(("orientation", "height", "width"), [(1, 401, 603), (6, 401, 603), (6, 400, 600)])
def test_fast_decoding_is_close_and_only_for_large_jpegs(orientation, height, width):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture(1, height, width)).save(buffer, "JPEG", quality=95, exif=exif)
    exact = np.asarray(square_image(open_image(buffer.getvalue()), 32)).astype(float)
    fast = np.asarray(square_image_fast(buffer.getvalue(), 32)).astype(float)
    assert ((exact - fast) ** 2).mean() < 255**2 / 10**5  # above 50 dB
    assert np.array_equal(exact, fast) == (orientation == 6 and height == 401)
    same = np.asarray(square_image_fast(buffer.getvalue(), 200))
    assert np.array_equal(same, np.asarray(square_image(open_image(buffer.getvalue()), 200)))
    png = encode_image(picture(1, 401, 603), ".png")
    assert np.array_equal(square_image_fast(png, 32), square_image(open_image(png), 32))


def test_impossible_sizes(tmp_path):
    make_set(tmp_path / "in", NAMES)
    for size in (0, -1, 100_000):
        with pytest.raises(UsageError, match="between 1 and"):
            run(tmp_path / "in", tmp_path / "out", size=size)
