"""Camera paths: reference vectors, loops, settings."""

from __future__ import annotations

import math

import pytest
import torch

from tests.camera.cameras import make_cameras
from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.camera.trajectories import TRAJECTORIES, build_trajectory
from threedgp.errors import ConfigError

SETTINGS = {
    "front_circle": ["num_frames", "yaw_diff", "pitch_diff", "fov_diff"],
    "point": ["yaw_offset", "pitch_offset", "fov_offset"],
    "line": ["num_frames", "yaw_start", "yaw_end", "pitch_start", "pitch_end", "fov"],
    "wiggle": ["num_frames", "yaw_left", "yaw_right", "pitch_diff"],
}


def reference_trajectory(name: str, values: list[float]):
    if name == "points":
        return build_trajectory(name, {"pitch_offset": values[0], "yaw_offsets": values[1:]})
    overrides = dict(zip(SETTINGS[name], values, strict=True))
    if overrides.get("fov") == -1:
        overrides["fov"] = None
    return build_trajectory(name, overrides)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("variant", ["default", "custom"])
@pytest.mark.parametrize("name", ["front_circle", "points", "point", "line", "wiggle"])
def test_paths_match_the_reference(golden, name, variant, dtype, tolerance):
    arrays = golden("trajectories")
    values = arrays[f"{name}/{variant}/cfg"].tolist()
    trajectory = reference_trajectory(name, values)
    if variant == "default":
        assert trajectory == build_trajectory(name)
    expected = torch.from_numpy(arrays[f"{name}/{variant}/cameras"]).to(dtype)
    if name == "point":
        expected[:, 3] -= values[2]  # the reference adds the offset twice
    canonical = Camera.from_vector(torch.from_numpy(arrays["canonical"]).to(dtype))
    assert relative_error(trajectory.cameras(canonical).to_vector(), expected) < tolerance


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_every_path_is_sample_major_finite_and_keeps_radius_and_look_at(name):
    canonical = make_cameras(3)
    trajectory = build_trajectory(name)
    cameras = trajectory.cameras(canonical)
    frames = trajectory.frames()
    assert len(cameras) == 3 * frames
    for sample in range(3):
        alone = trajectory.cameras(canonical[sample]).to_vector()
        assert torch.equal(cameras[sample * frames : (sample + 1) * frames].to_vector(), alone)
        assert (alone[:, 4:] == canonical[sample].to_vector()[:, 4:]).all()
    assert cameras.cam2world().isfinite().all()


@pytest.mark.parametrize("name", ["front_circle", "orbit"])
def test_a_loop_ends_one_step_before_its_start_and_otherwise_on_it(name):
    canonical = make_cameras(1)
    closed = build_trajectory(name, {"num_frames": 9, "loop": False}).cameras(canonical).position()
    torch.testing.assert_close(closed[0], closed[-1])
    looped = build_trajectory(name, {"num_frames": 8, "loop": True}).cameras(canonical).position()
    torch.testing.assert_close(looped, closed[:-1])


def test_an_orbit_goes_all_the_way_round_and_a_spiral_starts_at_the_canonical_view():
    canonical = make_cameras(1)
    yaw = build_trajectory("orbit", {"num_frames": 4}).cameras(canonical).angles[:, 0]
    torch.testing.assert_close(yaw.diff(), torch.full((3,), math.pi / 2, dtype=torch.float64))
    spiral = build_trajectory("spiral", {"fov_diff": -5.0}).cameras(canonical)
    torch.testing.assert_close(spiral[0].to_vector(), canonical.to_vector())
    offsets = (spiral.angles - canonical.angles).norm(dim=1)
    assert offsets[-1] == pytest.approx(0.3, abs=1e-9)  # whole turns end above the start
    assert spiral.fov[-1] == pytest.approx(canonical.fov[0].item() - 5)


def test_pitch_is_clamped_short_of_the_poles():
    cameras = build_trajectory("front_circle", {"pitch_diff": 5.0}).cameras(make_cameras(1))
    assert cameras.angles[:, 1].min().item() == pytest.approx(1e-5)
    assert cameras.cam2world().isfinite().all()


def test_single_frames_work_everywhere():
    for name in ("front_circle", "line", "wiggle", "orbit", "spiral"):
        cameras = build_trajectory(name, {"num_frames": 1}).cameras(make_cameras(2))
        assert len(cameras) == 2
        assert cameras.to_vector().isfinite().all()


def test_text_values_are_converted():
    assert build_trajectory("points", {"yaw_offsets": "-0.5, 0,0.5"}).yaw_offsets == [-0.5, 0.0, 0.5]
    assert build_trajectory("points", {"yaw_offsets": "[0.1]"}).yaw_offsets == [0.1]
    assert build_trajectory("line", {"fov": "null", "num_frames": "4"}).fov is None
    assert build_trajectory("orbit", {"loop": "false"}).loop is False


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("front_cirle", {}, "Did you mean 'front_circle'"),
        ("orbit", {"turn": 2}, "Did you mean 'turns'"),
        ("orbit", {"num_frames": "0"}, "num_frames"),
        ("orbit", {"num_frames": "1.5"}, "num_frames"),
        ("orbit", {"turns": "nan"}, "finite"),
        ("orbit", {"turns": "fast"}, "turns"),
        ("points", {"yaw_offsets": ""}, "yaw_offsets"),
        ("line", {"fov": "190"}, "fov"),
    ],
)
def test_bad_settings_are_refused_with_their_name(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_trajectory(name, overrides)


def test_a_field_of_view_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 180"):
        build_trajectory("point", {"fov_offset": -60}).cameras(make_cameras(1))
