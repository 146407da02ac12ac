"""Small photo folders for the tests of the data stages."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from threedgp.data.journal import JOURNAL


def make_photos(root: Path, count: int = 12, classes: tuple[str, ...] = ("cat", "dog"), size=(40, 50)) -> list[str]:
    """Smooth random photos, the same for the same arguments; one per class is plain noise. Returns their names."""
    random = np.random.RandomState(0)
    names = []
    for group in classes:
        for i in range(count):
            name = f"{group}/{i:02d}.png" if group else f"{i:02d}.png"
            coarse = random.randint(0, 256, (3, 4, 3)).astype(np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))
            if i == 3:
                picture = random.randint(0, 256, (*size, 3)).astype(np.uint8)
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            names.append(name)
    return sorted(names)


def break_photos(root: Path, group: str = "cat") -> list[str]:
    """Add broken files: empty, text, cut off, and a one-pixel photo that is fine. Returns the broken names."""
    (root / group / "empty.jpg").write_bytes(b"")
    (root / group / "text.png").write_text("not a picture")
    whole = (root / group / "00.png").read_bytes()
    (root / group / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), (9, 9, 9)).save(root / group / "pixel.png")
    return sorted(f"{group}/{name}" for name in ("empty.jpg", "text.png", "half.png"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included, but for what differs from run to run: journals and locks."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != JOURNAL and p.suffix != ".lock"
    }


def run_and_kill(code: str, after: str, times: int) -> None:
    """Run Python code in a process of its own that is killed with SIGKILL at the `times`-th call of `after`.

    Args:
        after: "module:object.attribute" of a function; the kill comes right after its call.
    """
    module, path = after.split(":")
    owner, attribute = path.rsplit(".", 1) if "." in path else ("", path)
    trap = f"""
import importlib, os, signal
owner = importlib.import_module({module!r})
for part in {owner!r}.split('.') if {owner!r} else []:
    owner = getattr(owner, part)
original, calls = getattr(owner, {attribute!r}), []
def trapped(*args, **kwargs):
    result = original(*args, **kwargs)
    calls.append(1)
    if len(calls) == {times}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, {attribute!r}, trapped)
"""
    # The environment is this one's: another number of threads would round the features differently.
    process = subprocess.run([sys.executable, "-c", trap + code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
