"""Writes snapshots in the layout of the published code: whole networks pickled with their source text.

The classes those pickles name live in modules that exist only while a file is written.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

SOURCE_TEXT = "raise RuntimeError('source text of a snapshot was executed')"


def _forbidden(*_):
    raise AssertionError("this stands in for a function that must never be called")


class EasyDict(dict):
    """Attribute-style dictionary."""


class _Node:
    """An OmegaConf node: everything lies in its attributes, and children know their parent."""


class ContainerMetadata(_Node):
    pass


class Metadata(_Node):
    pass


class DictConfig(_Node):
    pass


class ListConfig(_Node):
    pass


class AnyNode(_Node):
    pass


class Discriminator(torch.nn.Module):
    """An ordinary class, pickled by name."""


class PersistentModule(torch.nn.Module):
    """A class that is pickled together with its source text."""

    def __reduce__(self):
        meta = EasyDict(
            type="class",
            version=6,
            module_src=SOURCE_TEXT,
            class_name=self.__dict__.get("_stored_name", "Module"),
            state={key: value for key, value in self.__dict__.items() if key != "_stored_name"},
        )
        return _forbidden, (meta,), None


PLACES = {
    "dnnlib.util": [EasyDict],
    "torch_utils.persistence": [_forbidden],
    "training.networks_discriminator": [Discriminator],
}
OMEGACONF_PLACES = {
    "omegaconf.base": [ContainerMetadata, Metadata],
    "omegaconf.dictconfig": [DictConfig],
    "omegaconf.listconfig": [ListConfig],
    "omegaconf.nodes": [AnyNode],
}


@contextlib.contextmanager
def stand_ins(prefix: str = "src."):
    """Modules of the published code, for as long as a file is being written."""
    homes = {prefix + module: members for module, members in PLACES.items()} | OMEGACONF_PLACES
    saved = {}
    names = set()
    for path in homes:
        parts = path.split(".")
        names |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    try:
        for name in sorted(names):
            sys.modules[name] = types.ModuleType(name)
        for path, members in homes.items():
            for member in members:
                saved[member] = (member.__module__, member.__qualname__)
                member.__module__ = path
                if member is _forbidden:
                    member.__name__ = member.__qualname__ = "_reconstruct_persistent_obj"
                setattr(sys.modules[path], member.__name__, member)
        yield
    finally:
        for member, (module, name) in saved.items():
            member.__module__, member.__qualname__, member.__name__ = module, name, name
        for name in names:
            sys.modules.pop(name, None)


def easy(value: Any) -> Any:
    """Plain settings as attribute-style dictionaries."""
    return EasyDict({key: easy(item) for key, item in value.items()}) if isinstance(value, dict) else value


def omega(value: Any, parent: Any = None, key: Any = None) -> Any:
    """Plain settings as OmegaConf nodes with their cyclic references."""
    kind = DictConfig if isinstance(value, dict) else ListConfig if isinstance(value, list) else AnyNode
    node = kind()
    metadata = Metadata() if kind is AnyNode else ContainerMetadata()
    metadata.__dict__.update(ref_type=Any, object_type=dict if isinstance(value, dict) else None, key=key, flags={})
    node.__dict__.update(_metadata=metadata, _parent=parent)
    if isinstance(value, dict):
        node._content = {name: omega(item, node, name) for name, item in value.items()}
    elif isinstance(value, list):
        node._content = [omega(item, node, index) for index, item in enumerate(value)]
    else:
        node._val = value
    return node


def mirror(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """The same parameters and sub-modules as the published code would hold them, unused ones included."""
    if isinstance(module, torch.nn.Sequential):
        return torch.nn.Sequential(*(mirror(child, "Layer") for child in module))
    if isinstance(module, torch.nn.ModuleList):
        return torch.nn.ModuleList(mirror(child, "Layer") for child in module)
    if isinstance(module, torch.nn.Embedding):
        return module
    copy = Discriminator() if name == "Discriminator" else PersistentModule()
    copy.__dict__["_stored_name"] = name
    for key, value in module.named_parameters(recurse=False):
        copy.register_parameter(key, torch.nn.Parameter(value.detach().clone()))
    for key, value in module.named_buffers(recurse=False):
        if key in module._non_persistent_buffers_set:  # constants of ours
            continue
        copy.register_buffer(key, value.clone())
    if any(
        key in ("weight", "conv1") for key, _ in [*module.named_parameters(recurse=False), *module.named_children()]
    ):
        copy.register_buffer("resample_filter", torch.ones(4, 4) / 16)
    copy.register_parameter("never_there", None)
    for key, child in module.named_children():
        copy.add_module(key, mirror(child, type(child).__name__))
    return copy


def add_unused(discriminator: torch.nn.Module) -> None:
    """Every block of the published discriminator owns a fromrgb layer; only the first one is used."""
    blocks = [(key, child) for key, child in discriminator.named_children() if key.startswith("b") and key != "b4"]
    for _, block in blocks:
        if "fromrgb" not in dict(block.named_children()):
            layer = PersistentModule()
            layer.register_parameter("weight", torch.nn.Parameter(torch.zeros(3, 4, 1, 1)))
            layer.register_parameter("bias", torch.nn.Parameter(torch.zeros(3)))
            block.add_module("fromrgb", layer)


def write_snapshot(path, networks, settings, *, style="easy", prefix="src.", stats=None, **extra) -> None:
    """Pickle `networks` (name -> module) with their settings, optimisers and everything a snapshot holds beside them.

    Args:
        path: the file.
        networks: of G, D, G_ema.
        settings: (plain attributes, configuration) of each network.
        style: `easy` or `omega`: how the configuration is stored.
        prefix: of the module names.
        stats: counters of the run.
        extra: further keys of the top level.
    """
    wrap = {"easy": easy, "omega": omega}[style]
    with stand_ins(prefix):
        data: dict[str, Any] = {
            "training_set_kwargs": EasyDict(class_name="training.dataset.Folder", path="x.zip", use_depth=True),
            "augment_pipe": None,
            "vis": {"z": torch.randn(2, 3), "array": np.arange(6.0).reshape(2, 3), "labels": np.zeros(2, np.int64)},
            "pl_mean": torch.zeros([]),
            "stats": stats
            or {
                "cur_nimg": 180_000,
                "cur_tick": np.int64(45),
                "best_metric_value": np.float32(21.5),
                "best_metric_tick": None,
            },
            **extra,
        }
        for name, module in networks.items():
            attributes, configuration = settings[name]
            copy = mirror(module, "Discriminator" if name == "D" else "Generator")
            if name == "D":
                add_unused(copy)
                copy.__dict__.pop("_stored_name")
            copy.__dict__.update(attributes, cfg=wrap(configuration), _init_args=(), _init_kwargs=EasyDict())
            copy.eval()
            data[name] = copy
            if name != "G_ema":
                optimiser = torch.optim.Adam(copy.parameters(), lr=0.002, betas=(0.0, 0.99))
                next(iter(copy.parameters())).grad = torch.zeros_like(next(iter(copy.parameters())))
                optimiser.step()
                data[f"{name}_opt"] = optimiser
        with open(path, "wb") as file:
            pickle.dump(data, file, protocol=4)


def state_of(module: torch.nn.Module) -> OrderedDict:
    """Flat name -> tensor dictionary, as an export of such a snapshot would hold it."""
    return OrderedDict((name, value.detach().clone()) for name, value in module.state_dict().items())
