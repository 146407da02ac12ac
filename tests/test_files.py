"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from threedgp.errors import DataError
from threedgp.files import append_json_line, atomic_open, atomic_path, read_json, read_json_lines, sha256_of, write_json


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
