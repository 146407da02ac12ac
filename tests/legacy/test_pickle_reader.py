"""Hostile pickles are refused by name before anything of them runs, and without exhausting memory."""

from __future__ import annotations

import copyreg
import functools
import io
import marshal
import operator
import os
import pickle
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
import torch

from tests.legacy.writer import DictConfig, EasyDict, stand_ins
from threedgp.errors import CheckpointError, UnsafeFileError
from threedgp.legacy.pickle_reader import MAX_STEPS, Record, TensorNote, read_pickle
from threedgp.legacy.snapshot_files import read_snapshot
from threedgp.legacy.snapshot_tensors import Budget
from threedgp.legacy.snapshot_tensors import decode as decode_note


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def read(content: bytes):
    return read_pickle(content, "evil.pkl")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, member: str) -> bytes:
    return text(module) + text(member) + b"\x93"


@pytest.mark.parametrize("protocol", range(6))
def test_a_shell_command_is_refused_by_name_and_never_runs(tmp_path, protocol):
    canary = tmp_path / "hacked"
    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps({"G_ema": Calls(os.system, f"touch {canary}")}, protocol))
    with pytest.raises(UnsafeFileError, match=r"evil\.pkl is refused: it (asks for 'posix\.system'|uses the pickle)"):
        read_snapshot(file)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (Calls(eval, "1+1"), "builtins.eval"),
        (Calls(exec, "x = 1"), "builtins.exec"),
        (Calls(getattr, "x", "upper"), "builtins.getattr"),
        (Calls(__import__, "os"), "builtins.__import__"),
        (Calls(compile, "1", "x", "eval"), "builtins.compile"),
        (Calls(open, "/etc/passwd"), "io.open"),
        (Calls(marshal.loads, b"N"), "marshal.loads"),
        (Calls(subprocess.Popen, ["true"]), "subprocess.Popen"),
        (Calls(pickle.loads, b"N."), "_pickle.loads"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (Calls(torch.hub.load, "x", "y"), "torch.hub.load"),
        (Calls(np.load, "x"), "numpy.load"),
        (Calls(functools.partial, print), "functools.partial"),
        (operator.attrgetter("system"), "operator.attrgetter"),
        (Calls(copyreg._reconstructor, object, object, None), "copyreg._reconstructor"),
        (print, "builtins.print"),
        (os.system, "posix.system"),
    ],
)
def test_functions_that_no_snapshot_needs_are_refused_by_name(value, culprit):
    with pytest.raises(UnsafeFileError) as caught:
        read(pickle.dumps([1, {"a": value}], 4))
    assert f"'{culprit}'" in str(caught.value)
    assert "Nothing was executed" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "member"),
    [
        ("os", "system"),
        ("types", "CodeType"),
        ("types", "FunctionType"),
        ("builtins", "dict.fromkeys"),
        ("training", "networks.os.system"),
        ("training.networks", "a.b"),
        ("torch.nn.modules", "module.Module"),
        ("torch._utils", "_rebuild_parameter.__globals__"),
        ("torch_utils.persistence.os", "system"),
        ("evil_torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("omegaconf", "os.system"),
        ("numpy.core.multiarray", "frombuffer"),
        ("x" * 100_000, "y"),
        ("", "eval"),
        ("a\n.EasyDict", "b"),
    ],
)
def test_names_that_only_look_allowed_are_refused(module, member):
    with pytest.raises(UnsafeFileError, match="it asks for"):
        read(b"\x80\x04" + name(module, member) + b".")


@pytest.mark.parametrize(
    ("module", "member"),
    [
        ("builtins", "list"),
        ("builtins", "str"),
        ("training.networks_stylegan2", "Generator"),
        ("torch.nn.modules.container", "Sequential"),
        ("torch.optim.adam", "Adam"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("numpy", "ndarray"),
        ("typing", "Any"),
        ("torch", "float32"),
    ],
)
def test_allowed_names_are_notes_that_cannot_be_called(module, member):
    assert str(read(b"\x80\x04" + name(module, member) + b".")) == f"{module}.{member}"
    with pytest.raises(UnsafeFileError, match=f"it calls {module}.{member}"):
        read(b"\x80\x04" + name(module, member) + b")R.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04" + text("upper") + b")R.", "calls a value of type str"),
        (b"\x80\x04" + name("collections", "OrderedDict") + b")R)\x81.", "makes an object of a value of type dict"),
        (b"\x80\x04]}b.", "sets the state of a value of type list"),
        (b"\x80\x04" + name("builtins", "dict") + b"}b.", "sets the state of builtins.dict"),
        (b"\x80\x04" + name("builtins", "dict") + b")\x81.", "makes an object of builtins.dict"),
        (b"\x80\x04" + name("torch_utils.persistence", "_reconstruct_persistent_obj") + b")\x81.", "makes an object"),
        (b"\x80\x04" + name("torch_utils.persistence", "_reconstruct_persistent_obj") + b")R.", "calls torch_utils"),
        (b"\x80\x04K\x01Q.", "persistent id"),
        (b"Pid\n.", "persistent id"),
        (b"\x80\x04\x82\x01.", "extension codes"),
        (b"\x80\x04\x83\x01\x00.", "extension codes"),
        (b"\x80\x04\x84\x01\x00\x00\x00.", "extension codes"),
        (b"\x80\x04(ios\nsystem\n.", "INST"),
        (b"\x80\x04(lo.", "LIST"),
        (b"\x80\x04]2.", "DUP"),
        (b"\x80\x04" + text("a") + b"K\x01\x93.", "by something else than text"),
    ],
)
def test_instructions_that_no_snapshot_needs_are_refused(content, message):
    with pytest.raises(UnsafeFileError, match=message):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x09.",
        b"\x80\x04N",
        b"\x80\x04\x85.",
        b"\x80\x04t.",
        b"\x80\x04(K\x01u.",
        b"\x80\x04}(K\x01u.",
        b"\x80\x04K\x01K\x02a.",
        b"\x80\x04h\x05.",
        b"\x80\x04\x94.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
        b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 3)[:5],
        b"\x80\x04X" + struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc.",
        b"cnever ending line",
        b"\x80\x04" + name("torch", "Size") + b"](K\x01e\x85R.",
        b"\x80\x04" + name("torch._utils", "_rebuild_tensor_v2") + b")R.",
        b"\x80\x04" + name("numpy", "dtype") + text("O8") + b"\x85R0.",
    ],
)
def test_damaged_pickles_are_reported_as_damaged(content):
    with pytest.raises(CheckpointError, match="damaged or no snapshot") as caught:
        read(content)
    assert len(str(caught.value)) < 400


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return b"\x80\x04" + opening * levels + closing * levels + b"."


BOMBS = {
    "a long number": b"\x80\x04\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20) + b".",
    "a long text": b"\x80\x04X" + struct.pack("<I", (1 << 24) + 1) + b"a" * ((1 << 24) + 1) + b".",
    "deep marks": nested(100_000, b"(", b"t"),
    "too many steps": b"\x80\x04" + b"N0" * (MAX_STEPS // 2 + 1) + b".",
    "a nested tuple as a key": b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "a nested tuple in a set": b"\x80\x04\x8f(" + b")" + b"\x85" * 100_000 + b"\x90.",
    "a huge number as a key": b"\x80\x04}\x8a\x09" + b"\x7f" * 9 + b"Ns.",
    "a long tuple as a key": b"\x80\x04}(" + b"N" * 1000 + b"tNs.",
    "many arguments": b"\x80\x04" + name("torch._utils", "_rebuild_tensor_v2") + b"(" + b"N" * 1000 + b"tR.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb):
    with pytest.raises(UnsafeFileError):
        read(BOMBS[bomb])


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\xff.",  # a memo index of four thousand million
        b"\x80\x04)" + b"\x85" * 200_000 + b".",  # deep tuples, which nothing may follow by recursion
        b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x04]\x94" + b"h\x00h\x00\x86\x85a" * 50_000 + b".",  # a list of itself
    ],
    ids=["memo", "tuples", "lists", "cycles"],
)
def test_strange_but_bounded_pickles_cost_little_memory(content):
    tracemalloc.start()
    try:
        read(content)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------------- tensors


def storage_bytes(tensor: torch.Tensor) -> bytes:
    """What `torch.storage._load_from_bytes` gets: a block of numbers as torch.save writes it."""
    file = io.BytesIO()
    typed = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(typed, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def number(value: int) -> bytes:
    data = value.to_bytes(10, "little", signed=True)
    return b"\x8a\x0a" + data


def tuple_of(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor_pickle(block: bytes, offset: int, shape, strides) -> bytes:
    storage = name("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(block)) + block + b"\x85R"
    return (
        b"\x80\x04"
        + name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + number(offset)
        + tuple_of(shape)
        + tuple_of(strides)
        + b"\x89"
        + name("collections", "OrderedDict")
        + b")RtR."
    )


def decode(content: bytes) -> torch.Tensor:
    note = read(content)
    assert isinstance(note, TensorNote)
    return decode_note(note, Budget(len(content), "evil.pkl"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(4, 3).t(),
        torch.arange(24.0).reshape(2, 3, 4)[:, 1:, ::2],
        torch.tensor(1.5, dtype=torch.float64),
        torch.tensor([1, -2], dtype=torch.int64),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.half),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.arange(3, dtype=torch.uint8),
    ],
)
def test_tensors_of_every_kind_come_back_exactly(tensor):
    for value in (tensor, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())):
        decoded = decode(pickle.dumps(value, 4))
        assert decoded.dtype == tensor.dtype
        assert torch.equal(decoded, tensor)
        assert decoded.is_contiguous()


BLOCK = storage_bytes(torch.arange(10.0))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (11,), (1,)),
        (1, (10,), (1,)),
        (10, (1,), (1,)),
        (0, (2,), (10,)),
        (0, (3, 4), (4, 1)),
        (1 << 60, (1,), (1,)),
        (0, (1 << 40,), (0,)),  # a million million numbers that are one and the same
        (0, (1 << 30, 1 << 30), (0, 0)),
        (0, (2,), (1 << 61,)),
    ],
)
def test_tensors_that_reach_outside_of_their_storage_are_refused(offset, shape, strides):
    with pytest.raises(UnsafeFileError, match=r"outside of its storage|more than the whole file"):
        decode(tensor_pickle(BLOCK, offset, shape, strides))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(-1, (1,), (1,)), (0, (-1,), (1,)), (0, (1,), (-1,)), (0, (1, 2), (1,)), (0, (1,) * 17, (1,) * 17)],
)
def test_tensors_with_impossible_shapes_are_damage(offset, shape, strides):
    with pytest.raises(CheckpointError, match="damaged"):
        decode(tensor_pickle(BLOCK, offset, shape, strides))


def test_a_block_that_announces_more_than_it_has_is_refused_before_memory_is_reserved():
    count = BLOCK.index(b"cpu") + 5  # the number of elements follows the device's name
    assert BLOCK[count - 0 : count + 3].find(b"K\x0a") >= 0
    lying = BLOCK.replace(b"K\x0a", b"J\xff\xff\xff\x7f", 1)
    assert lying != BLOCK
    with pytest.raises(CheckpointError, match="announces 2147483647 numbers"):
        decode(tensor_pickle(lying, 0, (10,), (1,)))
    with pytest.raises(CheckpointError, match="damaged"):
        decode(tensor_pickle(BLOCK[:-1], 0, (10,), (1,)))
    with pytest.raises(CheckpointError, match="damaged"):
        decode(tensor_pickle(BLOCK + b"\0\0\0\0", 0, (10,), (1,)))


def test_a_storage_block_may_hold_nothing_but_a_storage(tmp_path):
    evil = pickle.dumps(Calls(os.system, f"touch {tmp_path / 'hacked'}"), 2)
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
    for position in range(4):
        block = b"".join([*parts[:position], evil, *parts[position:]])
        with pytest.raises(UnsafeFileError, match="system"):
            decode(tensor_pickle(block, 0, (1,), (1,)))
    file = io.BytesIO()
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match="damaged"):
        decode(tensor_pickle(file.getvalue(), 0, (1,), (1,)))
    file = io.BytesIO()
    torch.save(torch.ones(3), file, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="_rebuild_tensor_v2"):
        decode(tensor_pickle(file.getvalue(), 0, (1,), (1,)))
    assert not (tmp_path / "hacked").exists()


def test_a_view_into_another_storage_is_refused():
    position = BLOCK.index(b"K\x0aN")
    viewing = BLOCK[: position + 2] + b"(" + text("other") + b"K\x00K\x0at" + BLOCK[position + 3 :]
    with pytest.raises(UnsafeFileError, match="outside of its own block"):
        decode(tensor_pickle(viewing, 0, (10,), (1,)))


def test_many_large_views_of_one_small_file_are_refused():
    content = tensor_pickle(storage_bytes(torch.zeros(100_000)), 0, (100_000,), (1,))
    budget, note = Budget(len(content), "evil.pkl"), read(content)
    for _ in range(3):
        decode_note(note, budget)
    with pytest.raises(UnsafeFileError, match="more than the whole file"):
        [decode_note(note, budget) for _ in range(9)]


# ------------------------------------------------------------------------------------------------ snapshots as a whole


def test_modules_that_contain_themselves_or_multiply_are_refused(tmp_path):
    file = tmp_path / "evil.pkl"
    endless = name("training.n", "G") + b")\x81\x94}" + text("_modules") + b"}" + text("a") + b"h\x00ssb"
    file.write_bytes(b"\x80\x04}" + text("G_ema") + endless + b"s.")
    with pytest.raises(UnsafeFileError, match="contain each other"):
        read_snapshot(file)
    content = b"\x80\x04" + name("training.n", "G") + b")\x81}b\x94"
    for index in range(40):  # 2^40 modules if each were visited
        child = b"h" + bytes([index])
        pair = b"}" + text("a") + child + b"s" + text("b") + child + b"s"
        content += name("training.n", "G") + b")\x81}" + text("_modules") + pair + b"sb\x94"
    file.write_bytes(content + b"}" + text("G_ema") + b"h\x28s.")
    with pytest.raises(UnsafeFileError, match="too many"):
        read_snapshot(file)


def test_settings_that_contain_themselves_a_thousand_times_are_refused(tmp_path):
    with stand_ins():
        config = DictConfig()
        config._content = {"camera": config, "list": [config] * 1000, "easy": EasyDict(a=1)}
        content = pickle.dumps({"stats": config, "training_set_kwargs": {"cfg": config}}, 4)
    file = tmp_path / "odd.pkl"
    file.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="contain each other"):
        read_snapshot(file)


def test_numpy_numbers_become_numbers_and_arrays_stay_notes():
    value = read(pickle.dumps({"a": np.float32(1.5), "b": np.int64(-3), "c": np.bool_(True), "d": np.arange(3)}, 4))
    assert (value["a"], value["b"], value["c"]) == (1.5, -3, True)
    assert isinstance(value["d"], Record)
