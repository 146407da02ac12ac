"""Surfaces: the density of a sample on a grid, marching cubes, colours, and mesh files.

Source: marching cubes of Lorensen and Cline (SIGGRAPH 1987), in the variant of Lewiner et al. (2003) that scikit-image
provides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgp.errors import MissingExtraError, ThreeDGPError, UsageError
from threedgp.files import atomic_path
from threedgp.inference.sampler import exact_arithmetic, unit_range
from threedgp.models.generator import Generator
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.rendering.renderer import RenderOptions

POINTS_AT_ONCE = 64**3
WALL = 100.0
SOFTPLUS_LINEAR = 20.0  # above this softplus(x) equals x in float32


class SurfaceError(ThreeDGPError):
    """The density has no surface at the threshold."""


@dataclass
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: float32 [V, 3] world coordinates.
        faces: int32 [T, 3], counter-clockwise seen from outside.
        colors: uint8 [V, 3].
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class Threshold:
    """Where the surface is: a raw density, an opacity along one ray step of training, or a percentile of the volume."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read "opacity:0.5", "density:25" or "percentile:95"; a number alone is a raw density.

        Raises:
            UsageError: another form, or a value out of range.
        """
        kind, _, number = text.rpartition(":")
        kind = kind.strip().lower() or "density"
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        valid = {
            "density": math.isfinite(value),
            "opacity": 0 < value < 1,
            "percentile": 0 < value < 100,
        }.get(kind, False)
        if not valid:
            raise UsageError(
                f"--threshold {text}: write opacity:0.5 (between 0 and 1), density:25 or percentile:95 (0 to 100)."
            )
        return cls(kind, value)

    def level(self, volume: np.ndarray, options: RenderOptions) -> float:
        """The raw density of the surface.

        An opacity α is reached where a step L = (far−near)/num_steps through the field absorbs the share
        α = 1 − exp(−L·σ); the model saw nothing finer than that step in training.
        """
        if self.kind == "density":
            return self.value
        if self.kind == "percentile":
            return float(np.percentile(volume, self.value))
        density = -math.log1p(-self.value) * options.num_steps / (options.far - options.near)
        if options.marcher == "classical" and options.clamp_mode == "relu":
            return density
        raw = density if density > SOFTPLUS_LINEAR else math.log(math.expm1(density))
        return raw - (options.density_bias if options.marcher == "mip" else 0.0)


# -------------------------------------------------------------------------------------------------------------- volume


def grid_points(
    resolution: int, cube_size: float, first: int, last: int, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Tensor:
    """World coordinates of the slabs first..last−1 of a regular grid in a cube.

    Index i along an axis is at origin − cube_size/2 + i·cube_size/(resolution−1); x changes slowest, z fastest.

    Returns:
        float32 [(last−first)·resolution², 3].
    """
    axis = np.arange(resolution) * (cube_size / (resolution - 1)) - cube_size / 2
    x, y, z = np.meshgrid(axis[first:last] + origin[0], axis + origin[1], axis + origin[2], indexing="ij")
    return torch.from_numpy(np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float32))


@torch.no_grad()
def density_volume(
    generator: Generator,
    planes: Tensor,
    resolution: int,
    cube_size: float,
    progress: Progress = NULL_PROGRESS,
) -> np.ndarray:
    """Raw density, before softplus, on a grid around the world's centre.

    Args:
        generator: in evaluation mode.
        planes: [1, 3, F, H, W] of one sample.
        resolution: points along each axis.
        cube_size: side of the cube, world units.
        progress: told about slabs of points; `start` is the caller's.

    Returns:
        float32 [resolution, resolution, resolution], indexed x, y, z.
    """
    slabs = max(POINTS_AT_ONCE // resolution**2, 1)
    parts = []
    with exact_arithmetic():
        for first in range(0, resolution, slabs):
            last = min(first + slabs, resolution)
            points = grid_points(resolution, cube_size, first, last).to(planes.device)[None]
            values = generator.query_density(planes, points)[0, :, 0]
            parts.append(values.float().cpu().numpy().reshape(last - first, resolution, resolution))
            progress.advance(last - first)
    return np.concatenate(parts)


def reference_crop(resolution: int) -> tuple[slice, slice, slice]:
    """The cut of one published figure: no lower half, nothing near the camera, less at the sides.

    Index slices for x, y, z: ⌊r/8⌋ to −⌈r/8⌉, ⌊r/2⌋ to the end, the start to −⌈r/3⌉.
    """
    r = resolution
    return slice(r // 8, r - -(-r // 8)), slice(r // 2, r), slice(0, r - -(-r // 3))


# ------------------------------------------------------------------------------------------------------------- surface


def extract_surface(volume: np.ndarray, level: float, *, largest_only: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes with a closed surface: where matter reaches the border of the volume, it ends in a wall there.

    Args:
        volume: [X, Y, Z] raw density.
        level: density of the surface.
        largest_only: keep the connected part with the most triangles.

    Returns:
        Vertices float32 [V, 3] in units of the volume's indices, and faces int32 [T, 3].

    Raises:
        SurfaceError: everything lies on one side of the level; says which densities there are.
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        raise MissingExtraError("scikit-image", "mesh", "Extracting a mesh") from None
    low, high = float(volume.min()), float(volume.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise SurfaceError("The density of this sample is not finite everywhere: the model has diverged.")
    if not low < level < high:
        typical = float(np.percentile(volume, 95))
        raise SurfaceError(
            f"No surface: the threshold is a raw density of {level:.4g}, and those of this sample go from {low:.4g} to "
            f"{high:.4g}. Try for example --threshold density:{typical:.4g} or --threshold percentile:95."
        )
    outside = level - WALL * (high - low)  # so far below that walls stand where the volume ends
    padded = np.pad(volume, 1, constant_values=outside)
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")
    vertices, faces = vertices - 1.0, faces.astype(np.int32)
    if largest_only:
        vertices, faces = largest_component(vertices, faces)
    return vertices.astype(np.float32), faces


def largest_component(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected part of a mesh that has the most triangles, with the vertices it uses, in their order."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges), np.uint8), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    _, part_of = connected_components(graph, directed=False)
    part_of_face = part_of[faces[:, 0]]
    kept = faces[part_of_face == np.bincount(part_of_face).argmax()]
    used, renumbered = np.unique(kept, return_inverse=True)
    return vertices[used], renumbered.reshape(kept.shape).astype(np.int32)


@torch.no_grad()
def vertex_colors(generator: Generator, planes: Tensor, vertices: np.ndarray) -> np.ndarray:
    """The field's colour at each vertex: float [V, 3] world coordinates -> uint8 [V, 3]."""
    field, parts = generator.field(planes), []
    with exact_arithmetic():
        for points in torch.from_numpy(vertices.astype(np.float32)).split(POINTS_AT_ONCE):
            rgb = field(points.to(planes.device)[None])[0][0]  # [v, 3]
            if generator.render_options.marcher == "mip":  # whose colours are in [0, 1]
                rgb = 2 * rgb - 1
            parts.append((unit_range(rgb) * 255).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


# --------------------------------------------------------------------------------------------------------------- files


def save_mesh(mesh: Mesh, path: Path) -> None:
    """Write PLY, OBJ or GLB, by the ending of `path`, with vertex colours; whole or not at all.

    Raises:
        MissingExtraError: trimesh is not installed.
        OSError: the disk is full or not writable.
    """
    try:
        import trimesh
    except ImportError:
        raise MissingExtraError("trimesh", "mesh", "Writing a mesh") from None
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
    content = made.export(file_type=path.suffix.lstrip("."))
    assert isinstance(content, (str, bytes))  # trimesh gives a dictionary for no format that is offered
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_mrc(volume: np.ndarray, path: Path, voxel_size: float, origin: tuple[float, float, float]) -> None:
    """Write a density volume as MRC2014 (mode 2: float32), as ChimeraX and others read it; whole or not at all.

    Args:
        volume: [X, Y, Z]; in the file x changes fastest, the format's usual order.
        voxel_size: edge of a voxel in world units (which take the place of the format's angstroms).
        origin: world coordinates of the voxel (0, 0, 0).
    """
    header = np.zeros(256, dtype="<i4")
    real = header.view("<f4")
    header[0:3] = volume.shape  # columns x, rows y, sections z
    header[3] = 2
    header[7:10] = volume.shape
    real[10:13] = np.array(volume.shape) * voxel_size
    real[13:16] = 90.0
    header[16:19] = (1, 2, 3)  # the axis of columns, rows, sections
    real[19:22] = volume.min(), volume.max(), volume.mean(dtype=np.float64)
    header[22] = 1  # space group: a volume, not a stack of images
    header[27] = 20140  # the format's version
    real[49:52] = origin
    header[52:53].view("S4")[0] = b"MAP "
    header[53] = 0x00004444  # little-endian
    real[54] = volume.std(dtype=np.float64)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header.tobytes())
        for z in range(volume.shape[2]):
            file.write(np.ascontiguousarray(volume[:, :, z].T, dtype="<f4").tobytes())
