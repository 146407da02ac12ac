"""`render_mesh`: from settings to mesh files with previews and the JSON beside them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgp.camera.camera import Camera
from threedgp.camera.trajectories import Points
from threedgp.inference.grid import save_picture, to_uint8
from threedgp.inference.jobs import Rendered, require_memory, write_job_record
from threedgp.inference.mesh import (
    Mesh,
    SurfaceError,
    Threshold,
    density_volume,
    extract_surface,
    reference_crop,
    save_mesh,
    save_mrc,
    vertex_colors,
)
from threedgp.inference.model import TrainedModel
from threedgp.inference.preview import draw_mesh
from threedgp.inference.sampler import ViewOptions, ViewSampler, require_3d
from threedgp.inference.settings import MeshSettings, build_subjects
from threedgp.models.generator import Generator
from threedgp.progress import NULL_PROGRESS, Progress

MOST_REASONS = 4  # in one message


def render_mesh(model: TrainedModel, settings: MeshSettings, out: Path, progress: Progress = NULL_PROGRESS) -> Rendered:
    """The surface of each sample, in each of the wanted formats, and a preview picture.

    The preview shows three views: on top what the model renders, beneath it the mesh in colour and as clay.

    Args:
        model: a 3D model.
        settings: see MeshSettings.
        out: path without ending; several samples append their labels.
        progress: told about slabs of the density volume.

    Raises:
        UsageError: a 2D model, or settings that do not fit it.
        SurfaceError: no sample has a surface at the threshold; single ones that have none are in `Rendered.failed`.
        MissingExtraError: scikit-image or trimesh is not installed.
    """
    began = time.perf_counter()
    require_3d(model.generator, "A mesh")
    assert isinstance(model.generator, Generator)
    samples = [subject[0] for subject in build_subjects(settings, model.profile.data.num_classes)]
    threshold = Threshold.parse(settings.threshold)
    sampler = ViewSampler(model.generator, ViewOptions(size=settings.preview_size, batch=settings.batch))
    cube_size = settings.cube_size or 2 * model.generator.cube_scale
    files: list[Path] = []
    entries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    volume_bytes = 4 * settings.resolution**3
    require_memory(3 * volume_bytes, "Lower --resolution.")  # as it is, padded, and inside marching cubes
    progress.start("Sampling density", len(samples) * settings.resolution, "slabs")
    for sample in samples:
        planes = sampler.planes(model.styles([sample], settings.truncation))
        with sampler.watch("density"):
            volume = density_volume(model.generator, planes, settings.resolution, cube_size, progress)
        level = threshold.level(volume, model.generator.render_options)
        try:
            with sampler.watch("surface"):
                mesh, volume, corner = _surface(model.generator, planes, volume, level, cube_size, settings)
        except SurfaceError as error:
            failed[sample.label] = str(error)
            continue
        base = out if len(samples) == 1 else out.with_name(f"{out.name}-{sample.label}")
        camera = model.canonical_cameras([sample], settings.camera)
        preview = _preview(sampler, planes, mesh, camera)
        with sampler.watch("encode"):
            files += _save(mesh, volume, base, corner, cube_size / (settings.resolution - 1), settings)
            picture = base.with_name(f"{base.name}.png")
            save_picture(picture, preview)
        files.append(picture)
        entries.append({"sample": model.description(sample), **_facts(mesh, level, camera)})
    progress.finish()
    if not files:
        raise SurfaceError(" ".join(f"{label}: {reason}" for label, reason in list(failed.items())[:MOST_REASONS]))
    content = {"files": [path.name for path in files], "cube_size": cube_size, "samples": entries, "failed": failed}
    record = write_job_record(model, "mesh", settings, out, content, progress)
    seconds = {"network": sampler.watch.network, **sampler.watch.seconds, "total": time.perf_counter() - began}
    return Rendered(files, record, len(entries), seconds, failed)


def _surface(
    generator: Generator,
    planes: torch.Tensor,
    volume: np.ndarray,
    level: float,
    cube_size: float,
    settings: MeshSettings,
) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """Mesh in world units, the (cropped) volume, and the world coordinates of its first voxel."""
    step = cube_size / (settings.resolution - 1)
    first = np.zeros(3)
    if settings.crop:
        cut = reference_crop(settings.resolution)
        volume, first = volume[cut], np.array([part.start for part in cut], dtype=np.float64)
    corner = first * step - cube_size / 2
    vertices, faces = extract_surface(volume, level, largest_only=not settings.all_components)
    vertices = (vertices * step + corner).astype(np.float32)
    return Mesh(vertices, faces, vertex_colors(generator, planes, vertices)), volume, corner


def _save(
    mesh: Mesh, volume: np.ndarray, base: Path, corner: np.ndarray, step: float, settings: MeshSettings
) -> list[Path]:
    if settings.normalize:
        diagonal = np.linalg.norm(np.ptp(mesh.vertices, axis=0))
        mesh = Mesh(((mesh.vertices - corner) / diagonal).astype(np.float32), mesh.faces, mesh.colors)
    paths = []
    for kind in settings.formats:
        path = base.with_name(f"{base.name}.{kind}")
        if kind == "mrc":
            save_mrc(volume, path, step, tuple(corner.tolist()))
        else:
            save_mesh(mesh, path)
        paths.append(path)
    return paths


def _preview(sampler: ViewSampler, planes, mesh: Mesh, camera: Camera) -> torch.Tensor:
    """uint8 [3, 3·size, 3·size]."""
    cameras = Points().cameras(camera)
    rendered = list(to_uint8(sampler.views(planes, cameras).rgb).cpu())
    near = sampler.render_options.near
    with sampler.watch("preview"):
        drawn = [draw_mesh(mesh, cameras[index], sampler.size, near=near) for index in range(len(cameras))]
    rows = [torch.cat(rendered, dim=-1)]
    for pictures in zip(*drawn, strict=True):
        rows.append(torch.cat([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures], dim=-1))
    return torch.cat(rows, dim=-2)


def _facts(mesh: Mesh, level: float, camera: Camera) -> dict[str, Any]:
    return {
        "raw_density": level,
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "bounds": [mesh.vertices.min(axis=0).tolist(), mesh.vertices.max(axis=0).tolist()],
        "camera": camera.to_vector()[0].tolist(),
    }
