"""Damaged and hostile files end in a sentence, within seconds and a gigabyte."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.legacy.test_pickle_reader import name, text
from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.snapshot_files import read_snapshot

ROOT = Path(__file__).parents[2]


def doubled(levels: int = 40) -> bytes:
    """Instructions for a list that holds one list twice, which holds one list twice, and so on."""
    result = b"]\x94"
    for index in range(levels):
        reference = b"h" + bytes([index])
        result += b"](" + reference * 2 + b"e\x94"
    return result


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")


def snapshot_of(network: bytes) -> bytes:
    return b"\x80\x04}" + text("G_ema") + network + b"s."


@pytest.mark.parametrize(
    "content",
    [
        snapshot_of(PERSISTENT + b"}(" + text("class_name") + doubled() + text("state") + b"}u\x85R"),
        snapshot_of(PERSISTENT + doubled() + b"\x85R"),
        snapshot_of(name("training.x", "_reconstruct_persistent_obj") + b")\x81"),
        snapshot_of(name("training.x", "G") + b")\x81" + doubled() + b"b"),
        snapshot_of(name("torch._utils", "_rebuild_parameter") + doubled() + b"\x85R"),
        snapshot_of(name("torch", "Size") + doubled() + b"\x85R"),
        b"\x80\x04" + doubled() + text("a") + b"\x93.",
        b"\x80\x04}" + doubled() + b"Ns.",
        snapshot_of(b"}" + text("a") + doubled() + b"s"),
        b"\x80\x04}(" + text("stats") + doubled() + text("G_ema") + name("training.x", "G") + b")\x81}bu.",
        b"\x80\x04" + text("os\x1b[31m") + text("system") + b"\x93.",
    ],
)
def test_no_message_shows_what_a_pickle_holds(tmp_path, content):
    file = tmp_path / "evil.pkl"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_snapshot(file)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_parameter_with_escape_sequences_in_its_name_is_refused(tmp_path):
    torch.save({"mapping.fc0.weight": torch.ones(2), "mapping.\x1b[2J": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError, match="impossible name"):
        read_snapshot(tmp_path / "a.pt")


@pytest.mark.parametrize("stride", [0, 1])
@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_torch_files_take_no_more_than_the_file(tmp_path, stride, new):
    tensor = torch.zeros(10).as_strided((10,), (1,))
    if not stride:
        tensor = torch.zeros(1).expand(20_000_000_000)  # 80 GB of one number
    file = tmp_path / "a.pt"
    torch.save({"mapping.a": tensor}, file, _use_new_zipfile_serialization=new)
    if stride:
        assert read_snapshot(file).tensors["G_ema"]["mapping.a"].tolist() == [0.0] * 10
    else:
        with pytest.raises(UnsafeFileError, match="more than the whole file"):
            read_snapshot(file)


def shared_record(content: bytes, copies: int) -> bytes:
    """A zip file all of whose entries share one record: each directory entry is repeated under other names."""
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    directory = content[start : start + size]
    tail = bytearray(content[end : end + 22])
    tail[8:20] = struct.pack("<HHII", copies, copies, size * copies, start)
    return content[:start] + directory * copies + bytes(tail)


def test_archive_entries_that_share_a_record_are_refused(tmp_path):
    file = io.BytesIO()
    np.savez(file, **{"mapping.a": np.zeros(100_000)})
    (tmp_path / "a.npz").write_bytes(shared_record(file.getvalue(), 60))
    with pytest.raises(UnsafeFileError, match="more than the whole file"):
        read_snapshot(tmp_path / "a.npz")
    keys = [f"{index:03d}" for index in range(400)]
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        entries = b"".join(
            text(f"mapping.{key}")
            + name_v2("torch._utils", "_rebuild_tensor_v2")
            + b"(("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text(key)
            + text("cpu")
            + b"J"
            + struct.pack("<i", 300_000)
            + b"tQK\x00J"
            + struct.pack("<i", 300_000)
            + b"\x85K\x01\x85\x89NtR"
            for key in keys
        )
        archive.writestr("b/data.pkl", b"\x80\x02}(" + entries + b"u.")
        archive.writestr("b/data/000", bytes(1_200_000))
        record = archive.getinfo("b/data/000")
        for key in keys[1:]:
            twin = zipfile.ZipInfo(f"b/data/{key}")
            twin.header_offset, twin.CRC = record.header_offset, record.CRC
            twin.file_size = twin.compress_size = record.file_size
            archive.filelist.append(twin)
    with pytest.raises(CheckpointError, match=r"more than the whole file|damaged"):
        read_snapshot(tmp_path / "b.pt")


def name_v2(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


def test_archives_that_cannot_be_opened_are_damaged(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, **{"mapping.a": np.zeros(10)})
    content = bytearray(file.read_bytes())
    directory = content.index(b"PK\x01\x02")
    for place, value in ((6, 1), (directory + 8, 1)):  # the bit that says: encrypted
        content[place] |= value
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged or no \.npz file"):
        read_snapshot(file)
    for cut in (directory + 10, directory + 40, len(content) - 3):
        file.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            read_snapshot(file)


def test_sparse_tensors_and_tensors_without_numbers(tmp_path):
    torch.save({"mapping.a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError, match="_rebuild_sparse_tensor"):
        read_snapshot(tmp_path / "a.pt")
    torch.save({"mapping.a": torch.zeros(0, 3)}, tmp_path / "a.pt")
    assert read_snapshot(tmp_path / "a.pt").tensors["G_ema"]["mapping.a"].shape == (0, 3)


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("", "is empty"),
    ],
)
def test_what_was_downloaded_instead_is_called_by_its_name(tmp_path, suffix, content, words):
    file = tmp_path / f"network{suffix}"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=words):
        read_snapshot(file)


@pytest.mark.parametrize("count", [36, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_snapshots_of_every_format_are_refused_or_read(count):
    command = [sys.executable, "-m", "tests.legacy.mutations", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    refused, read = map(int, done.stdout.split()[-2:])
    assert refused + read == count
    assert refused > count // 2
