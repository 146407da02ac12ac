"""Damaged and forged run folders: one sentence, soon, whatever a file holds."""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from threedgp.config.workspace import Workspace
from threedgp.errors import ThreeDGPError
from threedgp.files import read_json, sha256_of
from threedgp.processes import World
from threedgp.runs.catalog import manifest_digest
from threedgp.runs.run import Run, load_generator
from threedgp.runs.summary import summarize, summarize_checkpoints
from threedgp.training.state import TrainingState

OLD_RUN = Path(__file__).parent / "old_run"
SECONDS = 10.0
ALONE = World(0, 1, torch.device("cpu"))
ODD = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", "\x1b[2J", "../../x", [], {}, [[]], {"a": 1},
    [1, 2, 3], "0" * 5000,
)  # fmt: skip


@pytest.fixture(scope="module")
def state():
    return TrainingState.build(Run(OLD_RUN).profile, ALONE)


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def change(value, draw: random.Random):
    """A JSON value with one place removed or replaced by something odd."""
    path = draw.choice(list(places(value))[1:] or [()])
    if not path:
        return draw.choice(ODD)
    node = value
    for key in path[:-1]:
        node = node[key]
    if draw.random() < 0.3:
        del node[path[-1]]
    else:
        node[path[-1]] = draw.choice(ODD)
    return value


def damage(file: Path, draw: random.Random) -> None:
    """Change some bytes of a file, cut it, or put something else in its place."""
    data = bytearray(file.read_bytes() or b"{}")
    match draw.randrange(4):
        case 0:
            data[draw.randrange(len(data))] = draw.randrange(256)
        case 1:
            del data[draw.randrange(len(data)) :]
        case 2:
            data = bytearray(
                draw.choice([b"", b"[" * 100_000, b"9" * 6000, b"null", b"[]", b"\xff\xfe", b"{}\n[]\n3\n"])
            )
        case 3:
            place = draw.randrange(len(data))
            data[place:place] = data[place : place + 50]
    file.write_bytes(data)


def forge(checkpoint: Path, draw: random.Random) -> None:
    """Change a record or a tensor, and let all checksums be right again."""
    manifest = read_json(checkpoint / "manifest.json")
    kind = draw.randrange(3)
    if kind == 0:
        changed = change(read_json(checkpoint / "state.json"), draw)
        (checkpoint / "state.json").write_text(json.dumps(changed))
    elif kind == 1:
        file = draw.choice(sorted(checkpoint.glob("*.safetensors")))
        tensors = load_file(file)
        name = draw.choice(sorted(tensors))
        odd = {
            "shape": torch.zeros(3, 2),
            "kind": torch.zeros(tensors[name].shape, dtype=torch.int64),
            "scalar": torch.ones(()),
        }
        match draw.choice(["remove", *odd]):
            case "remove":
                del tensors[name]
            case which:
                tensors[draw.choice([name, "nosuch/x", "nosuch"])] = odd[which]
        save_file(tensors, file)
    for name in manifest["files"]:
        file = checkpoint / name
        manifest["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    if kind == 2:
        manifest = change(manifest, draw)
    if isinstance(manifest, dict):
        manifest["digest"] = manifest_digest(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def use(run: Run, state: TrainingState) -> int:
    """Everything that reads a run; returns how much of it was refused."""
    said: list[str] = []
    (path,) = run.folder.glob("checkpoints/*")
    for read in (
        lambda: asdict(summarize(run)),
        lambda: summarize_checkpoints(run),
        lambda: run.checkpoint("latest"),
        lambda: load_generator(path),
        lambda: state.load(path, run.profile, ALONE),
    ):
        began = time.monotonic()
        try:
            read()
        except ThreeDGPError as error:
            said.append(str(error))
        assert time.monotonic() - began < SECONDS
    assert not [text[:300] for text in said if len(text) > 2000]
    return len(said)


def try_many(seed: int, count: int, folder: Path, state: TrainingState) -> None:
    draw = random.Random(seed)
    refused = 0
    for number in range(count):
        run = Run(folder / "runs" / "old")
        shutil.copytree(OLD_RUN, run.folder)
        run.append_metrics({"metric": "nfs8", "results": {"nfs8": 1.0}, "checkpoint": "000000016"})
        checkpoint = run.folder / "checkpoints" / "000000016"
        if number % 2:
            forge(checkpoint, draw)
        else:
            damage(draw.choice(sorted(p for p in run.folder.rglob("*") if p.is_file())), draw)
        refused += use(run, state) > 0
        shutil.rmtree(run.folder)
    assert refused > count / 4


def test_damaged_and_forged_runs(tmp_path, state):
    try_many(1, 16, tmp_path, state)


@pytest.mark.slow
def test_many_damaged_and_forged_runs(tmp_path, state):
    try_many(2, 300, tmp_path, state)


def test_the_fixture_itself_is_whole(tmp_path, state):
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "old")
    assert use(Run.open(Workspace(tmp_path), "old"), state) == 0


def test_files_of_a_checkpoint_have_the_mode_of_all_others(tmp_path):
    from threedgp.runs.checkpoint import save_checkpoint

    path = save_checkpoint(tmp_path, {"G": {"w": torch.ones(2)}}, {}, nimg=1)
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1
