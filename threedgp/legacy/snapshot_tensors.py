"""Decodes the tensors of pickled snapshots and of torch's own files, within bounds set by the size of the file."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.pickle_reader import Machine, SavedStorage, Storage, TensorNote

_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGE_NAMES = re.compile(r"torch\.\w+Storage")


class Budget:
    """Bytes that reading a file may take: tensors may share memory, and zeros be compressed, but hardly do.

    Args:
        size: bytes of the file.
        source: its name, for messages.
    """

    def __init__(self, size: int, source: str):
        self.left = 4 * size + (1 << 20)
        self.source = source

    def charge(self, count: int) -> None:
        """Raises UnsafeFileError once everything together is far larger than the file."""
        self.left -= count
        if self.left < 0:
            raise UnsafeFileError(f"{self.source} is refused: it would unpack to much more than the whole file.")


def decode(note: TensorNote, budget: Budget) -> torch.Tensor:
    """A contiguous CPU tensor with memory of its own.

    Raises:
        UnsafeFileError: it reaches outside of its storage, or all tensors together are larger than the file.
        CheckpointError: its storage is damaged.
    """
    storage = note.storage
    if isinstance(storage, SavedStorage):
        storage = read_stream(storage.data, budget.source, allow=_STORAGE_NAMES)
        if not isinstance(storage, Storage):
            raise UnsafeFileError(f"{budget.source} is refused: one of its tensors is stored in an unknown way.")
    dtype = _DTYPES[storage.type_name]
    budget.charge(math.prod(max(n, 1) for n in note.shape) * dtype.itemsize)
    if 0 in note.shape:
        return torch.empty(note.shape, dtype=dtype)
    reach = note.offset + sum((n - 1) * stride for n, stride in zip(note.shape, note.strides, strict=True))
    if reach >= storage.count or storage.data is None:
        raise UnsafeFileError(f"{budget.source} is refused: a tensor reaches outside of its storage.")
    first, end = note.offset * dtype.itemsize, (reach + 1) * dtype.itemsize
    numbers = torch.frombuffer(bytearray(storage.data[first:end]), dtype=dtype)
    return torch.as_strided(numbers, note.shape, note.strides).clone(memory_format=torch.contiguous_format)


def read_stream(data: memoryview, source: str, allow: re.Pattern[str] | None = None) -> Any:
    """What `torch.save` wrote before version 1.6, and still writes for single blocks of numbers: five pickles (a magic
    number, the version, the machine, the object and the names of its blocks), then the blocks.

    Args:
        data: all of it.
        source: name of the file, for messages.
        allow: names that the object may ask for; by default a snapshot's.
    """
    position, values = 0, []
    storages: dict[str, Storage] = {}
    for _ in range(5):
        machine = Machine(data, source, position=position, storages=storages, allow=allow)
        values.append(machine.run())
        position = machine.position
    for key in values[4] if isinstance(values[4], list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            continue
        announced = int.from_bytes(data[position : position + 8], "little")
        size = storage.count * _DTYPES[storage.type_name].itemsize
        storage.data = data[position + 8 : position + 8 + size]
        if announced != storage.count or len(storage.data) != size:
            raise CheckpointError(
                f"{source} is damaged: a tensor announces {storage.count} numbers, but {len(storage.data)} bytes are "
                "there. Get the file again."
            )
        position += 8 + size
    if position != len(data):
        raise CheckpointError(f"{source} is damaged: {len(data) - position} bytes follow its tensors. Get it again.")
    return values[3]


def read_archive(path: Path, budget: Budget) -> Any:
    """What `torch.save` writes today: a zip file of a pickle, `data.pkl`, and one stored file a block of numbers."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise UnsafeFileError(f"{path} is refused: its tensors are compressed, which torch.save never does.")
        prefix = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
        if prefix is None:
            raise CheckpointError(f"{path} is no file of torch.save: it holds no data.pkl.")
        if f"{prefix}byteorder" in members and archive.read(members[f"{prefix}byteorder"]) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, whose numbers cannot be read here.")
        budget.charge(members[f"{prefix}data.pkl"].file_size)
        storages: dict[str, Storage] = {}
        value = Machine(memoryview(archive.read(f"{prefix}data.pkl")), str(path), storages=storages).run()
        for key, storage in storages.items():
            member = members.get(f"{prefix}data/{key}")
            size = storage.count * _DTYPES[storage.type_name].itemsize
            if member is None or member.file_size != size:
                raise CheckpointError(f"{path} is damaged: not all numbers of a tensor are there. Get the file again.")
            budget.charge(size)
            storage.data = archive.read(member)
    return value
