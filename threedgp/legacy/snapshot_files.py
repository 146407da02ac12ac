"""Opens snapshot files of older code bases: pickles of whole networks, or flat name -> array files.

Pickles are read by `threedgp.legacy.pickle_reader`, which executes nothing; the flat formats by loaders that know
tensors only. A hostile file is refused before anything of it runs and without exhausting memory.
"""

from __future__ import annotations

import math
import mmap
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.pickle_reader import Record, TensorNote, read_pickle
from threedgp.legacy.snapshot_tensors import TensorReader

NETWORKS = ("G", "D", "G_ema")
SUFFIXES = (".pkl", ".safetensors", ".npz", ".pt", ".pth")

_MAX_MODULES = 20_000
_MAX_DEPTH = 64
_MAX_SETTINGS = 100_000
_MAX_EXPANSION = 50  # unpacked size of a compressed .npz over its size on disk


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
    if suffix == ".pkl":
        snapshot = _read_pickled(path)
    else:
        arrays = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(suffix, _read_torch)(path)
        snapshot = Snapshot(_split(arrays))
    if not snapshot.tensors.keys() & {"G", "G_ema"}:
        raise CheckpointError(
            f"{path} holds no generator: neither G nor G_ema, nor parameters named mapping.* and synthesis.*."
        )
    return snapshot


# ------------------------------------------------------------------------------------------------------------- pickles


def _read_pickled(path: Path) -> Snapshot:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty. Get the file again.")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    top = _as_dict(read_pickle(data, str(path)))
    if top is None:
        raise CheckpointError(f"{path} is a pickle, but no snapshot: it holds no dictionary.")
    snapshot = Snapshot({})
    reader = TensorReader(len(data), str(path))
    for network in NETWORKS:
        attributes = _attributes(top.get(network))
        if attributes is None:
            continue
        notes = _parameters(attributes, str(path))
        snapshot.tensors[network] = {name: reader.tensor(note) for name, note in notes.items()}
        snapshot.classes[network] = _class_name(top[network])
        hidden = {"_parameters", "_buffers", "_modules"}
        plain = _plain({key: value for key, value in attributes.items() if key not in hidden})
        snapshot.settings[network] = plain
    snapshot.settings["training_set_kwargs"] = _plain(top.get("training_set_kwargs")) or {}
    stats = _plain(top.get("stats"))
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
    if value.kind.name == "_reconstruct_persistent_obj":
        meta = _as_dict(value.arguments[0])
        return None if meta is None else _as_dict(meta.get("state"))
    state = value.state
    if isinstance(state, tuple) and len(state) == 2:  # (attributes, slots)
        state = state[0]
    return state if isinstance(state, dict) else None


def _class_name(record: Record) -> str:
    if record.kind.name == "_reconstruct_persistent_obj":
        meta = _as_dict(record.arguments[0]) or {}
        return str(meta.get("class_name"))[:200]
    return str(record.kind)


def _parameters(attributes: dict, source: str) -> dict[str, TensorNote]:
    """Parameters and buffers of a module and all below it, by dotted name."""
    found: dict[str, TensorNote] = {}
    stack = [("", attributes, 0)]
    visited = 0
    while stack:
        prefix, attributes, depth = stack.pop()
        visited += 1
        if visited > _MAX_MODULES or depth > _MAX_DEPTH:
            raise UnsafeFileError(f"{source} is refused: its modules contain each other, or are too many.")
        for group in ("_parameters", "_buffers"):
            for name, value in (_as_dict(attributes.get(group)) or {}).items():
                if isinstance(value, TensorNote) and isinstance(name, str):
                    found[prefix + name] = value
        for name, module in (_as_dict(attributes.get("_modules")) or {}).items():
            below = _attributes(module)
            if below is not None:
                stack.append((f"{prefix}{name}.", below, depth + 1))
    return found


def _plain(value: Any) -> Any:
    """Plain settings of a pickled value; whatever is neither text, number nor container of these becomes None."""
    left = _MAX_SETTINGS

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            return None
        if isinstance(value, Record):
            if value.kind.name == "EasyDict":
                value = value.items or {}
            elif value.kind.module.split(".")[0] == "omegaconf":
                state = _attributes(value) or {}
                return convert(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, dict):
            return {key: convert(item, depth + 1) for key, item in value.items() if isinstance(key, (str, int))}
        if isinstance(value, (list, tuple)):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, (str, int, float, bool)) else None

    return convert(value, 0)


# ---------------------------------------------------------------------------------------------------------- flat files


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}). Get the file again.") from None


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > _MAX_EXPANSION * path.stat().st_size:
                raise UnsafeFileError(f"{path} is refused: it would unpack to {unpacked / 1e9:.1f} GB.")
            for info in archive.infolist():
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, fortran, dtype = reader[version](file)
                    if dtype.hasobject or dtype.kind not in "biuf":
                        raise UnsafeFileError(f"{path} is refused: {info.filename} holds pickled objects, not numbers.")
                    size = math.prod(shape) * dtype.itemsize
                    if size > info.file_size:
                        raise UnsafeFileError(f"{path} is refused: {info.filename} claims {size} bytes it has not.")
                    values = np.frombuffer(bytearray(file.read(size)), dtype).reshape(shape, order="FC"[not fortran])
                    arrays[info.filename.removesuffix(".npy")] = torch.from_numpy(
                        np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))
                    ).reshape(shape)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, NotImplementedError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or not an .npz file ({error}). Get the file again.") from None
    return arrays


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise UnsafeFileError(f"{path} is refused: its tensors are compressed, which torch.save never does.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        asked = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"(?:global|function) ([\w.]+)", str(error))
        if "Weights only load failed" in str(error):
            what = f"it asks for '{asked[1]}'" if asked else "it holds more than tensors"
            raise UnsafeFileError(f"{path} is refused: {what}, which no weights need. Nothing was executed.") from None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or not a torch file ({reason}). Get the file again.") from None
    return _flatten(value)


def _flatten(value: Any, prefix: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    if isinstance(value, Mapping) and depth < 4:
        for name, item in value.items():
            if isinstance(item, torch.Tensor):
                found[f"{prefix}{name}"] = item.detach().contiguous()
            else:
                found |= _flatten(item, f"{prefix}{name}.", depth + 1)
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
