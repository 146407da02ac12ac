"""Rays: reference vectors, patches, the slab test."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.camera.cameras import golden_camera, make_cameras
from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.rendering.rays import box_bounds, box_intersection, camera_rays, pixel_grid

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1.5e-6)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_image_rays_match_the_reference(golden, dtype, tolerance):
    arrays = golden("camera")
    camera = golden_camera(arrays, dtype)
    width, height = arrays["res_wh"].tolist()
    origins, directions = camera_rays(camera, height, width)
    assert relative_error(origins, arrays["ray_o"]) < tolerance
    assert relative_error(directions, arrays["ray_d"]) < tolerance
    width, height = arrays["rect_wh"].tolist()
    assert relative_error(camera_rays(camera, height, width)[1], arrays["rect_ray_d"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_patch_rays_match_the_reference(golden, dtype, tolerance):
    arrays = golden("camera")
    width, height = arrays["patch_wh"].tolist()
    scales, offsets = (torch.from_numpy(arrays[key]).to(dtype) for key in ("patch_scales", "patch_offsets"))
    origins, directions = camera_rays(golden_camera(arrays, dtype), height, width, scales, offsets)
    assert relative_error(origins, arrays["patch_ray_o"]) < tolerance
    assert relative_error(directions, arrays["patch_ray_d"]) < tolerance


def test_pixel_grid_puts_the_top_left_pixel_first_and_includes_the_edges():
    grid = pixel_grid(2, 3)
    assert grid.tolist() == [[-1, 1], [0, 1], [1, 1], [-1, -1], [0, -1], [1, -1]]
    assert pixel_grid(1, 1).tolist() == [[0, 0]]


def test_a_patch_is_a_cut_of_the_full_image():
    cameras = make_cameras(2)
    _, full = camera_rays(cameras, 9, 9)
    scales = torch.full((2, 2), 0.5, dtype=torch.float64)
    offsets = torch.tensor([[0.25, 0.0], [0.0, 0.5]], dtype=torch.float64)  # y counts from the bottom
    _, patch = camera_rays(cameras, 5, 5, scales, offsets)
    full, patch = full.reshape(2, 9, 9, 3), patch.reshape(2, 5, 5, 3)
    torch.testing.assert_close(patch[0], full[0, 4:9, 2:7])
    torch.testing.assert_close(patch[1], full[1, 0:5, 0:5])


def test_half_a_patch_specification_is_refused():
    with pytest.raises(ValueError, match="both or neither"):
        camera_rays(make_cameras(1), 4, 4, patch_scales=torch.ones(1, 2))


def test_box_intersection_matches_the_reference(golden):
    arrays = golden("camera")
    for dtype in (torch.float32, torch.float64):
        origins, directions = (torch.from_numpy(arrays[key]).to(dtype) for key in ("box_o", "box_d"))
        t_in, t_out = box_intersection(origins, directions, float(arrays["box_size"]) / 2)
        assert relative_error(t_in[..., None], arrays["box_tmin"]) < 1e-5
        assert relative_error(t_out[..., None], arrays["box_tmax"]) < 1e-5


def test_rays_parallel_to_an_axis_and_inside_a_face_are_finite():
    origins = torch.tensor([[0.5, 0.0, 2.0], [0.7, 0.0, 2.0], [0.0, 0.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0]]).expand(3, 3)
    t_in, t_out = box_intersection(origins, directions, 0.5)
    assert t_in.tolist() == [1.5, -1.0, -0.5]
    assert t_out.tolist() == [2.5, -2.0, 0.5]


def test_box_bounds_start_at_the_camera_inside_and_borrow_from_others_on_a_miss():
    origins = torch.tensor([[[0, 0, 2.0], [0, 0, 0], [5.0, 0, 2], [0, 0, -2]]])  # hit, inside, miss, box behind
    directions = torch.tensor([0, 0, -1.0]).expand(1, 4, 3)
    start, end = box_bounds(origins, directions, 0.5, near=0.75, far=1.25)
    assert start.tolist() == [[1.5, 0.0, 0.0, 0.0]]
    assert end.tolist() == [[2.5, 0.5, 2.5, 2.5]]
    start, end = box_bounds(origins[:, 2:3], directions[:, 2:3], 0.5, near=0.75, far=1.25)
    assert (start.item(), end.item()) == (0.75, 1.25)


def test_ray_directions_are_unit_vectors_and_differentiable():
    cameras = make_cameras(2)
    directions = camera_rays(cameras, 3, 4)[1]
    np.testing.assert_allclose(directions.norm(dim=-1), 1.0, atol=1e-12)
    vector = cameras.to_vector().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: camera_rays(Camera.from_vector(v), 2, 2), vector)
