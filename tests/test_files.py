"""Files appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from threedgp.errors import DataError
from threedgp.files import (
    append_json_line,
    atomic_open,
    atomic_path,
    read_bytes,
    read_json,
    read_json_lines,
    sha256_of,
    write_json,
)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def write_half():
        with atomic_open(path, "w") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.txt"]


def test_atomic_path_creates_folders_and_keeps_the_ending(tmp_path):
    target = tmp_path / "a" / ("长" * 80 + ".png")
    with atomic_path(target, durable=True) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


def test_json_round_trip_and_broken_json(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"c\.json"):
        read_json(tmp_path / "c.json")


def test_json_lines_survive_a_cut_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2')
    append_json_line(path, {"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_line_of_json_may_hold_unicode_line_separators(tmp_path):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"name": "a\u2028b\u0085c\x0bd"})
    append_json_line(path, {"name": "next"})
    assert [line["name"] for line in read_json_lines(path)] == ["a\u2028b\u0085c\x0bd", "next"]


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000, '{"a":' * 50_000, "\udcff", ""])
def test_json_that_python_cannot_hold_is_damaged_like_any_other(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"a\.json is not valid JSON"):
        read_json(path)
    assert read_json_lines(path) == []


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="not a regular file"):
            read_bytes(path)
    with pytest.raises(DataError, match="is a folder"):
        read_json(tmp_path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(DataError, match="larger than"):
        read_bytes(tmp_path / "large", limit=10)
