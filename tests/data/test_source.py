"""Discovery finds the same files in the same order everywhere, in folders and zips, whatever lies around."""

import os
import pickle
import zipfile

import pytest

from threedgp.data.source import (
    FolderSource,
    class_of,
    classes_of,
    depth_name_of,
    is_depth_name,
    is_image_name,
    open_source,
    stem_of,
)
from threedgp.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_names():
    assert stem_of("a/b.c.jpg") == "a/b.c"
    assert depth_name_of("a.b/c.JPEG") == "a.b/c_depth.png"
    assert is_depth_name("x/c_depth.png")
    assert not is_image_name("x/c_depth.png")
    assert is_image_name("x/c.JPEG")
    assert is_image_name("a b/ü'\".WebP")
    assert not is_image_name("x/._photo.jpg")
    assert not is_image_name("x/.jpg")
    assert not is_image_name("x.jpg/readme.txt")
    assert not is_image_name("scan.pdf")
    assert class_of("a/b/c.png") == "a"
    assert class_of("c.png") is None
    assert classes_of(["b/x.png", "B/x.png", "y.png", "b/z.png"]) == ["B", "b"]


def test_order_is_by_code_point_of_the_whole_path(tmp_path):
    expected = ["B/1.png", "a-1/10.png", "a/10.png", "a/9.png", "a/9_x.png", "b/10.png", "b/2.png", "照/片.png"]
    touch(tmp_path, *reversed(expected))
    touch(tmp_path, "a/9_depth.png", "notes.txt", ".hidden/x.png", "a/._9.png")
    source = open_source(tmp_path)
    assert source.names == expected
    assert source.depth_names == ["a/9_depth.png"]
    assert source.read("照/片.png") == "照/片.png".encode()
    assert "a/9.png" in source
    assert "a/99.png" not in source


def test_symlink_loop_ends_and_symlinked_files_are_read(tmp_path):
    touch(tmp_path / "set", "a/1.png")
    touch(tmp_path, "elsewhere.png")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "a" / "folder.png").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "set" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(tmp_path / "set")
    assert source.names == ["a/1.png", "dangling.png", "link.png"]  # a folder is no image, whatever its name
    assert source.read("link.png") == b"elsewhere.png"
    with pytest.raises(DataError, match="cannot be read"):
        source.read("dangling.png")


def test_symlinked_folders_are_classes_like_others(tmp_path):
    touch(tmp_path, "set/cat/1.png", "store/dog/1.png", "store/dog/sub/2.png")
    (tmp_path / "set/dog").symlink_to(tmp_path / "store/dog", target_is_directory=True)
    (tmp_path / "store/dog/sub/back").symlink_to(tmp_path / "store/dog", target_is_directory=True)
    source = open_source(tmp_path / "set")
    assert source.names == ["cat/1.png", "dog/1.png", "dog/sub/2.png"]
    assert source.read("dog/1.png") == b"store/dog/1.png"
    assert classes_of(source.names) == ["cat", "dog"]


def test_links_to_pipes_and_endless_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").symlink_to("/dev/zero")
    (tmp_path / "set/b.png").symlink_to(tmp_path / "pipe")
    source = open_source(tmp_path / "set")
    for name in source.names:
        with pytest.raises(DataError, match=r"^not a regular file$"):
            source.read(name)
        with pytest.raises(DataError, match=r"^not a regular file$"):
            source.read(name, 99)


def test_depth_maps_in_other_forms_are_no_images(tmp_path):
    touch(tmp_path, "a.png", "a_depth.tif", "b.png", "b_depth.PNG", "c_DEPTH.tiff", "notes.txt")
    source = open_source(tmp_path)
    assert source.names == ["a.png", "b.png"]
    assert source.left_out == ["a_depth.tif", "b_depth.PNG", "c_DEPTH.tiff", "notes.txt"]


def test_what_can_never_be_read_is_named(tmp_path):
    touch(tmp_path, "ok.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb"):
        pass
    source = FolderSource(tmp_path)
    assert source.names == ["ok.png"]
    assert source.problems["pipe.png"] == "not a regular file"
    assert any("UTF-8" in reason for reason in source.problems.values())


def test_huge_file_is_not_read_into_memory(tmp_path):
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match="larger than"):
        open_source(tmp_path).read("big.png")


@pytest.mark.parametrize("prefix", ["", "set/"])
def test_zip_looks_like_the_folder(tmp_path, prefix):
    names = ["B/1.png", "a/10.png", "a/9.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in [*reversed(names), "dataset.json", "a/9_depth.png", "__MACOSX/._9.png"]:
            archive.writestr(name if name.startswith("__") else prefix + name, name)
    source = open_source(tmp_path / "x.zip")
    assert source.names == names
    assert source.depth_names == ["a/9_depth.png"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read("a/9.png") == b"a/9.png"
    assert source.read("dataset.json") == b"dataset.json"
    assert "dataset.json" in copy


def test_zips_of_windows_programs(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in (r"photos\a\1.jpg", r"photos\b\2.jpg", "photos/b/3.jpg"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, name)
    source = open_source(tmp_path / "x.zip")
    assert source.names == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    for reader in (source, source.without_names(), pickle.loads(pickle.dumps(source))):
        assert reader.read("a/1.jpg") == rb"photos\a\1.jpg"
        assert reader.read("b/3.jpg", 99) == b"photos/b/3.jpg"


def test_a_zip_of_one_class_folder_keeps_the_class(tmp_path):
    for names, expected in (
        (["cat/1.png", "cat/2.png"], ["cat/1.png", "cat/2.png"]),
        (["photos/cat/1.png", "photos/cat/2.png"], ["cat/1.png", "cat/2.png"]),
        (["set/1.png", "set/dataset.json"], ["1.png"]),
    ):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in names:
                archive.writestr(name, name)
        assert open_source(tmp_path / "x.zip").names == expected


def test_damaged_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"abc" * 1000)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[40] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"archive|unpacked"):
        open_source(tmp_path / "bad.zip").read("a.png")
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="zip archive"):
        open_source(tmp_path / "no.zip")


def test_nothing_to_do_is_said_plainly(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)
    touch(tmp_path, "a.txt", "b/c.txt")
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)
    assert open_source(tmp_path, allow_empty=True).names == []
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "missing")
