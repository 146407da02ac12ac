"""Settings, records and names of renders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from threedgp.errors import ConfigError, DataError, UsageError
from threedgp.inference.outputs import default_name, list_ranges, output_base, wanted_format
from threedgp.inference.settings import (
    build_motion,
    build_subjects,
    changed_settings,
    complete_settings,
    read_record,
    recorded_format,
    write_record,
)


def test_usual_settings():
    video, grid, mesh = (complete_settings(kind, {}) for kind in ("video", "grid", "mesh"))
    assert (video.trajectory, grid.trajectory) == ("front_circle", "points")
    assert (video.truncation, video.steps, video.far_offset, video.fps, video.crf) == (0.7, 2.0, 0.0, 30.0, 10)
    assert complete_settings("grid", {}, imported=True).far_offset == 1.0
    assert video.seeds == list(range(16))
    assert mesh.seeds == [0]
    assert complete_settings("grid", {"interpolate": 3}).trajectory == "point"
    assert complete_settings("grid", {"trajectory": "line"}, is_2d=True).trajectory is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"truncation": float("nan")}, "--truncation"),
        ({"truncation": 9.0}, "--truncation"),
        ({"steps": float("inf")}, "--steps"),
        ({"far_offset": float("nan")}, "--far-offset"),
        ({"crf": 99}, "--crf"),
        ({"batch": 0}, "--batch"),
        ({"seeds": []}, "--seeds"),
        ({"colour": 1}, "--colour"),
        ({"seeds": ["1"]}, "--seeds"),
    ],
)
def test_settings_that_do_not_fit_are_named(values, words):
    with pytest.raises(UsageError, match=words):
        complete_settings("video", values)


def test_motion_is_as_long_as_the_interpolation():
    def frames(**values):
        return build_motion(complete_settings("video", {"interpolate": 20, **values})).frames()

    assert frames() == 20
    assert frames(trajectory="point") == 1
    with pytest.raises(UsageError, match="makes 20 pictures, but trajectory points has 3"):
        frames(trajectory="points")
    with pytest.raises(UsageError, match="has 7"):
        frames(motion={"num_frames": "7"})
    with pytest.raises(ConfigError, match="front_circle"):
        frames(trajectory="front_circel")
    with pytest.raises(ConfigError, match="yaw_diff"):
        frames(motion={"yaw_dif": "1"})


def test_classes_must_exist_also_in_records():
    settings = complete_settings("grid", {"classes": [7]})
    with pytest.raises(UsageError, match="0 to 3"):
        build_subjects(settings, 4)
    with pytest.raises(UsageError, match="unconditional"):
        build_subjects(settings, 0)
    assert len(build_subjects(settings, 8)) == 16


def test_changing_a_record():
    earlier = {"trajectory": "front_circle", "motion": {"num_frames": "9", "yaw_diff": "0.1"}, "fps": 12.0}
    changed = changed_settings(earlier, {"motion": {"yaw_diff": "0.6"}})
    assert changed["motion"] == {"num_frames": "9", "yaw_diff": "0.6"}
    assert changed_settings(earlier, {"trajectory": "orbit"})["motion"] == {}
    assert changed_settings(earlier, {"trajectory": "front_circle"}) == earlier
    assert changed_settings({}, {"motion": {"a": "1"}}) == {"motion": {"a": "1"}}


def test_records_come_back(tmp_path):
    settings = complete_settings("video", {"classes": [1], "motion": {"num_frames": "3"}})
    checkpoint = {"run": "a", "name": "000001000", "sha256": "f" * 64}
    write_record(tmp_path / "a.json", "video", settings, {"checkpoint": checkpoint})
    values, found = read_record(tmp_path / "a.json", "video")
    assert complete_settings("video", values) == settings
    assert found == checkpoint


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, DataError, "does not exist"),
        ("{", DataError, "not valid JSON"),
        ("[]", DataError, "no record of a render"),
        ('{"render": "video", "format": 1, "settings": 3, "checkpoint": {}}', DataError, "no record of a render"),
        ({"render": "video", "format": 9}, DataError, "another version"),
        ({"render": "grid", "format": 1}, UsageError, "3dgp render grid --from"),
    ],
)
def test_bad_records(tmp_path, content, error, words):
    path = tmp_path / "a.json"
    if isinstance(content, dict):
        content |= {"settings": {}, "checkpoint": {"run": "a", "name": "b", "sha256": "c"}}
        content = json.dumps(content)
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=words):
        read_record(path, "video")


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": [-1]},
        {"seeds": [2**40]},
        {"seeds": []},
        {"seeds": "0-3"},
        {"motion": "fast"},
        {"motion": None},
        {"trajectory": 5},
        {"format": []},
        {"per_file": 10**12},
        {"steps": float("nan")},
        {"size": "x" * 100_000},
        {"nonsense": 1},
    ],
)
def test_settings_of_a_record_are_checked(tmp_path, changed):
    path = tmp_path / "a.json"
    write_record(path, "grid", complete_settings("grid", {}), {"checkpoint": {"run": "a", "name": "b", "sha256": "c"}})
    content = json.loads(path.read_text())
    content["settings"] |= changed
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no record of a render") as error:
        read_record(path, "grid")
    assert len(str(error.value)) < 500 + len(str(path))
    assert recorded_format(path, "grid") == "other"


def test_names_tell_what_is_inside():
    assert default_name("video", complete_settings("video", {})) == "front_circle-seeds0-15"
    changed = complete_settings("grid", {"seeds": [3, 4, 9], "classes": [1], "truncation": 1.0, "captions": True})
    assert default_name("grid", changed) == "points-seeds3-4_9-classes1-truncation1.0-captions"
    moved = complete_settings("video", {"motion": {"yaw_diff": "0.6"}, "show": ["rgb", "depth"]})
    assert default_name("video", moved) == "front_circle-seeds0-15-rgb-depth-yaw_diff0.6"
    many = complete_settings("video", {"motion": {"yaw_offsets": "../" * 200}})
    other = complete_settings("video", {"motion": {"yaw_offsets": "../" * 201}})
    assert len(default_name("video", many)) <= 120
    assert "/" not in default_name("video", many)
    assert default_name("video", many) != default_name("video", other)
    assert list_ranges(range(0, 40, 2)) == "0..38x20"


def test_endings_choose_the_format(tmp_path):
    assert wanted_format("video", Path("a.GIF"), {}) == {"format": "gif"}
    assert wanted_format("grid", Path("a.jpg"), {"format": "jpg"}) == {"format": "jpg"}
    assert wanted_format("mesh", Path("a.glb"), {}) == {"formats": ["glb"]}
    assert wanted_format("video", Path("run-0.5kimg"), {}) == {}
    for kind, out, given in [
        ("video", "a.avi", {}),
        ("video", "a.png", {}),
        ("mesh", "a.stl", {}),
        ("grid", "a.png", {"format": "jpg"}),
    ]:
        with pytest.raises(UsageError, match="--out"):
            wanted_format(kind, Path(out), given)


def test_places_of_results(tmp_path):
    settings = complete_settings("video", {})
    renders = tmp_path / "renders"
    assert output_base("video", None, renders, "run-20kimg", settings).parent == renders
    assert output_base("video", tmp_path, renders, "run-20kimg", settings).parent == tmp_path
    assert output_base("video", tmp_path / "a.mp4", renders, "run", settings) == tmp_path / "a"
    assert output_base("video", tmp_path / "v1.5", renders, "run", settings) == tmp_path / "v1.5"
