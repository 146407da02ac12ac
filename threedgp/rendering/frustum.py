"""Do the rays of a camera prior stay inside, or at least meet, the scene cube?"""

from __future__ import annotations

import math

import torch

from threedgp.camera.camera import Camera
from threedgp.camera.priors import scalar_max
from threedgp.config.schema import CameraConfig
from threedgp.errors import ConfigError
from threedgp.rendering.rays import box_intersection, camera_rays

GRID_STEP = 0.01  # radians per half turn of camera positions that are tried


def sphere_of_cameras(fov: float, radius: float, step: float = GRID_STEP) -> Camera:
    """Cameras all around, looking at the origin: a grid of n×n yaws and pitches with n = ⌊(π/2)/step⌋."""
    n = int((math.pi / 2) / step)
    yaw, pitch = torch.linspace(0, 2 * math.pi, n), torch.linspace(0, math.pi, n).clamp(1e-7, math.pi - 1e-7)
    yaw, pitch = (grid.flatten().double() for grid in torch.meshgrid(yaw, pitch, indexing="ij"))
    look_at = torch.tensor([0.0, math.pi / 2, 0.0], dtype=torch.float64).expand(len(yaw), 3)
    return Camera(
        angles=torch.stack([yaw, pitch, torch.zeros_like(yaw)], dim=1),
        fov=torch.full_like(yaw, fov),
        radius=torch.full_like(yaw, radius),
        look_at=look_at,
    )


def frustum_extent(fov: float, near: float, far: float, radius: float, step: float = GRID_STEP) -> tuple[float, float]:
    """Smallest and largest coordinate that the frustum's corners reach, over all viewing directions.

    Args:
        fov: degrees.
        near, far: distances of the two planes' corners along the corner rays.
        radius: distance of the cameras from the origin they look at.
    """
    origins, directions = camera_rays(sphere_of_cameras(fov, radius, step), 2, 2)
    corners = torch.stack([origins + distance * directions for distance in (near, far)])
    return corners.min().item(), corners.max().item()


def corners_meet_cube(fov: float, radius: float, half_size: float, step: float = GRID_STEP) -> bool:
    """Whether the corner rays of every viewing direction cross the cube [−half_size, half_size]³."""
    origins, directions = camera_rays(sphere_of_cameras(fov, radius, step), 2, 2)
    t_in, t_out = box_intersection(origins, directions, half_size)
    return bool((t_out > t_in).all())


def check_viewing_frustum(config: CameraConfig, *, full_box: bool) -> None:
    """Refuse a prior whose widest and farthest camera looks past the scene cube. Look-at offsets are not considered.

    Args:
        config: camera section of a profile.
        full_box: rays cover their part of the cube, so they only have to meet it; otherwise everything between near
            and far must lie inside.

    Raises:
        ConfigError: saying how large the cube would have to be.
    """
    fov, radius = scalar_max(config.fov), scalar_max(config.radius)
    if full_box:
        if not corners_meet_cube(fov, radius, config.cube_scale):
            raise ConfigError(
                f"Corner rays miss the scene cube at camera.fov={fov:g} degrees and camera.radius={radius:g}. "
                f"Lower camera.fov or raise camera.cube_scale={config.cube_scale:g}."
            )
        return
    low, high = frustum_extent(fov, config.near, config.far, radius)
    reach = max(-low, high)
    if reach > config.cube_scale:
        raise ConfigError(
            f"Rays from camera.near={config.near:g} to camera.far={config.far:g} leave the scene cube: they reach "
            f"{reach:.3f}, camera.cube_scale is {config.cube_scale:g}. Raise it or narrow the interval or camera.fov."
        )
