"""Opens snapshot files of older code bases: pickles of whole networks, or flat name -> array files.

Pickles, those of torch's files included, are read by `threedgp.legacy.pickle_reader`, which executes nothing. A hostile
file is refused before anything of it runs and without exhausting memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.pickle_reader import Record, TensorNote, is_persistent, read_pickle
from threedgp.legacy.snapshot_tensors import Budget, decode, read_archive, read_stream

NETWORKS = ("G", "D", "G_ema")
SUFFIXES = (".pkl", ".safetensors", ".npz", ".pt", ".pth")

_MAX_DEPTH = 64
_MAX_ITEMS = 100_000  # parameters, modules or settings of a file
_MAX_TEXT = 1000
_NAME = re.compile(r"[\w.-]{1,300}")


@dataclass
class Snapshot:
    """What a file holds: weights by network ("G", "D", "G_ema") and name, and what it says about them.

    Attributes:
        tensors: CPU tensors with the file's own parameter names.
        settings: plain values by network: the network's own attributes, and its configuration under "cfg".
        stats: counters of the training run, such as cur_nimg.
        classes: the networks' class names, for the record.
    """

    tensors: dict[str, dict[str, torch.Tensor]]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)


def read_snapshot(path: Path | str) -> Snapshot:
    """Read a snapshot; the format is chosen by the file's ending.

    Raises:
        CheckpointError: missing, of an unknown kind, damaged, or without a generator.
        UnsafeFileError: it asks for something that no snapshot needs.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path} has an unknown ending. A snapshot is one of {', '.join(SUFFIXES)}.")
    _refuse_what_was_downloaded_instead(path)
    if suffix == ".pkl":
        snapshot = _read_pickled(path)
    else:
        with _damaged(path):
            read: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {".safetensors": load_file, ".npz": _read_npz}
            snapshot = Snapshot(_split(read.get(suffix, _read_torch)(path)))
    if not snapshot.tensors.keys() & {"G", "G_ema"}:
        raise CheckpointError(
            f"{path} holds no generator: neither G nor G_ema, nor parameters named mapping.* and synthesis.*."
        )
    return snapshot


def _refuse_what_was_downloaded_instead(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty. Get the file again.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a snapshot: download the file that the page offers.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} only points to the snapshot (Git LFS): fetch the file itself with git lfs pull.")


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Whatever libraries raise about bytes that they do not like is damage: zip files alone have a dozen kinds."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise CheckpointError(f"{path} is damaged or no {path.suffix} file ({reason}). Get the file again.") from None


class _Counter:
    """Ends the walk through a file whose dictionaries hold each other, or far more than a snapshot's."""

    def __init__(self, source: str):
        self.source, self.left = source, _MAX_ITEMS

    def items(self, value: Any) -> list[tuple[Any, Any]]:
        """The items of a dictionary, or of an attribute-style one; none of anything else."""
        found = _as_dict(value) or {}
        self.count(len(found))
        return list(found.items())

    def count(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise UnsafeFileError(f"{self.source} is refused: its parts contain each other, or are too many.")

    def name(self, value: Any) -> str:
        """A parameter's or module's name, which messages will show and paths be made of."""
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise UnsafeFileError(f"{self.source} is refused: it holds a parameter with an impossible name.")
        return value


# ------------------------------------------------------------------------------------------------------------- pickles


def _read_pickled(path: Path) -> Snapshot:
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    top = _as_dict(read_pickle(data, str(path)))
    if top is None:
        raise CheckpointError(f"{path} is a pickle, but no snapshot: it holds no dictionary.")
    snapshot = Snapshot({})
    budget = Budget(len(data), str(path))
    for network in NETWORKS:
        attributes = _attributes(top.get(network))
        if attributes is None:
            continue
        notes = _parameters(attributes, str(path))
        snapshot.tensors[network] = {name: decode(note, budget) for name, note in notes.items()}
        snapshot.classes[network] = _class_name(top[network])
        hidden = {"_parameters", "_buffers", "_modules"}
        snapshot.settings[network] = _plain({k: v for k, v in attributes.items() if k not in hidden}, str(path))
    snapshot.settings["training_set_kwargs"] = _plain(top.get("training_set_kwargs"), str(path)) or {}
    stats = _plain(top.get("stats"), str(path))
    snapshot.stats = stats if isinstance(stats, dict) else {}
    return snapshot


def _as_dict(value: Any) -> dict | None:
    """A dictionary, or the items of an attribute-style one."""
    if isinstance(value, Record) and value.kind.name == "EasyDict":
        value = value.items or {}
    return value if isinstance(value, dict) else None


def _attributes(value: Any) -> dict | None:
    """Attribute dictionary of a pickled module, stored with its source text or as an ordinary object."""
    if not isinstance(value, Record):
        return None
    if is_persistent(value.kind):
        return _as_dict((_as_dict(value.arguments[0]) or {}).get("state"))
    state = value.state
    if isinstance(state, tuple) and len(state) == 2:  # (attributes, slots)
        state = state[0]
    return state if isinstance(state, dict) else None


def _class_name(record: Record) -> str:
    if is_persistent(record.kind):
        name = (_as_dict(record.arguments[0]) or {}).get("class_name")
        return name if isinstance(name, str) and _NAME.fullmatch(name) else "unknown"
    return str(record.kind)


def _parameters(attributes: dict, source: str) -> dict[str, TensorNote]:
    """Parameters and buffers of a module and all below it, by dotted name."""
    found: dict[str, TensorNote] = {}
    counter = _Counter(source)
    stack = [("", attributes, 0)]
    while stack:
        prefix, attributes, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"{source} is refused: its modules contain each other.")
        for group in ("_parameters", "_buffers"):
            for name, value in counter.items(attributes.get(group)):
                if isinstance(value, TensorNote):
                    found[prefix + counter.name(name)] = value
        for name, module in counter.items(attributes.get("_modules")):
            below = _attributes(module)
            if below is not None:
                stack.append((f"{prefix}{counter.name(name)}.", below, depth + 1))
    return found


def _plain(value: Any, source: str) -> Any:
    """Plain settings of a pickled value; whatever is neither text, number nor container of these becomes None."""
    counter = _Counter(source)

    def convert(value: Any, depth: int) -> Any:
        counter.count(1)
        if depth > _MAX_DEPTH:
            return None
        if isinstance(value, Record) and value.kind.module.split(".")[0] == "omegaconf":
            state = _attributes(value) or {}
            return convert(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, (list, tuple)):
            return [convert(item, depth + 1) for item in value]
        if _as_dict(value) is not None:
            items = counter.items(value)
            return {key: convert(item, depth + 1) for key, item in items if isinstance(key, (str, int)) and short(key)}
        return value if isinstance(value, (str, int, float, bool)) and short(value) else None

    def short(value: str | int | float | bool) -> bool:
        if isinstance(value, str):
            return len(value) <= _MAX_TEXT
        return math.isfinite(value) if isinstance(value, float) else abs(value) < 1 << 63

    return convert(value, 0)


# ---------------------------------------------------------------------------------------------------------- flat files


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    arrays = {}
    budget = Budget(path.stat().st_size, str(path))
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            budget.charge(info.file_size)
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = reader[version](file)
                if dtype.hasobject or dtype.kind not in "biuf":
                    raise UnsafeFileError(f"{path} is refused: {info.filename!r} holds pickled objects, not numbers.")
                size = math.prod(shape) * dtype.itemsize
                if size > info.file_size:
                    raise UnsafeFileError(f"{path} is refused: {info.filename!r} claims {size} bytes it has not.")
                values = np.frombuffer(bytearray(file.read(size)), dtype).reshape(shape, order="F" if fortran else "C")
                native = np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))
                arrays[info.filename.removesuffix(".npy")] = torch.from_numpy(native).reshape(shape)
    return arrays


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file of `torch.save`, by the keys that lead to it."""
    source = str(path)
    budget = Budget(path.stat().st_size, source)
    if zipfile.is_zipfile(path):
        value = read_archive(path, budget)
    else:
        value = read_stream(memoryview(path.read_bytes()), source)
    found: dict[str, torch.Tensor] = {}
    counter = _Counter(source)

    def collect(value: Any, prefix: str, depth: int) -> None:
        for name, item in counter.items(value) if depth < 4 else ():
            if isinstance(item, TensorNote):
                found[prefix + counter.name(name)] = decode(item, budget)
            elif isinstance(item, dict):
                collect(item, f"{prefix}{counter.name(name)}.", depth + 1)

    collect(value, "", 0)
    return found


def _split(arrays: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Flat names to networks by their prefixes G., D., G_ema.; without any, everything belongs to G_ema."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in arrays.items():
        network, _, rest = name.partition(".")
        if network in NETWORKS:
            groups.setdefault(network, {})[rest] = value
    if not groups and any(name.startswith(("mapping.", "synthesis.")) for name in arrays):
        groups["G_ema"] = dict(arrays)
    return groups
