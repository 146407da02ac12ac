"""Pictures of a mesh without a graphics card: what a mesh file holds, seen through a camera."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from threedgp.camera.camera import Camera
from threedgp.inference.mesh import Mesh

CLAY = np.array([204.0, 199.0, 191.0])
AMBIENT = 0.25
BACKGROUND = 255
MOST_POINTS = 4_000_000
LONGEST_EDGE = 256  # half pixels that the edge of one triangle is divided into at most


def draw_mesh(mesh: Mesh, camera: Camera, size: int, *, near: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mesh with a depth buffer, once in its colours and once as clay lit from the camera.

    Triangles are covered with points no farther apart than half a pixel; of the points that fall into a pixel the
    nearest one shows. Triangles with a corner behind the camera are left out.

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
    screen = _project(local, plane, size)
    corners = mesh.faces[_visible(screen, local, mesh.faces, size)]
    nearest = np.full(size * size, np.inf)
    shown = np.full(size * size, -1, dtype=np.int64)  # triangle of each pixel
    shares = np.zeros((size * size, 3))  # and the place in it
    for share, triangle in _cover(screen, corners):
        point = np.einsum("pk,pkd->pd", share, local[corners[triangle]])  # [P, 3]
        place, distance = _project(point, plane, size), np.linalg.norm(point, axis=-1)
        seen = (distance >= near) & (place > -0.5).all(-1) & (place < size - 0.5).all(-1)
        column, row = np.round(place[seen]).astype(np.intp).T
        pixel, distance, triangle, share = row * size + column, distance[seen], triangle[seen], share[seen]
        closer = np.flatnonzero(distance < nearest[pixel])
        closer = closer[np.argsort(-distance[closer], kind="stable")]  # the nearest point is written last
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
    return tuple(pictures.reshape(2, size, size, 3))


def _project(points: np.ndarray, plane: float, size: int) -> np.ndarray:
    """Camera coordinates [..., 3] to column and row [..., 2]; meaningless behind the camera."""
    depth = np.where(points[..., 2:] < 0, -points[..., 2:], np.inf)
    return (points[..., :2] * [1, -1] * plane / depth + 1) / 2 * (size - 1)


def _visible(screen: np.ndarray, local: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """Mask of the faces in front of the camera that may touch the picture."""
    ahead = (local[faces, 2] < 0).all(axis=1)
    corners = screen[faces]
    return ahead & (corners.max(axis=1) >= -1).all(axis=1) & (corners.min(axis=1) <= size).all(axis=1)


def _cover(screen: np.ndarray, corners: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (barycentric coordinates [P, 3], index of the triangle [P]) that cover triangles densely."""
    points = screen[corners]  # [T, 3, 2]
    longest = np.linalg.norm(points - np.roll(points, 1, axis=1), axis=-1).max(axis=1)
    steps = np.clip(np.ceil(2 * longest), 1, LONGEST_EDGE).astype(int)  # divisions of an edge
    for count in np.unique(steps):
        members = np.flatnonzero(steps == count)
        i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        i, j = i[i + j <= count], j[i + j <= count]
        share = np.stack([i, j, count - i - j], axis=-1) / count  # [K, 3]
        at_once = max(MOST_POINTS // len(share), 1)
        for first in range(0, len(members), at_once):
            some = members[first : first + at_once]
            yield np.tile(share, (len(some), 1)), np.repeat(some, len(share))


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
