"""Decodes the tensors of a legacy pickle within bounds set by the size of the file."""

from __future__ import annotations

import io
import math
import warnings

import torch

from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.pickle_reader import Machine, StorageNote, TensorNote

_ITEM_SIZES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1}
_ITEM_SIZES |= {"Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}


class TensorReader:
    """Decodes tensor notes; what it decodes is bounded by the size of the file.

    Args:
        size: bytes of the file.
        source: its name, for messages.
    """

    def __init__(self, size: int, source: str):
        self.left = 4 * size + (1 << 20)  # tensors may share memory, but those of a snapshot hardly do
        self.source = source

    def tensor(self, note: TensorNote) -> torch.Tensor:
        """A contiguous CPU tensor with memory of its own.

        Raises:
            UnsafeFileError: it reaches outside of its storage, or all tensors together are larger than the file.
            CheckpointError: its storage is damaged.
        """
        self._charge(len(note.storage.data))
        storage = self._storage(note.storage.data)
        self._charge(math.prod(note.shape) * storage.element_size())
        if 0 in note.shape:
            return torch.empty(note.shape, dtype=storage.dtype)
        reach = note.offset + sum((n - 1) * stride for n, stride in zip(note.shape, note.strides, strict=True))
        if reach >= len(storage):
            raise UnsafeFileError(f"{self.source} is refused: a tensor reaches outside of its storage.")
        view = torch.as_strided(storage, note.shape, note.strides, note.offset)
        return view.clone(memory_format=torch.contiguous_format)

    def _charge(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UnsafeFileError(f"{self.source} is refused: its tensors are larger than the whole file.")

    def _storage(self, data: memoryview) -> torch.Tensor:
        """All numbers of a storage block, flat. Its header is checked here before torch's restricted loader sees it."""
        position, values = 0, []
        for _ in range(5):  # magic number, protocol version, machine, the storage itself, its key
            machine = Machine(data, self.source, position=position, storages=True)
            values.append(machine.run())
            position = machine.position
        note = values[3]
        if not isinstance(note, StorageNote) or not isinstance(values[4], list) or len(values[4]) != 1:
            raise UnsafeFileError(f"{self.source} is refused: one of its tensors is stored in an unknown way.")
        size = _ITEM_SIZES[note.type_name]
        announced = int.from_bytes(data[position : position + 8], "little")
        if announced != note.count or note.count * size != len(data) - position - 8:
            raise CheckpointError(
                f"{self.source} is damaged: a tensor announces {note.count} numbers of {size} bytes, but "
                f"{max(len(data) - position - 8, 0)} bytes are there. Get the file again."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # typed storages are deprecated; old files are full of them
                storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        except Exception as error:  # whatever torch raises about bytes it does not like
            raise CheckpointError(f"{self.source} is damaged: a tensor cannot be decoded ({error}).") from None
