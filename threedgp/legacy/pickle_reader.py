"""Reads the pickles of older GAN code bases without executing anything from them.

A pickle is a program for a small stack machine. Python's own `pickletools` decodes its instructions; this module
carries out only those that build plain data. A request for a class or function becomes an inert note of its name, if
the name is on the list below, and ends the reading otherwise. Tensors stay undecoded references into the file, so that
a snapshot's optimiser state costs nothing.

`pickle.Unpickler` with harmless classes would be shorter, but does not hold: its C version reserves 64 GB for one memo
index of four bytes, and both versions hash whatever is used as a key, where 100,000 nested tuples end the process.

Nothing here imports a module or calls a function that a file names, and no message shows a value of the file but the
names of classes: formatting a list that holds itself twice, forty times over, would take all memory.
"""

from __future__ import annotations

import pickletools
import re
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


@dataclass(eq=False, slots=True)
class Storage:
    """A block of numbers: of which type, how many, and, once found, their undecoded bytes."""

    type_name: str
    count: int
    data: memoryview | bytes | None = None


@dataclass(frozen=True, eq=False, slots=True)
class SavedStorage:
    """A block of numbers as `torch.save` wrote it, header and all, still undecoded."""

    data: memoryview


@dataclass(frozen=True, eq=False, slots=True)
class TensorNote:
    """A view into a block: element offset, shape and strides, not yet checked against the block."""

    storage: Storage | SavedStorage
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
_STORAGES = re.compile(r"torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage")


def is_persistent(kind: Global) -> bool:
    """Whether it stands for an object that was stored together with its source text."""
    return _PERSISTENT.fullmatch(str(kind)) is not None


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


class _Window:
    """The file as `pickletools` wants to read it; long parts are views that copy nothing."""

    def __init__(self, data: memoryview, position: int):
        self.data, self.position = data, position

    def read(self, count: int) -> bytes | memoryview:
        part = self.data[self.position : self.position + count]
        self.position += len(part)
        return part if count > 8 else bytes(part)

    def readline(self) -> bytes:
        """A line of a thousand characters at most: longer ones would be numbers that take hours to convert."""
        window = bytes(self.data[self.position : self.position + 1000])
        line = window[: window.index(b"\n") + 1]
        self.position += len(line)
        return line

    def tell(self) -> int:
        return self.position


class Machine:
    """Runs one pickle from `position` on; afterwards `position` is the first byte behind it.

    Args:
        data: the bytes.
        source: name of the file, for messages.
        position: where the pickle begins.
        storages: where `torch.save` writes tensors, a pickle refers to blocks of numbers by name; they are noted here.
        allow: names that it may ask for, instead of a snapshot's.
    """

    def __init__(
        self,
        data: memoryview,
        source: str,
        *,
        position: int = 0,
        storages: dict[str, Storage] | None = None,
        allow: re.Pattern[str] | None = None,
    ):
        self.data, self.source, self.position = data, source, position
        self.storages, self.allow = storages, allow
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        window: Any = _Window(self.data, self.position)
        try:
            for count, (opcode, argument, at) in enumerate(pickletools.genops(window)):
                self.position = (at or 0) + 1
                if count > MAX_STEPS:
                    raise self.unsafe(f"it takes more than {MAX_STEPS} steps to read")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.source} is damaged or no snapshot: it cannot be read beyond byte {self.position} "
                f"({type(error).__name__}). Get the file again."
            ) from None
        raise AssertionError("the decoder ends with STOP or raises")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction of those of protocols 2 to 5 that describe data; refuse all others."""
        stack = self.stack
        match name:
            case "PROTO":
                if argument > 5:
                    raise ValueError("a protocol of the future")
            case "FRAME":  # a hint for buffering
                pass
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "LONG1" | "LONG4":
                if argument.bit_length() > 512:
                    raise self.unsafe(f"it holds a whole number of {argument.bit_length()} bits")
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                if len(argument) > MAX_TEXT:
                    raise self.unsafe(f"it holds a text of {len(argument)} characters")
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                if len(self.marks) >= MAX_NESTING:
                    raise self.unsafe(f"it nests deeper than {MAX_NESTING} levels")
                self.marks.append(stack)
                self.stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "TUPLE":
                self.push(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(self.last(int(name[-1]))))
            case "FROZENSET":
                self.push(frozenset(self.key(item) for item in self.since_mark()))
            case "APPEND":
                self.add(self.last(1))
            case "APPENDS":
                self.add(self.since_mark())
            case "ADDITEMS":
                self.add_members(self.since_mark())
            case "SETITEM":
                self.put_items(self.last(2))
            case "SETITEMS":
                self.put_items(self.since_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                self.push(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.push(self.named(*self.last(2)))
            case "REDUCE":
                self.push(self.call(*self.last(2)))
            case "NEWOBJ":
                self.push(self.make(*self.last(2)))
            case "BUILD":
                self.build(stack.pop())
            case "BINPERSID":
                self.push(self.persistent(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                raise self.unsafe("it uses extension codes, which hide the names of classes")
            case "PERSID":
                raise self.unsafe("it refers to objects outside of itself (persistent id)")
            case _:
                raise self.unsafe(f"it uses the pickle instruction {name}, which no snapshot needs")

    def unsafe(self, what: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.source} is refused: {what}. Nothing was executed.")

    def push(self, value: Any) -> None:
        """To the stack as it is after `value` was made, which may have ended a mark."""
        self.stack.append(value)

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def named(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.unsafe("it names a class by something else than text")
        full = f"{module[:MAX_NAME]}.{name[:MAX_NAME]}"
        if len(full) > MAX_NAME or not name.isidentifier() or not self.allowed(full):
            raise self.unsafe(f"it asks for {full[:200]!r}, which no snapshot needs")
        return Global(module, name)

    def allowed(self, full: str) -> bool:
        if self.allow is not None:
            return self.allow.fullmatch(full) is not None
        patterns = (_PERSISTENT, _OBJECTS, _VALUES) if self.storages is None else (_OBJECTS, _VALUES, _STORAGES)
        return full in _CALLS or any(pattern.fullmatch(full) for pattern in patterns)

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global):
            raise self.unsafe(f"it calls {_describe(function)}")
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise self.unsafe(f"it calls {function} with unusual arguments")
        if is_persistent(function) and len(arguments) == 1:
            return Record(function, arguments)
        if str(function) not in _CALLS:
            raise self.unsafe(f"it calls {function}")
        return _CALLS[str(function)](*arguments)

    def make(self, kind: Any, arguments: Any) -> Record:
        if not isinstance(kind, Global) or not _OBJECTS.fullmatch(str(kind)) or is_persistent(kind):
            raise self.unsafe(f"it makes an object of {_describe(kind)}")
        if not isinstance(arguments, tuple):
            raise ValueError("arguments are no tuple")
        return Record(kind, arguments)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict of weights carries version numbers of layers: left out
            raise self.unsafe(f"it sets the state of {_describe(target)}")

    def put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            if target.items is None:
                target.items = {}
            target = target.items
        if not isinstance(target, dict):
            raise ValueError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def add(self, items: list[Any]) -> None:
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

    def persistent(self, reference: Any) -> Storage:
        """The block of numbers that a pickle of `torch.save` refers to; two tensors may share one."""
        if self.storages is None:
            raise self.unsafe("it refers to objects outside of itself (persistent id)")
        tag, kind, key, _, count, *view = reference
        if tag != "storage" or not isinstance(kind, Global) or not isinstance(key, str) or view not in ([], [None]):
            raise self.unsafe("a tensor refers to memory outside of its own block")
        if not _STORAGES.fullmatch(str(kind)):
            raise self.unsafe(f"a tensor is made of {kind}")
        return self.storages.setdefault(key, Storage(kind.name.removesuffix("Storage"), _natural(count)))


def _describe(value: Any) -> str:
    return str(value) if isinstance(value, Global) else f"a value of type {type(value).__name__}"


# --------------------------------------------------------------------------------------------- what the calls stand for


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("no size")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorNote:
    if not isinstance(storage, (Storage, SavedStorage)):
        raise ValueError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides) or len(shape) > 16:
        raise ValueError("a tensor's shape and strides do not fit")
    return TensorNote(storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, strides)))


def _rebuild_parameter(value: Any, *_: Any) -> TensorNote:
    if not isinstance(value, TensorNote):
        raise ValueError("a parameter without a tensor")
    return value


def _load_from_bytes(data: Any) -> SavedStorage:
    if not isinstance(data, memoryview):
        raise ValueError("a storage without bytes")
    return SavedStorage(data)


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
        raise ValueError("an odd numpy type")
    order: Any = note.state[1] if isinstance(note.state, tuple) and len(note.state) > 1 else "|"
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
