"""A run keeps the command, the versions and the code of every start."""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

import threedgp
from tests.training.tiny_runs import make_run
from threedgp.config.workspace import Workspace
from threedgp.files import read_json_lines
from threedgp.launch.provenance import record_start, save_code


def test_every_start_is_recorded_and_the_code_only_once(tmp_path):
    run = make_run(Workspace(tmp_path), "run")
    for _ in range(2):
        record_start(run, ["3dgp", "train", "--set", "a=[1, 2]"], {"processes": 2})
    lines = read_json_lines(run.folder / "starts.jsonl")
    assert len(lines) == 2
    assert lines[0]["command"] == "3dgp train --set 'a=[1, 2]'"
    assert lines[0]["versions"]["torch"] == importlib.metadata.version("torch")
    assert lines[0]["versions"]["threedgp"] == threedgp.__version__
    assert lines[0]["launch"] == {"processes": 2}
    (archive,) = (run.folder / "code").iterdir()
    assert {line["code"] for line in lines} == {archive.name}


def test_the_archive_holds_the_code_as_it_is(tmp_path):
    archive = save_code(tmp_path)
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        trainer = file.read("threedgp/training/trainer.py")
    assert trainer == (Path(threedgp.__file__).parent / "training" / "trainer.py").read_bytes()
    assert "threedgp_cli/main.py" in names
    assert "configs/imagenet256.yaml" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("/", ".."))]
    assert archive.stat().st_size < 5e6
