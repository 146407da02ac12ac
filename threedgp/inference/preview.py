"""Pictures of a mesh without a graphics card: what a mesh file holds, seen through a camera."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from threedgp.camera.camera import Camera
from threedgp.inference.mesh import Mesh

CLAY = np.array([204.0, 199.0, 191.0])
AMBIENT = 0.25
BACKGROUND = 255
MOST_POINTS = 1_000_000  # tested at a time


def draw_mesh(mesh: Mesh, camera: Camera, size: int, *, near: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mesh with a depth buffer, once in its colours and once as clay lit from the camera.

    Triangles with a corner behind the camera are left out.

    Args:
        mesh: what to draw.
        camera: one camera.
        size: side of the pictures in pixels.
        near: parts closer to the camera than this are cut away, world units along the ray.

    Returns:
        Colours and clay, uint8 [size, size, 3] each, on white.
    """
    matrix = camera.cam2world()[0].double().cpu().numpy()
    local = (mesh.vertices - matrix[:3, 3]) @ matrix[:3, :3]  # camera coordinates [V, 3], looking along −z
    plane = 1.0 / np.tan(np.deg2rad(float(camera.fov[0])) / 2)
    depth = np.where(local[:, 2:] < 0, -local[:, 2:], np.nan)
    screen = (local[:, :2] * [1, -1] * plane / depth + 1) / 2 * (size - 1)  # column, row [V, 2]; NaN behind
    corners = mesh.faces[np.isfinite(screen[mesh.faces]).all(axis=(1, 2))]
    nearest = np.full(size * size, np.inf)
    shown = np.full(size * size, -1, dtype=np.int64)  # triangle of each pixel
    shares = np.zeros((size * size, 3))  # and the place in it
    for pixel, share, triangle in _covered(screen[corners], size):
        share = share / depth[corners[triangle], 0]  # straight on the screen is not straight in space
        share /= share.sum(axis=-1, keepdims=True)
        distance = np.linalg.norm(np.einsum("pk,pkd->pd", share, local[corners[triangle]]), axis=-1)
        closer = np.flatnonzero((distance >= near) & (distance < nearest[pixel]))
        closer = closer[np.argsort(-distance[closer], kind="stable")]  # the nearest is written last
        pixel = pixel[closer]
        nearest[pixel], shown[pixel], shares[pixel] = distance[closer], triangle[closer], share[closer]
    pixels = np.flatnonzero(shown >= 0)
    used, share = corners[shown[pixels]], shares[pixels]
    pictures = np.full((2, size * size, 3), BACKGROUND, dtype=np.uint8)
    color = np.einsum("pk,pkd->pd", share, mesh.colors[used].astype(np.float64))
    normal = _unit(np.einsum("pk,pkd->pd", share, _vertex_normals(local, mesh.faces)[used]))
    view = _unit(np.einsum("pk,pkd->pd", share, local[used]))
    facing = np.abs((normal * view).sum(axis=-1, keepdims=True))
    pictures[0, pixels] = np.round(color)
    pictures[1, pixels] = np.round(CLAY * (AMBIENT + (1 - AMBIENT) * facing))
    colors, clay = pictures.reshape(2, size, size, 3)
    return colors, clay


def _covered(triangles: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pixels whose centre lies in a triangle, many triangles at a time.

    Args:
        triangles: [T, 3, 2] column and row of the corners.
        size: side of the picture.

    Yields:
        Pixel index [P], barycentric coordinates on the screen [P, 3], triangle [P].
    """
    low = np.clip(np.ceil(triangles.min(axis=1)), 0, size).astype(np.intp)  # first column and row, [T, 2]
    high = np.clip(np.floor(triangles.max(axis=1)), -1, size - 1).astype(np.intp)
    extent = (high - low).max(axis=1) + 1
    extent[(high < low).any(axis=1)] = 0
    box = 1 << np.ceil(np.log2(np.maximum(extent, 1))).astype(int)  # few different sizes
    for side in np.unique(box[extent > 0]):
        members = np.flatnonzero((box == side) & (extent > 0))
        row, column = (axis.ravel() for axis in np.mgrid[:side, :side])
        at_once = max(MOST_POINTS // side**2, 1)
        for first in range(0, len(members), at_once):
            some = members[first : first + at_once]
            point = low[some][:, None] + np.stack([column, row], axis=-1)  # [t, side², 2]
            share = _barycentric(triangles[some], point)  # [t, side², 3]
            inside = (share >= 0).all(axis=-1) & (point < size).all(axis=-1)
            which, place = np.nonzero(inside)
            pixel = point[which, place, 1] * size + point[which, place, 0]
            yield pixel, share[which, place], some[which]


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Coordinates [t, P, 3] of points [t, P, 2] in triangles [t, 3, 2]; NaN in a triangle without area."""
    a, b, c = (triangles[:, None, corner] for corner in range(3))

    def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    parts = [cross(c - b, points - b), cross(a - c, points - c), cross(b - a, points - a)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack(parts, axis=-1) / cross(b - a, c - a)[..., None]


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mean of the normals of the faces around each vertex, weighted by their areas: [V, 3], not of unit length."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    normals = np.zeros((len(vertices), 3))
    for axis in range(3):
        for corner in range(3):
            normals[:, axis] += np.bincount(faces[:, corner], normal[:, axis], len(vertices))
    return normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
