"""Density volumes, surfaces and mesh files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from tests.inference.tiny import tiny
from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.errors import UsageError
from threedgp.inference.latents import StyleMapper, plan_samples
from threedgp.inference.mesh import (
    Mesh,
    SurfaceError,
    Threshold,
    density_volume,
    extract_surface,
    grid_points,
    reference_crop,
    save_mesh,
    save_mrc,
    vertex_colors,
)
from threedgp.inference.preview import draw_mesh
from threedgp.rendering.renderer import RenderOptions

OPTIONS = RenderOptions(near=0.75, far=1.25, num_steps=32)


def ball(resolution: int = 24, radius: float = 0.3, center=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Density that falls from the centre of a ball, zero at `radius`, in the unit cube."""
    points = grid_points(resolution, 1.0, 0, resolution).numpy() - np.array(center)
    return (radius - np.linalg.norm(points, axis=-1)).reshape((resolution,) * 3).astype(np.float32)


def planes_of(generator, profile):
    ws = StyleMapper(generator.mapping)(plan_samples([0], None, profile.data.num_classes), 0.7)
    return generator.synthesize_planes(ws, noise_mode="const")


def test_grid_points_of_the_reference(golden):
    values = golden("inference")
    resolution, cube_size, *origin = values["voxel/res_cube_origin"].tolist()
    points = grid_points(int(resolution), cube_size, 0, int(resolution), tuple(origin))
    assert relative_error(points, values["voxel/intended"]) < 1e-6


def test_slabs_and_origin():
    whole = grid_points(5, 2.0, 0, 5, (1.0, 2.0, 3.0))
    assert torch.equal(torch.cat([grid_points(5, 2.0, i, i + 1, (1.0, 2.0, 3.0)) for i in range(5)]), whole)
    assert whole[0].tolist() == [0.0, 1.0, 2.0]
    assert whole[-1].tolist() == [2.0, 3.0, 4.0]
    assert whole[1].tolist() == [0.0, 1.0, 2.5]  # z fastest


def test_crop_of_the_reference(golden):
    values = golden("inference")
    resolution = int(values["crop/res"][0])
    flat = np.arange(resolution**3).reshape((resolution,) * 3)
    assert np.array_equal(flat[reference_crop(resolution)], values["crop/kept_flat_indices"])


@pytest.mark.parametrize("kind", ["3dgp", "epigraf"])
def test_volume_is_the_density_at_the_points(kind):
    profile, generator = tiny(kind)
    planes = planes_of(generator, profile)
    volume = density_volume(generator, planes, 9, 1.0)
    assert volume.shape == (9, 9, 9)
    point = torch.tensor([[[-0.5 + 2 / 8, -0.5 + 7 / 8, -0.5 + 3 / 8]]])
    assert volume[2, 7, 3] == pytest.approx(float(generator.query_density(planes, point)), rel=1e-5)


def test_surface_of_a_ball():
    vertices, faces = extract_surface(ball(), 0.0)
    made = trimesh.Trimesh(vertices / 23 - 0.5, faces)
    assert made.is_watertight
    assert made.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.02)  # positive: faces look outwards
    assert np.linalg.norm(made.vertices, axis=-1) == pytest.approx(0.3, abs=0.01)


def test_matter_at_the_border_ends_in_a_wall():
    vertices, faces = extract_surface(ball(radius=0.6), 0.0)
    assert trimesh.Trimesh(vertices, faces).is_watertight
    assert vertices.min() > -0.05
    assert vertices.max() < 23.05


def test_largest_component_is_kept_unless_all_are_wanted():
    volume = np.maximum(ball(radius=0.2, center=(0.2, 0.2, 0.2)), ball(radius=0.1, center=(-0.3, -0.3, -0.3)))
    vertices, faces = extract_surface(volume, 0.0)
    assert (vertices / 23 - 0.5 > -0.1).all()
    assert faces.max() == len(vertices) - 1
    every, _ = extract_surface(volume, 0.0, largest_only=False)
    assert len(every) > len(vertices)
    assert (every / 23 - 0.5).min() < -0.3


def test_no_surface_says_which_densities_there_are():
    with pytest.raises(SurfaceError, match=r"of 25, .* go from -0\.5.* to 0\.2"):
        extract_surface(ball(), 25.0)
    with pytest.raises(SurfaceError, match="diverged"):
        extract_surface(np.full((4, 4, 4), np.nan, dtype=np.float32), 0.0)


def test_thresholds():
    volume = np.arange(101, dtype=np.float32)
    assert Threshold.parse("25").level(volume, OPTIONS) == 25
    assert Threshold.parse("density:-3").level(volume, OPTIONS) == -3
    assert Threshold.parse("percentile:80").level(volume, OPTIONS) == 80
    raw = Threshold.parse("Opacity:0.5").level(volume, OPTIONS)
    absorbed = 1 - math.exp(-math.log1p(math.exp(raw)) * 0.5 / 32)
    assert absorbed == pytest.approx(0.5)
    relu = Threshold.parse("opacity:0.01").level(volume, RenderOptions(0.75, 1.25, clamp_mode="relu"))
    assert 1 - math.exp(-relu * 0.5 / 32) == pytest.approx(0.01)
    mip = Threshold.parse("opacity:0.5").level(volume, RenderOptions(0.75, 1.25, marcher="mip", density_bias=-1.0))
    assert mip == pytest.approx(raw + 1.0)


@pytest.mark.parametrize("text", ["", "x", "nan", "opacity:1", "opacity:0", "percentile:100", "level:3", "inf"])
def test_bad_thresholds(text):
    with pytest.raises(UsageError, match=r"opacity:0\.5"):
        Threshold.parse(text)


@pytest.mark.parametrize("marcher", ["classical", "mip"])
def test_colors_are_those_of_the_field(marcher):
    profile, generator = tiny("3dgp", f"model.generator.marcher={marcher}")
    planes = planes_of(generator, profile)
    points = np.random.RandomState(0).uniform(-0.4, 0.4, (50, 3)).astype(np.float32)
    colors = vertex_colors(generator, planes, points)
    rgb = generator.field(planes)(torch.from_numpy(points)[None])[0][0]
    unit = rgb if marcher == "mip" else rgb / 2 + 0.5
    assert np.abs(colors - 255 * unit.clamp(0, 1).numpy()).max() <= 0.51


@pytest.mark.parametrize("ending", ["ply", "obj", "glb"])
def test_mesh_files_keep_everything(tmp_path, ending):
    vertices, faces = extract_surface(ball(12), 0.0)
    colors = np.random.RandomState(0).randint(0, 255, (len(vertices), 3)).astype(np.uint8)
    save_mesh(Mesh(vertices, faces, colors), tmp_path / f"a.{ending}")
    loaded = trimesh.load(tmp_path / f"a.{ending}", process=False, force="mesh")
    assert np.abs(loaded.vertices - vertices).max() < 1e-4
    assert np.array_equal(loaded.faces, faces)
    assert np.abs(loaded.visual.vertex_colors[:, :3].astype(int) - colors).max() <= 1
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]


def test_mrc_file(tmp_path):
    volume = np.random.RandomState(0).randn(4, 5, 6).astype(np.float32)
    save_mrc(volume, tmp_path / "a.mrc", 0.25, (-0.5, 0.0, 1.0))
    content = (tmp_path / "a.mrc").read_bytes()
    words, reals = np.frombuffer(content[:1024], "<i4"), np.frombuffer(content[:1024], "<f4")
    assert words[:4].tolist() == [4, 5, 6, 2]  # columns, rows, sections; float32
    assert reals[10:13].tolist() == [1.0, 1.25, 1.5]  # the cell: 0.25 a voxel
    assert words[16:19].tolist() == [1, 2, 3]
    assert reals[49:52].tolist() == [-0.5, 0.0, 1.0]
    assert content[208:216] == b"MAP \x44\x44\x00\x00"
    assert reals[19:22] == pytest.approx([volume.min(), volume.max(), volume.mean()], abs=1e-6)
    data = np.frombuffer(content[1024:], "<f4").reshape(6, 5, 4)  # z, y, x
    assert np.array_equal(data.transpose(2, 1, 0), volume)


def test_preview_shows_the_mesh_where_it_is():
    vertices, faces = extract_surface(ball(40, 0.1, center=(0.1, 0.2, 0.0)), 0.0)
    vertices = vertices / 39 - 0.5
    colors = np.tile(np.array([[200, 30, 60]], dtype=np.uint8), (len(vertices), 1))
    camera = Camera.from_vector(torch.tensor([[0.0, math.pi / 2, 0.0, 40.0, 1.0, 0.0, math.pi / 2, 0.0]]))
    color, clay = draw_mesh(Mesh(vertices, faces, colors), camera, 101)
    drawn = (color != 255).any(axis=-1)
    assert np.array_equal(drawn, (clay != 255).any(axis=-1))
    assert (color[drawn] == [200, 30, 60]).all()
    rows, columns = np.nonzero(drawn)
    half = math.tan(math.radians(20))  # of the image plane at distance 1, where the ball's centre is
    assert columns.mean() == pytest.approx(50 + 50 * 0.1 / half, abs=1.5)
    assert rows.mean() == pytest.approx(50 - 50 * 0.2 / half, abs=1.5)
    stretch = math.sqrt(1 + 0.1**2 + 0.2**2)  # of a ball beside the optical axis
    assert drawn.sum() == pytest.approx(stretch * math.pi * (50 * 0.1 / half) ** 2, rel=0.05)
    assert drawn[int(rows.mean()) - 5 : int(rows.mean()) + 5, int(columns.mean())].all()  # no holes
    assert (
        clay[int(rows.mean()), int(columns.mean())].mean() > clay[rows.min() + 1, columns[rows == rows.min()][0]].mean()
    )


def test_preview_cuts_at_the_near_plane_and_hides_what_is_behind():
    vertices = np.array([[-9.0, -9, 0], [9, -9, 0], [0, 9, 0], [-9, -9, 0.5], [9, -9, 0.5], [0, 9, 0.5]])
    colors = np.array([[9, 9, 9]] * 3 + [[90, 90, 90]] * 3, dtype=np.uint8)
    mesh = Mesh(vertices.astype(np.float32), np.array([[0, 1, 2], [3, 4, 5]], dtype=np.int32), colors)
    camera = Camera.from_vector(torch.tensor([[0.0, math.pi / 2, 0.0, 10.0, 1.0, 0.0, math.pi / 2, 0.0]]))
    assert (draw_mesh(mesh, camera, 9)[0] == 90).all()
    assert (draw_mesh(mesh, camera, 9, near=0.75)[0] == 9).all()
