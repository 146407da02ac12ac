"""Cameras: parametrisation, matrices, batch operations."""

from __future__ import annotations

import pytest
import torch

from tests.camera.cameras import golden_camera, make_cameras
from tests.tools import relative_error
from threedgp.camera.camera import Camera, spherical_to_cartesian


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_cam2world_matches_the_reference(golden, dtype, tolerance):
    arrays = golden("camera")
    assert relative_error(golden_camera(arrays, dtype).cam2world(), arrays["cam2world"]) < tolerance


def test_spherical_coordinates_match_the_reference(golden):
    arrays = golden("camera")
    sph = torch.from_numpy(arrays["sph"]).double()
    assert relative_error(spherical_to_cartesian(*sph.unbind(-1)), arrays["sph_xyz"]) < 1e-6


def test_yaw_zero_on_the_equator_is_the_identity_rotation_in_front_of_the_origin():
    camera = Camera.from_vector(torch.tensor([[0, torch.pi / 2, 0, 30, 2, 0, torch.pi / 2, 0]], dtype=torch.float64))
    expected = torch.eye(4, dtype=torch.float64)
    expected[2, 3] = 2.0
    torch.testing.assert_close(camera.cam2world()[0], expected, rtol=0, atol=1e-12)


def test_positive_yaw_moves_to_negative_x():
    camera = Camera.from_vector(torch.tensor([[0.3, 1.5, 0, 30, 1, 0, 1.5, 0.0]]))
    assert camera.position()[0, 0] < 0


def test_rotation_is_orthonormal_and_right_handed():
    rotation = make_cameras(20).cam2world()[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))


def test_the_target_lies_on_the_optical_axis():
    cameras = make_cameras(10)
    offset = cameras.target() - cameras.position()
    in_camera = torch.einsum("bij,bi->bj", cameras.cam2world()[:, :3, :3], offset)
    torch.testing.assert_close(in_camera[:, :2], torch.zeros(10, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (in_camera[:, 2] < 0).all()


def test_roll_is_ignored():
    cameras = make_cameras(4)
    rolled = Camera(cameras.angles + torch.tensor([0, 0, 1.0]), cameras.fov, cameras.radius, cameras.look_at)
    assert torch.equal(rolled.cam2world(), cameras.cam2world())


def test_vector_round_trip_and_order():
    vector = torch.arange(16.0).reshape(2, 8)
    camera = Camera.from_vector(vector)
    assert torch.equal(camera.to_vector(), vector)
    assert camera.fov.tolist() == [3, 11]
    assert camera.look_at[0].tolist() == [5, 6, 7]


def test_indexing_slicing_joining_and_repeating():
    cameras = make_cameras(5)
    assert len(cameras) == 5
    assert len(cameras[2]) == 1
    assert torch.equal(cameras[-1].fov, cameras.fov[-1:])
    assert torch.equal(Camera.cat([cameras[:2], cameras[2:]]).to_vector(), cameras.to_vector())
    assert torch.equal(cameras[cameras.fov > 20].fov, cameras.fov[cameras.fov > 20])
    assert torch.equal(cameras[[3, 0]].fov, cameras.fov[[3, 0]])
    assert torch.equal(cameras.repeat_interleave(3).fov, cameras.fov.repeat_interleave(3))
    assert [len(camera) for camera in cameras] == [1] * 5
    with pytest.raises(IndexError, match="camera 5 of 5"):
        cameras[5]


def test_conversion_and_detach():
    cameras = make_cameras(2)
    assert cameras.to(torch.float32).dtype == torch.float32
    learned = Camera(cameras.angles.requires_grad_(), cameras.fov, cameras.radius, cameras.look_at)
    assert learned.cam2world().requires_grad
    assert not learned.detach().cam2world().requires_grad


@pytest.mark.parametrize("bad", [torch.zeros(3, 7), torch.zeros(8), torch.zeros(1, 2, 8)])
def test_vectors_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match=r"\[B, 8\]"):
        Camera.from_vector(bad)


def test_inconsistent_batches_are_refused():
    with pytest.raises(ValueError, match=r"angles \[B,3\]"):
        Camera(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), torch.zeros(2, 3))


def test_gradients_reach_every_camera_parameter_that_moves_it():
    vector = make_cameras(2).to_vector().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: Camera.from_vector(v).cam2world(), vector)
