"""Cameras for the tests of several packages."""

from __future__ import annotations

import torch

from threedgp.camera.camera import Camera


def make_cameras(batch: int, seed: int = 0, dtype=torch.float64) -> Camera:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(8, batch, generator=generator, dtype=dtype)
    return Camera(
        angles=torch.stack([u[0] * 3 - 1.5, u[1] + 1.0, torch.zeros_like(u[2])], dim=1),
        fov=u[3] * 35 + 10,
        radius=u[4] * 0.2 + 0.9,
        look_at=torch.stack([u[5] * 6 - 3, u[6] * 3, u[7] * 0.2], dim=1),
    )


def golden_camera(arrays, dtype=torch.float32) -> Camera:
    return Camera(*(torch.from_numpy(arrays[key]) for key in ("angles", "fov", "radius", "look_at"))).to(dtype)
