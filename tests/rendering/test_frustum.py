"""Frustum checks: reference values and refusals."""

from __future__ import annotations

import pytest

from tests.tools import relative_error
from threedgp.config.schema import CameraConfig, ScalarPriorConfig
from threedgp.errors import ConfigError
from threedgp.rendering.frustum import check_viewing_frustum, corners_meet_cube, frustum_extent


def test_extents_match_the_reference(golden):
    arrays = golden("camera")
    for (fov, near, far, radius, scale), expected in zip(
        arrays["frustum_params"].tolist(), arrays["frustum_result"], strict=True
    ):
        low, high = frustum_extent(fov, near, far, radius, step=float(arrays["frustum_step"]))
        assert relative_error([low, high], expected[1:]) < 1e-6
        assert (max(-low, high) <= scale) == bool(expected[0])


def test_corner_rays_match_the_reference(golden):
    arrays = golden("camera")
    for (fov, radius, scale), expected in zip(
        arrays["image_plane_params"].tolist(), arrays["image_plane_valid"], strict=True
    ):
        assert corners_meet_cube(fov, radius, scale, step=float(arrays["frustum_step"])) == bool(expected)


def test_a_prior_that_leaves_the_cube_is_refused():
    fits = CameraConfig(fov=ScalarPriorConfig(min=10.0, max=20.0))
    check_viewing_frustum(fits, full_box=False)
    check_viewing_frustum(fits, full_box=True)
    wide = CameraConfig(fov=ScalarPriorConfig(min=10.0, max=90.0))
    with pytest.raises(ConfigError, match=r"leave the scene cube: they reach 1\.058"):
        check_viewing_frustum(wide, full_box=False)
    with pytest.raises(ConfigError, match="miss the scene cube"):
        check_viewing_frustum(wide, full_box=True)
