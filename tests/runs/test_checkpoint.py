"""Checkpoints survive crashes, refuse damage, and are found, pruned and replaced without ever losing the last one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from threedgp.config.schema import DataConfig, Profile
from threedgp.errors import CheckpointError
from threedgp.runs import catalog
from threedgp.runs import checkpoint as module
from threedgp.runs.catalog import (
    NewerCheckpointError,
    checkpoint_nimg,
    find_latest,
    list_checkpoints,
    prune_checkpoints,
    remove_checkpoint,
    verify_checkpoint,
)
from threedgp.runs.checkpoint import load_checkpoint, save_checkpoint
from threedgp.runs.state import load_optimizer_tensors, optimizer_tensors

ROOT = Path(__file__).resolve().parents[2]


class Notes:
    """Remembers what was noted."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"G": {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.zeros(3)}, "D": {}}


def save(folder, nimg, **state):
    return save_checkpoint(folder, tensors(nimg), {"nimg": nimg, **state}, nimg=nimg)


def test_everything_comes_back_exactly(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    groups = {
        "G": {
            "float64": torch.tensor(1 / 3, dtype=torch.float64),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "transposed": base.T,
            "slice": base[1:, 2:],
            "shared": base,
            "again": base,
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
            "parameter": torch.nn.Parameter(base + 1),
        },
        "optim_G": {"w/exp_avg": base * 2, "w/step": torch.tensor(7.0)},
        "D": {},
    }
    state = {"nimg": 64, "best": {"value": float("inf")}, "note": "Zürich", "list": [1, 2.5, None]}
    path = save_checkpoint(tmp_path / "checkpoints", groups, state, nimg=64)
    assert path.name == "000000064"
    loaded = load_checkpoint(path)
    assert loaded.state == state
    assert loaded.tensors.keys() == groups.keys()
    for group, members in groups.items():
        assert loaded.tensors[group].keys() == members.keys()
        for name, value in members.items():
            assert loaded.tensors[group][name].dtype == value.dtype
            assert torch.equal(loaded.tensors[group][name], value)
    assert load_checkpoint(path, groups=[]).state == state
    assert load_checkpoint(path, groups=["optim_G"]).tensors.keys() == {"optim_G"}
    assert not [entry for entry in path.parent.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("name", ["G.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["half", "flip", "missing", "empty"])
def test_damage_is_named_and_never_loaded(tmp_path, name, damage):
    path = save(tmp_path, 10)
    file = path / name
    content = file.read_bytes()
    if damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"G\.safetensors|state\.json|manifest\.json") as caught:
        load_checkpoint(path)
    assert "delete this folder" in str(caught.value).lower()
    assert "Traceback" not in str(caught.value)


def test_no_damaged_byte_of_the_manifest_changes_what_is_loaded(tmp_path):
    path = save(tmp_path, 10)
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    expected = load_checkpoint(path)
    for position in range(0, len(content), 3):
        manifest.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
        manifest.write_bytes(content[:position] + b"9" + content[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        assert loaded.state == expected.state
        assert torch.equal(loaded.tensors["G"]["a.weight"], expected.tensors["G"]["a.weight"])


@pytest.mark.parametrize(
    "manifest", ["[]", "null", "3", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": "1", "files": {}}']
)
def test_strange_manifests_are_refused(tmp_path, manifest):
    path = save(tmp_path, 10)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_places_without_a_checkpoint_are_explained(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "000000001").mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "000000001")
    with pytest.raises(CheckpointError, match="holds no G_ema, only D, G"):
        load_checkpoint(save(tmp_path, 2), groups=["G_ema"])
    assert find_latest(tmp_path / "nowhere") is None


def test_a_newer_format_asks_for_an_upgrade_instead_of_falling_back(tmp_path):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 2, "version": "9.1"}))
    with pytest.raises(NewerCheckpointError, match=r"9\.1.*format 2.*Upgrade"):
        load_checkpoint(path)
    with pytest.raises(NewerCheckpointError):
        find_latest(tmp_path)


def test_another_profiles_checkpoint_is_refused_by_the_value_that_differs(tmp_path):
    profile = Profile(name="dogs256")
    path = save_checkpoint(tmp_path, tensors(), {}, nimg=1, profile=profile)
    load_checkpoint(path, profile=profile)
    load_checkpoint(path, profile=profile.model_copy(update={"name": "renamed", "gpus": 4}))
    other = Profile(name="cats128", data=DataConfig(resolution=128))
    with pytest.raises(CheckpointError, match=r"dogs256.*data\.resolution = 256.*cats128.*128"):
        load_checkpoint(path, profile=other)


def test_latest_falls_back_to_the_next_older_intact_one(tmp_path):
    first, second, third = save(tmp_path, 10), save(tmp_path, 20), save(tmp_path, 1_000_000_000)
    assert list_checkpoints(tmp_path) == [first, second, third]
    assert find_latest(tmp_path) == third
    os.truncate(third / "G.safetensors", 20)
    (second / "state.json").unlink()
    notes = Notes()
    assert find_latest(tmp_path, notes) == first
    assert len(notes.texts) == 2
    assert "G.safetensors" in notes.texts[0]
    assert "state.json is missing" in notes.texts[1]


def test_pruning_keeps_the_last_the_named_and_the_milestones(tmp_path):
    paths = {nimg: save(tmp_path, nimg) for nimg in (400, 900, 1100, 1500, 2600, 2700, 4100, 4200, 4300)}
    deleted = prune_checkpoints(tmp_path, keep_last=2, keep=[paths[900]], keep_every_kimg=1.0)
    assert deleted == [paths[400], paths[1500], paths[2700]]
    assert list_checkpoints(tmp_path) == [paths[nimg] for nimg in (900, 1100, 2600, 4100, 4200, 4300)]
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)
    assert prune_checkpoints(tmp_path / "nowhere", keep_last=1) == []


def test_nothing_is_pruned_while_the_newest_is_damaged(tmp_path):
    paths = [save(tmp_path, nimg) for nimg in (1, 2, 3)]
    os.truncate(paths[-1] / "G.safetensors", 5)
    assert prune_checkpoints(tmp_path, keep_last=1) == []
    assert list_checkpoints(tmp_path) == paths


def test_saving_again_at_the_same_image_count_replaces(tmp_path):
    save(tmp_path, 5, attempt=1)
    path = save(tmp_path, 5, attempt=2)
    assert list_checkpoints(tmp_path) == [path]
    assert load_checkpoint(path, groups=[]).state["attempt"] == 2
    remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_death_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path, monkeypatch):
    path = save(tmp_path, 5, attempt=1)
    rename, calls = os.rename, []

    def dies_at_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(catalog.os, "rename", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, attempt=2)
    monkeypatch.undo()
    assert not path.exists()
    found = find_latest(tmp_path)
    assert load_checkpoint(found, groups=[]).state["attempt"] == 1
    assert checkpoint_nimg(found) == 5
    save(tmp_path, 6)
    assert [entry.name for entry in list_checkpoints(tmp_path)] == ["000000005", "000000006"]
    assert load_checkpoint(path, groups=[]).state["attempt"] == 1


def test_leftovers_of_crashed_writers_are_invisible_and_cleaned(tmp_path):
    leftover = tmp_path / ".000000009.tmp-0a1b2c3d"
    leftover.mkdir()
    (leftover / "G.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert list_checkpoints(tmp_path) == []
    save(tmp_path, 1)
    assert not leftover.exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_full_disk_is_reported_and_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs .* MB, but only .* MB are free"):
        save(tmp_path, 2)
    monkeypatch.undo()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    verify_checkpoint(path)


# Importing torch takes seconds, so one process imports and each writer is a fork of it. The pipe tells how far the
# writer got before it was killed.
FORKER = """
import os, signal, sys, time
import torch
from threedgp.runs.catalog import prune_checkpoints
from threedgp.runs.checkpoint import save_checkpoint
folder = sys.argv[1]

def write(nimg, report):
    while True:
        nimg += 1
        weights = {"G": {"w": torch.full((50_000,), float(nimg))}, "D": {"w": torch.full((9,), float(nimg))}}
        save_checkpoint(folder, weights, {"nimg": nimg}, nimg=nimg - nimg % 2)  # every second one replaces
        prune_checkpoints(folder, keep_last=2)
        os.write(report, b"%d\\n" % nimg)

for line in sys.stdin:
    nimg, delay = line.split()
    source, report = os.pipe()
    child = os.fork()
    if not child:
        write(int(nimg), report)
    os.close(report)
    first = b""
    while not first.endswith(b"\\n"):  # at least one whole checkpoint
        first += os.read(source, 1)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = first
    while block := os.read(source, 65536):
        rest += block
    os.close(source)
    print(rest.split(b"\\n")[-2].decode(), flush=True)
"""


def test_kill_9_at_random_moments_never_costs_the_last_checkpoint(tmp_path):
    """Twenty writers are killed in the middle; each time the last finished checkpoint, or a newer one, loads."""
    randomness = random.Random(0)
    finished = 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    starter = subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    leftovers = 0
    try:
        for _ in range(20):
            starter.stdin.write(f"{finished} {randomness.uniform(0.01, 0.08)}\n")
            starter.stdin.flush()
            finished = int(starter.stdout.readline())
            leftovers += any(entry.name.startswith(".") for entry in tmp_path.iterdir())
            path = find_latest(tmp_path, Notes())
            checkpoint = load_checkpoint(path)
            nimg = checkpoint.state["nimg"]
            assert nimg >= finished > 0
            assert (checkpoint.tensors["G"]["w"] == nimg).all()
            assert (checkpoint.tensors["D"]["w"] == nimg).all()
            finished = nimg
    finally:
        starter.stdin.close()
        starter.wait(timeout=30)
    assert leftovers > 0, "no writer was killed while writing: the test proves nothing"


def test_an_optimizer_continues_as_if_never_stopped():
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    def step(net, optimizer, seed):
        optimizer.zero_grad()
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        net(data).square().sum().backward()
        optimizer.step()

    straight = network()
    adam = torch.optim.Adam(straight.parameters(), lr=0.01, betas=(0.0, 0.99))
    for seed in range(3):
        step(straight, adam, seed)
    saved, weights = optimizer_tensors(adam, straight), {k: v.clone() for k, v in straight.state_dict().items()}
    saved = {name: value.clone() for name, value in saved.items()}
    assert set(saved) >= {"0.weight/exp_avg", "1.bias/exp_avg_sq", "0.weight/step"}
    step(straight, adam, 3)

    resumed = network()
    resumed.load_state_dict(weights)
    other = torch.optim.Adam(resumed.parameters(), lr=0.01, betas=(0.0, 0.99))
    load_optimizer_tensors(other, resumed, saved)
    step(resumed, other, 3)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)

    with pytest.raises(CheckpointError, match=r"0\.weight/exp_avg has shape \[2\]"):
        load_optimizer_tensors(other, resumed, saved | {"0.weight/exp_avg": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"2\.weight, which the network does not train"):
        load_optimizer_tensors(other, resumed, {"2.weight/exp_avg": torch.zeros(2)})
