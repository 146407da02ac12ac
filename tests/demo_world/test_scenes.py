"""The demo set: exact geometry, honest depth, the same bytes every time, and clear words for wrong requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgp.demo_world.render import FAR, FOV, NEAR, PITCH, YAW, build_stage
from threedgp.demo_world.scenes import (
    CLASSES,
    DepthCode,
    contact_sheet,
    depth_code,
    depth_path,
    image_path,
    quantize_depth,
    render_scene,
    restore_depth,
    write_demo_set,
)
from threedgp.demo_world.shapes import Box, Ellipsoid, Lathe, Prism, Tube, smooth_profile, tapered
from threedgp.errors import DataError, UsageError
from threedgp.files import read_json


def files_under(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def random_rays(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Rays from a sphere of radius 3 towards points near the origin, both [3, N] float32."""
    rng = np.random.default_rng(3)
    start = rng.normal(size=(3, count))
    start *= 3 / np.linalg.norm(start, axis=0)
    aim = rng.uniform(-0.8, 0.8, (3, count)) - start
    return start.astype(np.float32), (aim / np.linalg.norm(aim, axis=0)).astype(np.float32)


# ---- shapes -----------------------------------------------------------------------------------------------------


def test_a_box_is_the_same_as_a_prism_with_four_corners():
    p, d = random_rays()
    box = Box((0.5, 0.3, 0.4))
    prism = Prism(((-0.5, -0.3), (0.5, -0.3), (0.5, 0.3), (-0.5, 0.3)), 0.4)
    np.testing.assert_allclose(box.hit(p, d, 0), prism.hit(p, d, 0), atol=2e-5)
    assert np.isfinite(box.hit(p, d, 0)).mean() > 0.2


def test_a_turned_half_circle_is_a_ball():
    p, d = random_rays()
    angles = np.radians(np.linspace(-90, 90, 181))
    lathe = Lathe(((0.0, -0.6), *[(0.6 * np.cos(a), 0.6 * np.sin(a)) for a in angles[1:-1]], (0.0, 0.6)))
    ball = Ellipsoid((0.6, 0.6, 0.6))
    a, b = lathe.hit(p, d, 0), ball.hit(p, d, 0)
    centre_distance = np.linalg.norm(np.cross(p.T, d.T), axis=1)
    clear = np.abs(centre_distance - 0.6) > 0.02  # at the rim itself a polygon and a circle differ
    assert (np.isfinite(a) == np.isfinite(b))[clear].all()
    inside = clear & np.isfinite(b)
    np.testing.assert_allclose(a[inside], b[inside], atol=2e-3)
    points = p[:, inside] + a[inside] * d[:, inside]
    assert (lathe.normal(points) * ball.normal(points)).sum(0).min() > 0.999


def test_a_ray_sees_the_inside_of_a_hollow_lathe():
    cup = Lathe(((0, 0), (0.5, 0), (0.5, 1), (0.4, 1), (0.4, 0.2), (0, 0.2)))
    p = np.array([[0, 2, 0], [0.3, 2, 0], [-0.45, 2, 0], [0, 0.5, 0]], np.float32).T
    d = np.array([[0, -1, 0], [0.1, -1, 0], [0, -1, 0], [1, 0, 0]], np.float32).T
    # Down to the bottom; onto the inner wall at x = 0.4; onto the rim; from inside, the inner wall.
    np.testing.assert_allclose(cup.hit(p, d, 0), [1.8, 1.0, 1.0, 0.4], atol=1e-5)
    inner = cup.normal(np.array([[0.4], [0.6], [0.0]], np.float32))
    np.testing.assert_allclose(inner[:, 0], [-1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        Ellipsoid((0.5, 0.3, 0.7)),
        Box((0.5, 0.3, 0.4)),
        Prism(((-0.5, 0), (0.5, 0), (0.3, 0.5), (-0.2, 0.6)), 0.4, lean=0.2),
        tapered(0.5, 0.2, 0.7, 0.05),
        Lathe(((0.0, 0.0), *smooth_profile([(0.2, 0.0), (0.5, 0.3), (0.1, 0.9)], 5), (0.0, 0.9))),
        Tube(((0.0, -0.5, 0.0), (0.3, 0.0, 0.1), (0.0, 0.5, 0.0)), 0.15),
    ],
    ids=lambda shape: type(shape).__name__,
)
def test_hits_lie_in_the_bounds_and_face_the_ray(shape):
    p, d = random_rays()
    t = shape.hit(p, d, 0)
    hit = np.isfinite(t)
    assert hit.sum() > 50
    points = p[:, hit] + t[hit] * d[:, hit]
    low, high = shape.bounds()
    assert (points.min(1) > np.array(low) - 1e-3).all()
    assert (points.max(1) < np.array(high) + 1e-3).all()
    normal = shape.normal(points)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-4)
    assert ((normal * d[:, hit]).sum(0) < 0).mean() > 0.97  # rounded edges may lean away a little
    if not isinstance(shape, Tube):  # whose round joints overlap inside
        assert (shape.hit(points, d[:, hit], 1e-3) > 2e-3).all()  # leaving is no hit


def test_hits_of_a_tube_lie_at_its_radius():
    p, d = random_rays()
    ends = np.array([[-0.4, 0.0, 0.1], [0.3, 0.5, 0.0]])
    t = Tube(tuple(map(tuple, ends)), 0.2).hit(p, d, 0)
    points = (p + t * d)[:, np.isfinite(t)].T
    axis = ends[1] - ends[0]
    along = np.clip((points - ends[0]) @ axis / (axis @ axis), 0, 1)
    distance = np.linalg.norm(points - ends[0] - along[:, None] * axis, axis=1)
    np.testing.assert_allclose(distance, 0.2, atol=1e-4)


# ---- scenes -----------------------------------------------------------------------------------------------------


def camera_to_world(camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position [3] and rotation [3, 3] (columns right, up, backwards) of a camera vector, by the definition."""

    def xyz(yaw, pitch, r):
        return r * np.array([-np.sin(pitch) * np.sin(yaw), np.cos(pitch), np.sin(pitch) * np.cos(yaw)])

    yaw, pitch, _, _, radius, *look = camera.astype(np.float64)
    eye, target = xyz(yaw, pitch, radius), xyz(*look)
    forward = (target - eye) / np.linalg.norm(target - eye)
    left = np.cross([0, 1, 0], forward)
    left /= np.linalg.norm(left)
    return eye, np.stack([-left, np.cross(forward, left), -forward], 1)


def lift(scene) -> np.ndarray:
    """World points [S*S, 3] of a scene's pixels from its depth and camera."""
    size = len(scene.depth)
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(1, -1, size))
    ray = np.stack([x, y, np.full_like(x, -1 / np.tan(np.radians(scene.camera[3]) / 2))], -1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    eye, rotation = camera_to_world(scene.camera)
    return (eye + scene.depth[..., None] * (ray @ rotation.T)).reshape(-1, 3)


@pytest.mark.parametrize("index", range(8))
def test_two_views_agree_on_where_the_surfaces_are(index):
    one = render_scene(index, 48)
    two = render_scene(index, 48, yaw=float(one.camera[0]) + 0.3, pitch=1.2)
    points = lift(one)
    eye, rotation = camera_to_world(two.camera)
    local = (points - eye) @ rotation
    tangent = np.tan(np.radians(two.camera[3]) / 2)
    u, v = local[:, 0] / -local[:, 2] / tangent, local[:, 1] / -local[:, 2] / tangent
    column, row = np.rint((u + 1) / 2 * 47).astype(int), np.rint((1 - v) / 2 * 47).astype(int)
    seen = (column >= 0) & (column < 48) & (row >= 0) & (row < 48)
    gap = np.linalg.norm(points - eye, axis=1)[seen] - two.depth[row[seen], column[seen]]
    # A point may be hidden in the other view (gap > 0) but not float in front of what is seen there, but for half a
    # pixel of rounding at outlines. Ground and backdrop stand still too, so all pixels count.
    assert (gap < -0.05).mean() < 0.04
    assert np.quantile(np.abs(gap), 0.6) < 0.02


def test_scenes_depend_on_seed_and_index_only():
    first = render_scene(11, 24, seed=5)
    render_scene(3, 16)
    again = render_scene(11, 24, seed=5)
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.depth.tobytes() == again.depth.tobytes()
    assert (first.camera == render_scene(11, 40, seed=5).camera).all()
    assert (first.rgb != render_scene(11, 24, seed=6).rgb).any()
    assert (first.rgb != render_scene(19, 24, seed=5).rgb).any()


def test_large_pictures_show_what_small_ones_show(monkeypatch):
    whole = render_scene(5, 40)
    monkeypatch.setattr("threedgp.demo_world.render.RAYS_AT_ONCE", 40 * 9 * 7)  # strips of six rows
    strips = render_scene(5, 40)
    np.testing.assert_allclose(whole.depth, strips.depth, atol=1e-5)
    assert (np.abs(whole.rgb.astype(int) - strips.rgb) > 1).mean() < 0.002  # rounding may flip a shadow ray


def test_cameras_are_not_aligned_and_stay_in_their_ranges():
    cameras = np.stack([build_stage(index, 0).camera for index in range(200)])
    for column, (low, high) in ((0, YAW), (1, PITCH), (3, FOV)):
        values = cameras[:, column]
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high >= values.max() > high - 0.1 * (high - low)
    assert (cameras[:, 4] == 1).all()
    assert cameras[:, 7].std() > 0


@pytest.fixture(scope="module")
def many() -> list:
    return [render_scene(index, 16, seed=1) for index in range(240)]


def test_every_pixel_lies_strictly_between_near_and_far(many):
    for scene in many:
        assert scene.depth.min() > NEAR
        assert scene.depth.max() < FAR
        assert np.ptp(scene.depth) > 0.2


def test_objects_stay_in_a_small_cube_and_stand_on_the_ground():
    for index in range(80):
        stage = build_stage(index, 1)
        corners = np.concatenate([part.corners for part in stage.thing.parts])
        assert np.abs(corners).max() * stage.scale < 0.4
        assert corners[:, 1].min() == pytest.approx(stage.thing.ground, abs=1e-9)


def test_classes_can_be_told_apart(many):
    """Kernel ridge regression on the 16x16 pixels of 180 pictures names at least 80% of 60 others (chance: 12.5%)."""
    pixels = np.stack([scene.rgb.reshape(-1) for scene in many]) / 255 - 0.5
    labels = np.array([scene.class_id for scene in many])
    kernel = (pixels @ pixels.T / 20 + 1) ** 3
    weights = np.linalg.solve(kernel[:180, :180] + 3 * np.eye(180), np.eye(8)[labels[:180]])
    accuracy = ((kernel[180:, :180] @ weights).argmax(1) == labels[180:]).mean()
    assert accuracy >= 0.8


# ---- depth ------------------------------------------------------------------------------------------------------


def test_stored_depth_keeps_the_order_and_can_be_decoded():
    depth = render_scene(2, 32).depth
    code = depth_code(depth, 2, 0, exact=False)
    stored = quantize_depth(depth, code)
    assert stored.dtype == np.uint16
    assert stored.max() <= 60000
    order = np.argsort(depth, axis=None)
    assert (np.diff(stored.ravel()[order].astype(int)) >= 0).all()
    np.testing.assert_allclose(restore_depth(stored, code), depth, atol=2e-3)
    exact = depth_code(depth, 2, 0, exact=True)
    np.testing.assert_allclose(
        restore_depth(quantize_depth(depth, exact), exact), depth, atol=1.1 * (FAR - NEAR) / 60000
    )


def test_each_estimate_has_a_scale_of_its_own():
    depth = np.linspace(0.8, 1.4, 64, dtype=np.float32).reshape(8, 8)
    codes = [depth_code(depth, index, 0, exact=False) for index in range(50)]
    for name in ("shift", "scale", "gamma"):
        assert len({getattr(code, name) for code in codes}) == 50
    assert all(code.shift + code.scale <= 1 for code in codes)


def test_flat_depth_is_encoded_without_a_division_by_zero():
    flat = np.full((4, 4), 1.0, np.float32)
    assert (quantize_depth(flat, DepthCode(1.0, 1.0, 0.1, 0.8, 1.0)) == 6000).all()


# ---- the set on disk --------------------------------------------------------------------------------------------


def test_the_set_has_the_promised_layout(tmp_path):
    summary = write_demo_set(tmp_path / "demo", 11, 16, seed=4, jobs=1)
    root = tmp_path / "demo"
    assert (summary.images, summary.written, summary.kept) == (11, 11, 0)
    assert summary.per_class == {name: 2 if i < 3 else 1 for i, name in enumerate(CLASSES)}
    truth = read_json(root / "cameras.json")
    assert len(truth["images"]) == 11
    for index, record in enumerate(truth["images"]):
        scene = render_scene(index, 16, seed=4)
        with Image.open(root / "images" / record["image"]) as file:
            assert file.mode == "RGB"
            assert (np.asarray(file) == scene.rgb).all()
        with Image.open(depth_path(root, index)) as file:
            stored = np.asarray(file)
        assert stored.dtype == np.uint16
        assert record["class"] == index % 8
        np.testing.assert_allclose(record["camera"], scene.camera, rtol=1e-6)
        np.testing.assert_allclose(restore_depth(stored, DepthCode(**record["depth"])), scene.depth, atol=3e-3)
    images = {str(p.relative_to(root / "images").with_suffix("")) for p in (root / "images").rglob("*.png")}
    depths = {str(p.relative_to(root / "depth"))[: -len("_depth.png")] for p in (root / "depth").rglob("*.png")}
    assert images == depths
    assert summary.contact_sheet.exists()


def test_exact_depth_is_near_to_far(tmp_path):
    write_demo_set(tmp_path, 2, 16, exact_depth=True, jobs=1)
    truth = read_json(tmp_path / "cameras.json")
    with Image.open(depth_path(tmp_path, 1)) as file:
        distance = truth["near"] + np.asarray(file) / 60000 * (truth["far"] - truth["near"])
    np.testing.assert_allclose(distance, render_scene(1, 16).depth, atol=2e-5)


def test_an_interrupted_run_is_finished_with_the_same_bytes(tmp_path):
    write_demo_set(tmp_path / "whole", 40, 16, jobs=2)
    broken = tmp_path / "broken"
    write_demo_set(broken, 20, 16, jobs=1)
    image_path(broken, 3).write_bytes(image_path(broken, 3).read_bytes()[:100])  # cut in half
    depth_path(broken, 4).unlink()
    depth_path(broken, 5).write_bytes(b"")
    (broken / "images" / "car" / ".00000.tmp-1234.png").write_bytes(b"left by a killed run")
    (broken / "cameras.json").unlink()
    summary = write_demo_set(broken, 40, 16, jobs=1)
    assert (summary.written, summary.kept) == (23, 17)
    assert files_under(broken) == files_under(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"count": 0}, "at least one"),
        ({"count": -5}, "at least one"),
        ({"size": 8}, "16 to 2048"),
        ({"size": 100000}, "16 to 2048"),
        ({"seed": -1}, "negative"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, arguments, word):
    with pytest.raises(UsageError, match=word):
        write_demo_set(tmp_path / "demo", **{"count": 8, "size": 16, **arguments})
    assert not (tmp_path / "demo").exists()


def test_it_does_not_mix_with_other_data(tmp_path):
    own = tmp_path / "photos"
    (own / "images").mkdir(parents=True)
    (own / "images" / "cat.jpg").write_bytes(b"photo")
    with pytest.raises(DataError, match="no demo set"):
        write_demo_set(own, 8, 16, jobs=1)
    assert files_under(own) == {"images/cat.jpg": b"photo"}

    write_demo_set(tmp_path / "demo", 9, 16, jobs=1)
    with pytest.raises(DataError, match="already holds other data"):
        write_demo_set(tmp_path / "demo", 9, 16, seed=1, jobs=1)
    with pytest.raises(DataError, match="9 demo images, more than 8"):
        write_demo_set(tmp_path / "demo", 8, 16, jobs=1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write the demo set to .*file"):
        write_demo_set(tmp_path / "file" / "demo", 8, 16, jobs=1)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(DataError, match="Cannot write"):
            write_demo_set(locked, 8, 16, jobs=1)


def test_progress_hears_of_every_image(tmp_path):
    heard = []

    class Listener:
        def start(self, label, total=None, unit="images"):
            heard.append(total)

        def advance(self, count=1):
            heard.append(count)

        def note(self, text):
            raise AssertionError(text)

        def finish(self):
            heard.append("end")

    write_demo_set(tmp_path, 5, 16, jobs=1, progress=Listener())
    assert heard == [5, 1, 1, 1, 1, 1, "end"]


def test_contact_sheet_needs_a_demo_set(tmp_path):
    with pytest.raises(DataError, match="3dgp data demo"):
        contact_sheet(tmp_path)


def test_contact_sheet_shows_images_above_their_depth(tmp_path):
    write_demo_set(tmp_path, 10, 32, jobs=1)
    sheet = contact_sheet(tmp_path, columns=2)
    assert sheet.size == (2 * 33 + 1, 8 * 67 + 1)
    with Image.open(image_path(tmp_path, 0)) as first:
        assert (np.asarray(sheet)[1:33, 1:33] == np.asarray(first)).all()
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] is True


def test_no_part_is_changed_by_another_view():
    scene = render_scene(6, 24)
    turned = render_scene(6, 24, yaw=float(scene.camera[0]))
    assert turned.rgb.tobytes() == scene.rgb.tobytes()
