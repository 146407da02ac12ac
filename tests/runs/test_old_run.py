"""Runs and profiles written by earlier versions: they go on, are scored and rendered.

`old_run/` was trained for two iterations by version 0.1.0 of November 2026 (commit a4a4fff), whose config.yaml holds
derived values as if they had been chosen.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.training.tiny_runs import write_training_set
from threedgp.config.workspace import Workspace
from threedgp.files import write_json
from threedgp.runs.run import Run
from threedgp_cli.main import main

OLD_RUN = Path(__file__).parent / "old_run"


@pytest.fixture
def old_run(tmp_path) -> Run:
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "old")
    data = write_training_set(tmp_path / "data" / "noise" / "32", size=32)
    names = sorted(path.name for path in data.glob("*[0-9].png"))
    write_json(data / "dataset.json", {"labels": [[name, index % 8] for index, name in enumerate(names)]})
    write_json(tmp_path / "runs" / "old" / "data.json", {"path": str(data)})
    return Run.open(Workspace(tmp_path), "old")


@pytest.fixture
def command(old_run, monkeypatch, capsys, tmp_path):
    def run_here(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["3dgp", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said, heard = capsys.readouterr()
        assert stop.value.code == 0, heard + said
        return said

    return run_here


def test_an_old_run_goes_on(old_run, command):
    result = json.loads(command("resume", "old", "--set", "training.kimg=0.024", "--json").splitlines()[-1])
    assert (result["kimg"], result["finished"]) == (0.024, True)
    assert [path.name for path in old_run.checkpoints()] == ["000000016", "000000024"]


def test_an_old_run_is_scored_and_rendered(command, tmp_path):
    assert "nfs4" in command("eval", "nfs", "old", "--n", "4", "--json")
    command("render", "grid", "old", "--seeds", "0-1")
    assert list((tmp_path / "renders").glob("*.png"))
