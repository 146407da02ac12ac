"""`3dgp runs` and `3dgp import` as people use them."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from threedgp.config.profile import load_profile
from threedgp.config.workspace import Workspace
from threedgp.models.build import build_generator
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run
from threedgp_cli.main import main


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run `3dgp ...` in this process inside an empty folder; returns standard output and standard error."""

    def run_here(*arguments, code=0):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["3dgp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said, heard = capsys.readouterr()
        assert stop.value.code == code, heard + said
        assert "Traceback" not in heard
        return said, heard

    return run_here


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture
def trained(workspace):
    """A run with two scored checkpoints, the first one better."""
    profile = load_profile("tiny-cpu", ["training.metrics=[fid2k_full, nfs256]"])
    run = Run.create(workspace, profile)
    for nimg, fid, nfs in ((10_000, 20.0, 3.5), (20_000, 30.0, 4.25)):
        path = save_checkpoint(run.checkpoints_folder, {"G": {"w": torch.ones(3)}}, {}, nimg=nimg)
        run.append_metrics({"metric": "fid2k_full", "results": {"fid2k_full": fid}, "checkpoint": path})
        run.append_metrics({"metric": "nfs256", "results": {"nfs256": nfs}, "checkpoint": path})
    return run


def test_an_empty_workspace_says_how_to_start(command):
    assert "3dgp train --profile NAME" in command("runs", "list")[0]
    assert json.loads(command("runs", "list", "--json")[0]) == []
    assert "There is no run" in command("runs", "show", code=2)[1]


def test_the_list_shows_progress_best_value_and_state(command, workspace, trained, monkeypatch):
    fresh = Run.create(workspace, load_profile("tiny-cpu"), "fresh")
    os.utime(trained.config, ns=(1, 1))
    broken = Run.create(workspace, load_profile("tiny-cpu"), "broken")
    broken.config.write_text("model: 3\n")
    monkeypatch.setenv("COLUMNS", "160")  # a long host name would break the line
    with fresh.lock():
        said, heard = command("runs", "list")
        listed = json.loads(command("runs", "list", "--json")[0])
    lines = said.splitlines()
    assert lines[0].split() == ["run", "profile", "kimg", "best", "state", "size"]
    assert [line.split()[0] for line in lines[1:]] == ["broken", "fresh", "tiny-cpu-001"]
    assert lines[3].split()[1:9] == ["tiny-cpu", "20", "/", "25", "fid2k_full", "20", "stopped", lines[3].split()[8]]
    assert f"running (process {os.getpid()} on" in lines[2]
    assert "broken: " in heard
    assert "config.yaml" in heard
    assert [entry["state"] for entry in listed] == ["broken", "running", "stopped"]
    assert listed[2]["best"] == 20.0
    assert listed[2]["best_kimg"] == 10.0
    assert listed[1]["holder"]["pid"] == os.getpid()


def test_one_run_is_shown_with_its_checkpoints_and_scores(command, trained):
    said, _ = command("runs", "show")
    assert "fid2k_full 20 at 10" in said
    rows = [line.split() for line in said.splitlines()]
    header = next(row for row in rows if row[:1] == ["kimg"])
    assert header == ["kimg", "written", "size", "fid2k_full", "nfs256"]
    tail = rows[rows.index(header) + 1 :]
    assert [row[0] for row in tail] == ["20", "10"]
    assert tail[0][-2:] == ["30", "4.25"]
    assert tail[1][-3:] == ["20", "3.5", "best"]
    shown = json.loads(command("runs", "show", trained.name, "--json")[0])
    assert shown["checkpoints"][1]["scores"] == {"fid2k_full": 20.0, "nfs256": 3.5}
    assert [checkpoint["best"] for checkpoint in shown["checkpoints"]] == [False, True]
    assert "Did you mean 'tiny-cpu-001'" in command("runs", "show", "tiny-cpu-01", code=2)[1]


def test_imported_weights_become_the_newest_run(command, tmp_path):
    profile = load_profile("tiny-cpu")
    torch.manual_seed(0)
    torch.save(build_generator(profile).state_dict(), tmp_path / "weights.pt")
    said, _ = command("import", "weights.pt", "--profile", "tiny-cpu", "--run", "mine", "--set", "camera.near=0.8")
    assert "into the run mine (3dgp)" in said
    advice = said[said.index("3dgp render") :].split()
    assert advice[-1] == "mine"
    assert "Usage" in command(*advice[1:], "--help")[0]  # every option of the advice exists
    assert Run.open(Workspace(tmp_path), "mine").profile.camera.near == 0.8
    assert "imported" in command("runs", "list")[0]
    result = json.loads(command("import", "weights.pt", "--profile", "tiny-cpu", "--json")[0])
    assert result == {
        "run": "tiny-cpu-001",
        "folder": str(tmp_path / "runs" / "tiny-cpu-001"),
        "checkpoint": "000000000",
        "networks": ["G_ema"],
        "kind": "3dgp",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.pkl"], 1, "There is no file nothing.pkl"),
        (["weights.pt"], 2, "--profile imagenet256"),
        (["weights.pt", "--profile", "tiny-cpx"], 2, "Did you mean 'tiny-cpu'"),
        (["weights.pt", "--profile", "tiny-cpu", "--run", "../x"], 2, "cannot be called"),
        (["weights.pt", "--profile", "tiny-cpu", "--set", "camera.nar=1.0"], 2, "Did you mean 'camera.near'"),
        (["weights.pt", "--profile", "tiny-cpu", "--set", "model.generator.z_dim=3"], 1, "mapping.fc0.weight"),
    ],
)
def test_imports_that_cannot_work_are_explained_and_leave_nothing(command, tmp_path, arguments, code, message):
    torch.save(build_generator(load_profile("tiny-cpu")).state_dict(), tmp_path / "weights.pt")
    assert message in command("import", *arguments, code=code)[1]
    assert not (tmp_path / "runs").exists()
