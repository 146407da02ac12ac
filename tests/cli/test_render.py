"""`3dgp render`: what the commands write, and what they say to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.inference.tiny import tiny_run
from threedgp.errors import CheckpointError, ConfigError, DataError, ThreeDGPError, UsageError
from threedgp.inference.mesh import SurfaceError
from threedgp_cli import main
from threedgp_cli.render import app

CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with a conditional, an unconditional, a 2D and an empty run; the conditional one's data has names."""
    root = tmp_path_factory.mktemp("workspace")
    data = root / "data" / "demo" / "16"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps({"labels": None, "classes": CLASSES}))
    tiny_run(root, "epigraf", name="plain")
    tiny_run(root, "stylegan2", name="flat")
    run = tiny_run(root, name="main")
    (root / "runs" / "empty").mkdir()
    (root / "runs" / "empty" / "config.yaml").write_text(run.config.read_text())
    os.utime(root / "runs" / "empty" / "config.yaml", (1, 1))
    return root


def render(place, *arguments: str, fails: type[ThreeDGPError] | None = None):
    """The object of --json, or the error."""
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(place), "--json"])
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
        return result.exception
    if result.exception is not None:
        raise AssertionError(result.output) from result.exception
    return json.loads(result.stdout)


def pixels(path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_video(place):
    made = render(place, "video", "main", "--seeds", "0-2", "--set", "num_frames=5", "--show", "both", "--fps", "12")
    (path,) = made["files"]
    assert path == str(place / "renders" / "main-2kimg-front_circle-seeds0-2-rgb-depth-fps12.0-num_frames5.mp4")
    shown = iio.imread(path)
    assert shown.shape == (5, 2 * 18 + 2, 2 * 34 + 2, 3)
    facts = iio.immeta(path)
    assert (facts["codec"], facts["fps"]) == ("h264", 12)
    record = json.loads((place / "renders" / (path.rsplit("/", 1)[1][:-4] + ".json")).read_text())
    assert record["files"] == [path.rsplit("/", 1)[1]]
    assert record["checkpoint"]["run"] == "main"
    assert len(record["checkpoint"]["sha256"]) == 64
    first = record["samples"][0]
    assert first["sample"] == {"label": "c00000-s0000", "seed": 0, "class": 0, "class_name": "ant"}
    assert set(first["camera"]) >= {"yaw", "pitch", "fov"}
    assert {"network", "compose", "encode", "total"} <= set(made["seconds"])


def test_the_newest_run_is_the_default_and_a_checkpoint_can_be_named(place, tmp_path):
    shared = ["--seeds", "0", "--trajectory", "point"]
    render(place, "grid", *shared, "--out", str(tmp_path / "a.png"))
    render(place, "grid", "main", *shared, "--checkpoint", "2", "--out", str(tmp_path / "b.png"))
    folder = place / "runs" / "main" / "checkpoints" / "000002000"
    render(place, "grid", str(folder), *shared, "--out", str(tmp_path / "c.png"))
    contents = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("kind", ["video", "grid"])
def test_repeating_gives_identical_files(place, tmp_path, kind):
    ending = {"video": "mp4", "grid": "png"}[kind]
    options = ["--seeds", "1,5", "--classes", "1", "--camera", "posterior", "--truncation", "0.9", "--captions"]
    motion = ["--trajectory", "wiggle", "--set", "num_frames=4", "--set", "yaw_left=-0.4"]
    render(place, kind, "main", *options, *motion, "--show", "rgb,adapted", "--out", str(tmp_path / f"a.{ending}"))
    render(place, kind, "--from", str(tmp_path / "a.json"), "--out", str(tmp_path / f"b.{ending}"))
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["settings"] == b["settings"]
    assert a["samples"] == b["samples"]
    render(place, kind, "--from", str(tmp_path / "a.json"), "--seeds", "2", "--out", str(tmp_path / f"c.{ending}"))
    assert json.loads((tmp_path / "c.json").read_text())["settings"]["seeds"] == [2]


def test_formats_of_one_name_keep_their_own_records(place, tmp_path):
    for ending, seed in (("gif", "1"), ("webp", "2"), ("gif", "3")):
        out = str(tmp_path / f"a.{ending}")
        render(place, "video", "--seeds", seed, "--size", "8", "--set", "num_frames=2", "--out", out)
    assert names(tmp_path) == ["a.gif", "a.json", "a.webp", "a.webp.json"]
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["seeds"] == [3]
    assert json.loads((tmp_path / "a.webp.json").read_text())["settings"]["seeds"] == [2]


def test_grid_shows_classes_by_name_view_by_view(place, tmp_path):
    out = str(tmp_path / "a.png")
    made = render(place, "grid", "main", "--seeds", "0-1", "--classes", "CAT,0", "--out", out)
    assert made["samples"] == 4
    assert pixels(out).shape == (18 + 2, 4 * (3 * 16 + 2) + 2, 3)
    record = json.loads((tmp_path / "a.json").read_text())
    assert [entry["sample"]["class_name"] for entry in record["samples"]] == ["cat", "cat", "ant", "ant"]


def test_grid_batches_are_alike(place, tmp_path):
    for batch in ("1", "16"):
        render(place, "grid", "main", "--seeds", "0-3", "--batch", batch, "--out", str(tmp_path / f"{batch}.png"))
    one, many = pixels(tmp_path / "1.png").astype(int), pixels(tmp_path / "16.png")
    assert np.abs(one - many).max() <= 1
    assert (one != many).mean() < 1e-3


def test_many_samples_make_several_files(place, tmp_path):
    made = render(
        place, "grid", "plain", "--seeds", "0-4", "--per-file", "2", "--format", "jpg", "--out", str(tmp_path / "a")
    )
    assert names(tmp_path) == ["a-s0000-s0001.jpg", "a-s0002-s0003.jpg", "a-s0004-s0004.jpg", "a.json"]
    assert len(made["files"]) == 3


def test_interpolation(place, tmp_path):
    grid = tmp_path / "a.png"
    render(place, "grid", "main", "--seeds", "0-3", "--classes", "1,2", "--interpolate", "5", "--out", str(grid))
    assert pixels(grid).shape == (2 * 18 + 2, 5 * 16 + 4, 3)
    record = json.loads((tmp_path / "a.json").read_text())
    assert [record["samples"][0][end]["label"] for end in ("sample", "to")] == ["c00001-s0000", "c00002-s0001"]
    render(place, "video", "main", "--seeds", "0-1", "--interpolate", "4", "--out", str(tmp_path / "a.gif"))
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 4


def test_ranges_are_the_half_widths(place, tmp_path):
    for name in ("yaw_range", "yaw_diff"):
        motion = ["--set", f"{name}=0.6", "--set", "num_frames=2"]
        render(place, "video", "plain", "--seeds", "0", *motion, "--out", str(tmp_path / f"{name}.mp4"))
        assert json.loads((tmp_path / f"{name}.json").read_text())["trajectory"]["yaw_diff"] == 0.6


def test_single_frames(place, tmp_path):
    arguments = ["--seeds", "0", "--set", "num_frames=3", "--format", "png", "--out", str(tmp_path / "frames")]
    render(place, "video", "plain", *arguments)
    assert names(tmp_path / "frames") == ["00000.png", "00001.png", "00002.png"]
    assert (tmp_path / "frames.json").is_file()


def test_2d_model(place, tmp_path):
    out = tmp_path / "a.png"
    render(place, "grid", "flat", "--seeds", "0-4", "--trajectory", "points", "--out", str(out))
    assert pixels(out).shape == (2 * 18 + 2, 4 * 18 + 2, 3)
    for kind in ("video", "mesh"):
        assert "needs a 3D model" in str(render(place, kind, "flat", fails=UsageError))
    assert "no depth" in str(render(place, "grid", "flat", "--show", "both", fails=UsageError))


def test_mesh(place, tmp_path):
    options = ["--seeds", "0-1", "--threshold", "percentile:80", "--resolution", "16", "--size", "32"]
    made = render(place, "mesh", "main", *options, "--format", "ply,glb,mrc", "--out", str(tmp_path / "a"))
    labels = ["a-c00000-s0000", "a-c00001-s0001"]
    endings = ["glb", "mrc", "ply", "png"]
    assert names(tmp_path) == sorted([f"{label}.{ending}" for label in labels for ending in endings] + ["a.json"])
    assert len(made["files"]) == 8
    assert pixels(tmp_path / "a-c00000-s0000.png").shape == (96, 96, 3)
    render(place, "mesh", "--from", str(tmp_path / "a.json"), "--out", str(tmp_path / "b"))
    for label in labels:
        for ending in endings:
            again = tmp_path / f"b{label[1:]}.{ending}"
            assert (tmp_path / f"{label}.{ending}").read_bytes() == again.read_bytes()


def test_mesh_in_the_published_cut_and_scale(place, tmp_path):
    import trimesh

    options = ["--threshold", "percentile:70", "--resolution", "24", "--size", "16", "--crop", "--normalize"]
    render(place, "mesh", "plain", *options, "--out", str(tmp_path / "a.obj"))
    mesh = trimesh.load(tmp_path / "a.obj")
    assert np.linalg.norm(mesh.extents) == pytest.approx(1.0, abs=1e-4)


def test_mesh_without_surface(place, tmp_path):
    error = render(
        place,
        "mesh",
        "main",
        "--threshold",
        "1e9",
        "--resolution",
        "8",
        "--out",
        str(tmp_path / "a"),
        fails=SurfaceError,
    )
    assert "--threshold" in str(error)
    assert names(tmp_path) == []


def test_samples_without_surface_do_not_cost_the_others_theirs(place, tmp_path):
    """The threshold lies between the largest densities of four samples, so that some have a surface and some not."""
    options = ["mesh", "plain", "--seeds", "0-3", "--resolution", "8", "--size", "16"]
    peaks = {}
    for seed in range(4):
        error = render(place, *options, "--seeds", str(seed), "--threshold", "1e9", fails=SurfaceError)
        assert str(error).startswith(f"s{seed:04d}: No surface")
        peaks[f"s{seed:04d}"] = float(str(error).split(" to ")[1].split(". Try")[0])
    low, high = sorted(peaks.values())[1:3]
    threshold = f"{(low + high) / 2:.9g}"
    result = CliRunner().invoke(
        app, [*options, "--threshold", threshold, "--out", str(tmp_path / "a"), "--json", "--workspace", str(place)]
    )
    assert result.exit_code == 1
    without = [label for label, peak in peaks.items() if peak < float(threshold)]
    answer = json.loads(result.stdout)
    assert list(answer["failed"]) == without
    assert answer["samples"] == 4 - len(without)
    record = json.loads((tmp_path / "a.json").read_text())
    assert list(record["failed"]) == without
    assert len(record["files"]) == 2 * (4 - len(without))
    assert all((tmp_path / name).is_file() for name in record["files"])


def test_a_render_outlives_its_record(place, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "a.json")

    monkeypatch.setattr("threedgp.inference.jobs.write_record", full)
    made = render(place, "grid", "main", "--seeds", "0", "--size", "8", "--out", str(tmp_path / "a.png"))
    assert made["record"] is None
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["grid", "main", "--seeds", "0-999999999999"], UsageError, "out of range"),
        (["grid", "main", "--seeds", "0-99999", "--per-file", "99999", "--size", "4096"], UsageError, "memory"),
        (["video", "main", "--seeds", "0-99", "--per-file", "99", "--size", "4096"], UsageError, "at most 8192"),
        (["video", "main", "--set", "yaw_diff=1e300"], ConfigError, "beyond"),
        (["video", "main", "--set", "yaw_diff=nan"], ConfigError, "finite"),
        (["mesh", "main", "--cube-size", "inf"], UsageError, "--cube-size"),
        (["grid", "main", "--checkpoint", "1.5"], CheckpointError, "no checkpoint '1.5'"),
        (["grid", "main", "--classes", "4"], UsageError, "largest is 3"),
        (["grid", "main", "--classes", "cow"], UsageError, "Did you mean 'dog'|There is no class 'cow'"),
        (["grid", "plain", "--classes", "0"], UsageError, "unconditional"),
        (["grid", "main", "--seeds", ""], UsageError, "nothing to render"),
        (["grid", "main", "--seeds", "5-1"], UsageError, "backwards"),
        (["video", "main", "--seeds", "1-3", "--interpolate", "4"], UsageError, "pairs of seeds"),
        (["grid", "nowhere"], UsageError, "no run 'nowhere'"),
        (["grid", "empty"], CheckpointError, "no checkpoint"),
        (["grid", "main", "--checkpoint", "7"], CheckpointError, "no checkpoint '7'"),
        (["video", "main", "--trajectory", "front_circel"], ConfigError, "front_circle"),
        (["video", "main", "--set", "yaw_dif=0.6"], ConfigError, "yaw_diff"),
        (["video", "main", "--set", "yaw_diff"], UsageError, "KEY=VALUE"),
        (["video", "main", "--set", "yaw_diff=far"], ConfigError, "yaw_diff"),
        (["video", "main", "--set", "num_frames=0"], ConfigError, "num_frames"),
        (["video", "main", "--fps", "0"], UsageError, "--fps"),
        (["video", "main", "--out", "a.avi"], UsageError, ".mp4"),
        (["video", "main", "--crf", "60"], UsageError, "--crf"),
        (["grid", "main", "--show", "normals"], UsageError, "--show"),
        (["grid", "plain", "--show", "adapted"], UsageError, "depth adaptor"),
        (["grid", "main", "--size", "100000"], UsageError, "--size"),
        (["grid", "main", "--steps", "-1"], UsageError, "--steps"),
        (["grid", "main", "--steps", "nan"], UsageError, "--steps"),
        (["grid", "main", "--far-offset", "-3"], UsageError, "--far-offset"),
        (["grid", "main", "--truncation", "nan"], UsageError, "--truncation"),
        (["grid", "main", "--device", "cuda:77"], UsageError, "--device"),
        (["grid", "main", "--device", "toaster"], UsageError, "--device"),
        (["grid", "main", "--data", "nowhere"], DataError, "nowhere"),
        (["grid", "--from", "nowhere.json"], DataError, "does not exist"),
        (["mesh", "main", "--threshold", "solid"], UsageError, "--threshold"),
        (["mesh", "main", "--format", "stl"], UsageError, "--formats"),
        (["mesh", "main", "--resolution", "2"], UsageError, "--resolution"),
        (["mesh", "main", "--cube-size", "-1"], UsageError, "--cube-size"),
    ],
)
def test_bad_input(place, arguments, error, words):
    before = names(place / "renders") if (place / "renders").exists() else []
    import re

    assert re.search(words, str(render(place, *arguments, fails=error)))
    assert (names(place / "renders") if (place / "renders").exists() else []) == before


def test_no_ffmpeg(place, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert "--format png" in str(render(place, "video", "plain", "--seeds", "0", fails=UsageError))


def test_another_checkpoint_is_not_passed_off_as_the_recorded_one(place, tmp_path):
    render(place, "grid", "main", "--seeds", "0", "--out", str(tmp_path / "a.png"))
    record = json.loads((tmp_path / "a.json").read_text())
    record["checkpoint"]["sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(record))
    error = render(place, "grid", "--from", str(tmp_path / "a.json"), fails=CheckpointError)
    assert "other weights" in str(error)
    render(place, "grid", "main", "--from", str(tmp_path / "a.json"), "--out", str(tmp_path / "b.png"))  # on purpose


def test_bench(place):
    result = CliRunner().invoke(
        main.app,
        ["bench", "render", "plain", "--frames", "3", "--samples", "2", "--workspace", str(place), "--json"],
    )
    assert result.exception is None, result.output
    speed = json.loads(result.stdout)
    parts = speed["seconds"]
    assert parts["network"] == pytest.approx(parts["styles"] + parts["planes"] + parts["rays"])
    assert 0 < speed["network_share"] < 1
    assert speed["saved_by_planes"] > 1
    result = CliRunner().invoke(main.app, ["bench", "render", "plain", "--profile", "tiny-cpu"])
    assert isinstance(result.exception, UsageError)


def test_errors_of_the_program_itself(place):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "threedgp_cli.main", "render", *arguments, "--workspace", str(place)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    result = run("grid", "main", "--classes", "9")
    assert result.returncode == 2
    assert "Error: --classes: 9 is out of range" in result.stderr
    assert "Traceback" not in result.stderr
