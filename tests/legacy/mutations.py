"""Imports damaged snapshots of every format in a process with little memory: `python -m tests.legacy.mutations 300`.

Prints how many were refused and how many still could be read; anything else than a plain refusal ends it with a
traceback, more than ten seconds for a file with a signal.
"""

from __future__ import annotations

import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.legacy.writer import write_snapshot
from threedgp.config.profile import load_profile
from threedgp.config.workspace import Workspace
from threedgp.errors import ThreeDGPError
from threedgp.legacy.importing import import_snapshot
from threedgp.models.build import build_generator

SETTINGS = ["model.kind=stylegan2", "training.use_depth=false", "training.learn_camera=false"]
SETTINGS += ["training.patch.enabled=false", "training.patch.conditioning=false", "loss.distillation.weight=0.0"]
SETTINGS += ["loss.camera.emd.enabled=false", "loss.camera.force_mean.weight=0.0", "data.num_classes=0"]
SETTINGS += ["model.discriminator.hyper_mod=false", "model.generator.cbase=64", "model.generator.cmax=8"]
SETTINGS += ["model.generator.z_dim=8", "model.generator.w_dim=8"]


def originals(folder: Path) -> list[Path]:
    """One small generator in every format."""
    generator = build_generator(load_profile("tiny-cpu", SETTINGS))
    state = generator.state_dict()
    files = [folder / name for name in ("a.pkl", "b.pkl", "new.pt", "old.pth", "c.npz", "d.safetensors")]
    for file, style in zip(files, ("easy", "omega"), strict=False):
        write_snapshot(file, {"G_ema": generator}, {"G_ema": ({"z_dim": 8}, {"a": [1, 2.5, "x"]})}, style=style)
    torch.save(state, files[2])
    torch.save(state, files[3], _use_new_zipfile_serialization=False)
    np.savez_compressed(files[4], **{name: value.numpy() for name, value in state.items()})
    save_file(state, files[5])
    return files


def damage(content: bytes, source: random.Random) -> bytes:
    """A few bytes changed, most of them where the structure is, a part left out, doubled, or the end cut off."""
    data = bytearray(content)
    for _ in range(source.randint(1, 8)):
        place = source.choice([source.randrange(len(data)), source.randrange(4000), -source.randrange(1, 4000)])
        data[place % len(data)] = source.randrange(256)
    kind = source.randrange(8)
    start = source.randrange(len(data))
    end = start + source.randrange(300)
    if kind == 0:
        del data[start:end]
    elif kind == 1:
        data[start:start] = data[start:end]
    elif kind == 2:
        del data[start:]
    return bytes(data)


def main(count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    source = random.Random(0)
    torch.manual_seed(0)
    contents = [(file, file.read_bytes()) for file in originals(folder)]
    workspace = Workspace(folder)
    outcomes = {"refused": 0, "read": 0}
    for file, _ in contents:
        import_snapshot(file, workspace, profile="stylegan2-256")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    for index in range(count):
        file, content = contents[index % len(contents)]
        damaged = file.with_stem("damaged")
        damaged.write_bytes(damage(content, source))
        signal.alarm(10)
        try:
            import_snapshot(damaged, workspace, profile="stylegan2-256")
            outcomes["read"] += 1
        except ThreeDGPError as error:
            message = str(error)
            if len(message) > 2000 or not message.isprintable():
                raise SystemExit(f"an unfit message: {message!r:.2000}") from None
            outcomes["refused"] += 1
        signal.alarm(0)
        shutil.rmtree(workspace.runs, ignore_errors=True)
    shutil.rmtree(folder)
    print(outcomes["refused"], outcomes["read"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
