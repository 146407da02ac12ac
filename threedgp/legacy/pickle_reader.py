"""Reads the pickles of older GAN code bases without executing anything from them.

A pickle is a program for a small stack machine. This module is such a machine whose only instructions are those that
build plain data; a request for a class or function becomes an inert note of its name, if the name is on the list below,
and ends the reading otherwise. Tensors stay undecoded references into the file until `tensor` is called, so that a
snapshot's optimiser state costs nothing.

Nothing here imports a module or calls a function that a file names. Each step is bounded by the size of the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from threedgp.errors import CheckpointError, UnsafeFileError

MAX_STEPS = 2_000_000
MAX_NESTING = 500
MAX_TEXT = 1 << 24
MAX_NAME = 300
MAX_ARGUMENTS = 16


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that a file names, as a note of its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that a file names: its arguments, its state and, for subclasses of dict, its items."""

    kind: Global
    arguments: tuple = ()
    state: Any = None
    items: dict | None = None


@dataclass(frozen=True, eq=False, slots=True)
class StorageBytes:
    """A block of numbers as `torch.save` wrote it, still undecoded."""

    data: memoryview


@dataclass(frozen=True, eq=False, slots=True)
class StorageNote:
    """What the header of such a block says."""

    type_name: str
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class TensorNote:
    """A view into a block: element offset, shape and strides, not yet checked against the block."""

    storage: StorageBytes
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------- allowed names

_PERSISTENT = re.compile(r"(\w+\.)*torch_utils\.persistence\._reconstruct_persistent_obj")
_OBJECTS = re.compile(
    r"(src\.)?training\.\w+\.\w+"  # the code bases' own classes
    r"|torch\.nn\.modules\.\w+\.\w+"
    r"|torch\.optim(\.\w+)+"
    r"|omegaconf(\.\w+)+"
    r"|(\w+\.)*EasyDict"
)
_VALUES = re.compile(
    r"(builtins|__builtin__)\.(dict|list|tuple|set|frozenset|int|float|str|bool|bytes|object)"
    r"|typing\.Any"
    r"|numpy\.ndarray"
    r"|torch\.(float|double|half|int|long|short|bool|bfloat16|u?int(8|16|32|64)|float(16|32|64))"
)
_STORAGES = re.compile(
    r"torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool|ComplexFloat|ComplexDouble)Storage"
)


# ---------------------------------------------------------------------------------------------------- the stack machine


def read_pickle(data: memoryview | bytes, source: str) -> Any:
    """The value a pickle describes: plain containers, numbers, text, and the notes defined above.

    Args:
        data: the whole file.
        source: its name, for messages.

    Raises:
        UnsafeFileError: it names a class or function that no snapshot needs, calls something, or asks for more work
            or nesting than a snapshot does.
        CheckpointError: it is cut short or no pickle.
    """
    return Machine(memoryview(data), source).run()


_MALFORMED = (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError, AttributeError)


class Machine:
    """Runs one pickle from `position` on; afterwards `position` is the first byte behind it."""

    def __init__(self, data: memoryview, source: str, *, position: int = 0, storages: bool = False):
        self.data, self.source, self.position = data, source, position
        self.storages = storages  # the header of a storage block, which may point to that block and nothing else
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            for _ in range(MAX_STEPS):
                opcode = self.data[self.position]
                self.position += 1
                if opcode == 0x2E:  # STOP
                    return self.stack.pop()
                step = _STEPS.get(opcode)
                if step is None:
                    raise self.unsafe(_describe_opcode(opcode))
                step(self)
        except _MALFORMED as error:
            raise CheckpointError(
                f"{self.source} is damaged or no snapshot: it cannot be read beyond byte {self.position} "
                f"({type(error).__name__}: {error}). Get the file again."
            ) from None
        raise self.unsafe(f"it takes more than {MAX_STEPS} steps to read")

    def unsafe(self, what: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.source} is refused: {what}. Nothing was executed.")

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise ValueError(f"{count} bytes announced, {len(self.data) - self.position} there")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> str:
        if count > MAX_TEXT:
            raise self.unsafe(f"it holds a text of {count} bytes")
        return str(self.take(count), "utf-8", "surrogatepass")

    def line(self) -> str:
        window = bytes(self.data[self.position : self.position + 1000])
        end = window.index(b"\n")
        self.position += end + 1
        return window[:end].decode()

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        if len(self.marks) >= MAX_NESTING:
            raise self.unsafe(f"it nests deeper than {MAX_NESTING} levels")
        self.marks.append(self.stack)
        self.stack = []

    def named(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.unsafe("it names a class by something else than text")
        full = f"{module[:MAX_NAME]}.{name[:MAX_NAME]}"
        if len(full) > MAX_NAME or not name.isidentifier() or not self.allowed(full):
            raise self.unsafe(f"it asks for '{full[:200]}', which no snapshot needs")
        return Global(module, name)

    def allowed(self, full: str) -> bool:
        if self.storages:
            return _STORAGES.fullmatch(full) is not None
        return full in _CALLS or any(pattern.fullmatch(full) for pattern in (_PERSISTENT, _OBJECTS, _VALUES))

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global):
            raise self.unsafe(f"it calls {_describe(function)}")
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise self.unsafe(f"it calls {function} with unusual arguments")
        if _PERSISTENT.fullmatch(str(function)) and len(arguments) == 1:
            return Record(function, arguments)
        if str(function) not in _CALLS:
            raise self.unsafe(f"it calls {function}")
        return _CALLS[str(function)](*arguments)

    def make(self, kind: Any, arguments: Any) -> Record:
        if not isinstance(kind, Global) or not _OBJECTS.fullmatch(str(kind)) or _PERSISTENT.fullmatch(str(kind)):
            raise self.unsafe(f"it makes an object of {_describe(kind)}")
        if not isinstance(arguments, tuple):
            raise ValueError("arguments are no tuple")
        return Record(kind, arguments)

    def build(self) -> None:
        state = self.stack.pop()
        record = self.stack[-1]
        if not isinstance(record, Record):
            raise self.unsafe(f"it sets the state of {_describe(record)}")
        record.state = state

    def put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items = target = {} if target.items is None else target.items
        if not isinstance(target, dict):
            raise ValueError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def add_elements(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("elements for something that is no list")
        self.stack[-1].extend(items)

    def add_members(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], set):
            raise ValueError("members for something that is no set")
        self.stack[-1].update(self.key(item) for item in items)

    def key(self, value: Any) -> Any:
        """Only keys that hash quickly and without recursion: nested tuples could exhaust the C stack."""
        if isinstance(value, tuple) and len(value) <= MAX_ARGUMENTS:
            parts: tuple = value
        else:
            parts = (value,)
        for part in parts:
            if isinstance(part, int) and abs(part) >= 1 << 60:
                raise self.unsafe("it uses a huge number as a key")
            if not isinstance(part, (str, int, type(None), Global, Record, TensorNote)):
                raise self.unsafe(f"it uses {_describe(part)} as a key")
        return value

    def persistent(self) -> None:
        reference = self.stack.pop()
        if not self.storages:
            raise self.unsafe("it refers to objects outside of itself (persistent id)")
        tag, kind, _, location, count, view = reference
        if tag != "storage" or not isinstance(kind, Global) or not isinstance(location, str) or view is not None:
            raise self.unsafe("a tensor refers to memory outside of its own block")
        self.stack.append(StorageNote(kind.name.removesuffix("Storage"), _natural(count)))

    def protocol(self) -> None:
        version = self.number(1)
        if version > 5:
            raise ValueError(f"pickle protocol {version}")

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _steps() -> dict[int, Callable[[Machine], Any]]:
    """Opcode -> step. Only opcodes of protocols 2 to 5 that describe data; all others are refused."""

    def push(make: Callable[[Machine], Any]) -> Callable[[Machine], Any]:
        def step(m: Machine) -> None:
            value = make(m)  # first: it may replace the stack
            m.stack.append(value)

        return step

    def last(count: int) -> Callable[[Machine], tuple]:
        def pop(m: Machine) -> tuple:
            if len(m.stack) < count:
                raise IndexError("stack is empty")
            items = tuple(m.stack[-count:])
            del m.stack[-count:]
            return items

        return pop

    def signed(m: Machine, count: int) -> int:
        if count > 64:
            raise m.unsafe(f"it holds a whole number of {count} bytes")
        return int.from_bytes(m.take(count), "little", signed=True)

    two, pair_call = last(2), lambda action: push(lambda m: action(m, *last(2)(m)))
    return {
        0x80: Machine.protocol,
        0x95: lambda m: m.take(8),  # FRAME: a hint for buffering
        ord("("): Machine.mark,
        ord("0"): lambda m: m.stack.pop(),
        ord("1"): Machine.since_mark,
        ord("N"): push(lambda m: None),
        0x88: push(lambda m: True),
        0x89: push(lambda m: False),
        ord("J"): push(lambda m: struct.unpack("<i", m.take(4))[0]),
        ord("K"): push(lambda m: m.number(1)),
        ord("M"): push(lambda m: m.number(2)),
        0x8A: push(lambda m: signed(m, m.number(1))),
        0x8B: push(lambda m: signed(m, m.number(4))),
        ord("G"): push(lambda m: struct.unpack(">d", m.take(8))[0]),
        ord("X"): push(lambda m: m.text(m.number(4))),
        0x8C: push(lambda m: m.text(m.number(1))),
        0x8D: push(lambda m: m.text(m.number(8))),
        ord("B"): push(lambda m: m.take(m.number(4))),
        ord("C"): push(lambda m: m.take(m.number(1))),
        0x8E: push(lambda m: m.take(m.number(8))),
        ord("]"): push(lambda m: []),
        ord("a"): lambda m: m.add_elements([m.stack.pop()]),
        ord("e"): lambda m: m.add_elements(m.since_mark()),
        ord(")"): push(lambda m: ()),
        ord("t"): push(lambda m: tuple(m.since_mark())),
        0x85: push(last(1)),
        0x86: push(two),
        0x87: push(last(3)),
        ord("}"): push(lambda m: {}),
        ord("s"): lambda m: m.put_items(list(two(m))),
        ord("u"): lambda m: m.put_items(m.since_mark()),
        0x8F: push(lambda m: set()),
        0x90: lambda m: m.add_members(m.since_mark()),
        0x91: push(lambda m: frozenset(m.key(item) for item in m.since_mark())),
        ord("q"): lambda m: m.memoize(m.number(1)),
        ord("r"): lambda m: m.memoize(m.number(4)),
        0x94: lambda m: m.memoize(len(m.memo)),
        ord("h"): push(lambda m: m.memo[m.number(1)]),
        ord("j"): push(lambda m: m.memo[m.number(4)]),
        ord("c"): push(lambda m: m.named(m.line(), m.line())),
        0x93: pair_call(Machine.named),
        ord("R"): pair_call(Machine.call),
        0x81: pair_call(Machine.make),
        ord("b"): Machine.build,
        ord("Q"): Machine.persistent,
    }


_STEPS = _steps()


def _describe_opcode(opcode: int) -> str:
    if opcode in (0x82, 0x83, 0x84):
        return "it uses extension codes, which hide the names of classes"
    if opcode == ord("P"):
        return "it refers to objects outside of itself (persistent id)"
    return f"it uses the pickle instruction 0x{opcode:02x}, which no snapshot needs"


def _describe(value: Any) -> str:
    return str(value) if isinstance(value, Global) else f"a value of type {type(value).__name__}"


# --------------------------------------------------------------------------------------------- what the calls stand for


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r:.50} is no size")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorNote:
    if not isinstance(storage, StorageBytes):
        raise ValueError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides) or len(shape) > 16:
        raise ValueError("a tensor's shape and strides do not fit")
    return TensorNote(storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, strides)))


def _rebuild_parameter(value: Any, *_: Any) -> TensorNote:
    if not isinstance(value, TensorNote):
        raise ValueError("a parameter without a tensor")
    return value


def _load_from_bytes(data: Any) -> StorageBytes:
    if not isinstance(data, memoryview):
        raise ValueError("a storage without bytes")
    return StorageBytes(data)


def _empty_dict(*_: Any) -> dict:
    return {}  # OrderedDict and defaultdict get their items one by one afterwards


def _shape(items: Any = ()) -> tuple:
    if not isinstance(items, tuple):
        raise ValueError("a shape that is no tuple")
    return items


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, _numpy_dtype(dtype), count=1)[0].item()


def _numpy_dtype(note: Any) -> np.dtype:
    """A number type from the note of a `numpy.dtype`: kind and width from its arguments, byte order from its state."""
    if not isinstance(note, Record) or note.kind.name != "dtype" or not note.arguments:
        raise ValueError("no numpy type")
    code = note.arguments[0]
    if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise ValueError(f"numpy type {code!r:.50}")
    order = note.state[1] if isinstance(note.state, tuple) and len(note.state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise ValueError("numpy byte order")
    return np.dtype(code).newbyteorder(order)


def _note(module: str, name: str) -> Callable[..., Record]:
    return lambda *arguments: Record(Global(module, name), arguments)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch.Size": _shape,
    "torch.device": _note("torch", "device"),
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _empty_dict,
    "numpy.dtype": _note("numpy", "dtype"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _note("numpy", "ndarray"),
    "numpy._core.multiarray._reconstruct": _note("numpy", "ndarray"),
}
