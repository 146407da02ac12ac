"""Rays through the pixels of an image or a patch, and where they cross the scene cube."""

from __future__ import annotations

import torch
from torch import Tensor

from threedgp.camera.camera import Camera


def pixel_grid(height: int, width: int, *, device=None, dtype=None) -> Tensor:
    """Image-plane coordinates [height·width, 2] of the pixels: x from −1 (left) to 1, y from 1 (top row) to −1.

    The outermost pixels lie exactly on the edge of the frustum (align_corners), so the field of view does not depend
    on the resolution. A side of one pixel looks at the centre.
    """

    def axis(count: int) -> Tensor:
        if count == 1:
            return torch.zeros(1, device=device, dtype=dtype)
        return torch.arange(count, device=device, dtype=dtype) * (2.0 / (count - 1)) - 1.0

    y, x = torch.meshgrid(-axis(height), axis(width), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(height * width, 2)


def camera_rays(
    camera: Camera,
    height: int,
    width: int,
    patch_scales: Tensor | None = None,
    patch_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One ray per pixel; ray i·width + j belongs to row i, column j.

    A patch with scales s and offsets q covers the part [q, q + s] of the image side, x from the left and **y from the
    bottom edge**: x' = (x+1)·s_x − 1 + 2q_x, same for y (EpiGRAF, arXiv 2206.10535, Sec. 3.3).

    Args:
        camera: B cameras.
        height, width: pixels of the image or patch.
        patch_scales, patch_offsets: [B, 2] in units of the image side, order (x, y); both or neither.

    Returns:
        Origins [B, R, 3] (a broadcast view) and unit directions [B, R, 3] with R = height·width.

    Raises:
        ValueError: only one of the patch parameters is given.
    """
    if (patch_scales is None) != (patch_offsets is None):
        raise ValueError("patch_scales and patch_offsets belong together: give both or neither")
    xy = pixel_grid(height, width, device=camera.device, dtype=camera.dtype)[None]  # [1, R, 2]
    if patch_scales is not None and patch_offsets is not None:
        xy = (xy + 1.0) * patch_scales[:, None] - 1.0 + 2.0 * patch_offsets[:, None]  # [B, R, 2]
    xy = xy.expand(len(camera), -1, -1)
    plane_distance = 1.0 / torch.tan(torch.deg2rad(camera.fov) / 2.0)  # [B]: half-extent of the image plane is 1
    z = -plane_distance[:, None, None].expand(-1, xy.shape[1], 1)
    directions = torch.nn.functional.normalize(torch.cat([xy, z], dim=-1), dim=-1)
    cam2world = camera.cam2world()
    directions = directions @ cam2world[:, :3, :3].transpose(1, 2)  # [B, R, 3]
    return cam2world[:, None, :3, 3].expand_as(directions), directions


def box_intersection(origins: Tensor, directions: Tensor, half_size: float) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the cube [−half_size, half_size]³ (slab test).

    Args:
        origins, directions: [..., 3].

    Returns:
        Entry and exit distance [...]. A miss is (−1, −2); the entry is negative when the ray starts inside.
    """
    inverse = 1.0 / directions
    near_side = torch.where(inverse >= 0, -half_size, half_size)
    t_in, t_out = (near_side - origins) * inverse, (-near_side - origins) * inverse
    # 0·∞: the ray runs inside one of the faces, which bounds nothing along this axis.
    t_in, t_out = t_in.nan_to_num(-torch.inf, torch.inf, -torch.inf), t_out.nan_to_num(torch.inf, torch.inf, -torch.inf)
    t_in, t_out = t_in.amax(dim=-1), t_out.amin(dim=-1)
    miss = t_in > t_out
    return t_in.masked_fill(miss, -1.0), t_out.masked_fill(miss, -2.0)


@torch.no_grad()
def box_bounds(origins: Tensor, directions: Tensor, half_size: float, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Per-ray interval inside the scene cube, usable for every ray.

    Rays that miss the cube (or have it behind them) take the nearest entry and farthest exit found in the batch; when
    no ray hits, all take near and far. A camera inside the cube starts at distance 0.

    Args:
        origins, directions: [B, R, 3].

    Returns:
        Start and end distance, each [B, R].
    """
    t_in, t_out = box_intersection(origins, directions, half_size)
    hit = (t_out > t_in) & (t_out > 0)
    t_in = t_in.clamp(min=0.0)
    nearest, farthest = t_in.where(hit, torch.inf).amin(), t_out.where(hit, -torch.inf).amax()
    nearest = torch.where(nearest.isinf(), near, nearest)
    farthest = torch.where(farthest.isinf(), far, farthest)
    return torch.where(hit, t_in, nearest), torch.where(hit, t_out, farthest)
