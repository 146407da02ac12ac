"""What a render is: typed settings, complete enough to be written beside it and to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from threedgp.camera.trajectories import Trajectory, build_trajectory, shorten
from threedgp.config.schema import Section
from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.files import read_json, write_json
from threedgp.inference.latents import LARGEST_LIST, LARGEST_SEED, Sample, plan_pairs, plan_samples

RECORD_VERSION = 1


class SubjectSettings(Section):
    """Which samples, and from where they are seen."""

    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(min_length=1, max_length=LARGEST_LIST)
    classes: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1, max_length=LARGEST_LIST)
    truncation: float = Field(0.7, ge=-5, le=5)
    camera: Literal["mean", "posterior"] = "mean"
    batch: int = Field(4, ge=1, le=4096)


class PictureSettings(SubjectSettings):
    """What grids and videos have in common."""

    interpolate: int | None = Field(None, ge=2, le=100_000)
    trajectory: str | None = None
    motion: dict[str, Any] = Field(default={}, description="settings of the trajectory")
    size: int | None = None
    steps: float = Field(2.0, gt=0)
    far_offset: float = 0.0
    show: list[Literal["rgb", "depth", "adapted"]] = Field(default=["rgb"], min_length=1, max_length=8)
    captions: bool = False
    columns: int | None = Field(None, ge=1, le=LARGEST_LIST)
    per_file: int = Field(16, ge=1, le=LARGEST_LIST)

    @field_validator("steps", "far_offset")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not abs(value) < 1e6:
            raise ValueError("must be a reasonable number")
        return value


class VideoSettings(PictureSettings):
    """A video: several samples at once, moving together."""

    fps: float = 30.0
    format: Literal["mp4", "gif", "webp", "png"] = "mp4"
    crf: int = Field(10, ge=0, le=51)


class GridSettings(PictureSettings):
    """A picture: the views of each sample side by side, samples in a grid."""

    format: Literal["png", "jpg", "jpeg"] = "png"


class MeshSettings(SubjectSettings):
    """A surface of each sample."""

    resolution: int = Field(256, ge=8, le=1024, description="density samples along each axis")
    cube_size: float | None = Field(None, gt=0, le=1e6, description="side of the sampled cube; null: the whole scene")
    threshold: str = "opacity:0.5"
    formats: list[Literal["ply", "obj", "glb", "mrc"]] = Field(default=["ply"], min_length=1, max_length=8)
    all_components: bool = False
    crop: bool = False
    normalize: bool = False
    preview_size: int = Field(256, ge=16, le=2048)


KINDS: dict[str, type[SubjectSettings]] = {"video": VideoSettings, "grid": GridSettings, "mesh": MeshSettings}


def complete_settings(
    kind: str, values: Mapping[str, Any], *, is_2d: bool = False, imported: bool = False, batch: int = 4
) -> Any:
    """Settings from the values given, the rest as usual.

    Args:
        kind: of the render, a key of KINDS.
        values: field -> value.
        is_2d: the model has no camera, so there is no trajectory.
        imported: the model is a snapshot of the original, which looks a unit farther than it was trained for.
        batch: pictures at a time, unless given.

    Raises:
        UsageError: names every option that does not fit.
    """
    usual: dict[str, Any] = {"seeds": [0] if kind == "mesh" else list(range(16)), "batch": batch}
    if kind != "mesh" and not is_2d:
        still = "point" if values.get("interpolate") else "points"
        usual["trajectory"] = "front_circle" if kind == "video" else still
        usual["far_offset"] = float(imported)
    values = {**usual, **values}
    if kind != "mesh" and is_2d:
        values |= {"trajectory": None, "motion": {}}
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise UsageError(_problems(error)) from None


def _problems(error: ValidationError) -> str:
    """Each option that does not fit, and why."""
    texts = []
    for problem in error.errors(include_url=False)[:4]:
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        texts.append(f"{option}: {problem['msg'].lower()}, but it is {shorten(problem['input'])}.")
    return " ".join(texts)


def changed_settings(earlier: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier settings with some of them changed; another trajectory forgets the settings of the earlier one."""
    values = {**earlier, **given}
    if values.get("trajectory") == earlier.get("trajectory") and "motion" in given:
        values["motion"] = {**earlier.get("motion", {}), **given["motion"]}
    elif "trajectory" in given and given["trajectory"] != earlier.get("trajectory"):
        values["motion"] = given.get("motion", {})
    return values


def build_motion(settings: PictureSettings) -> Trajectory:
    """The trajectory of a picture, as long as the interpolation where there is one.

    Raises:
        ConfigError: unknown trajectory or setting of one.
        UsageError: the trajectory has another length than the interpolation.
    """
    steps, overrides = settings.interpolate, dict(settings.motion)
    if settings.trajectory is None:
        raise UsageError("A 3D model needs a --trajectory.")
    trajectory = build_trajectory(settings.trajectory, overrides)
    if steps is None:
        return trajectory
    if "num_frames" in type(trajectory).model_fields and "num_frames" not in overrides:
        trajectory = build_trajectory(settings.trajectory, {**overrides, "num_frames": steps})
    if trajectory.frames() not in (1, steps):
        raise UsageError(
            f"--interpolate {steps} makes {steps} pictures, but trajectory {settings.trajectory} has "
            f"{trajectory.frames()}. Use --trajectory point to stand still."
        )
    return trajectory


def build_subjects(settings: SubjectSettings, num_classes: int) -> list[tuple[Sample, ...]]:
    """The tiles of a render: one sample each, or the two ends of an interpolation.

    Raises:
        UsageError: a class that the model does not have, or an odd number of seeds to interpolate.
    """
    if settings.classes is not None:
        if num_classes == 0:
            raise UsageError("This model is unconditional: it has no classes. Leave --classes out.")
        if max(settings.classes) >= num_classes or min(settings.classes) < 0:
            raise UsageError(f"--classes: this model has the classes 0 to {num_classes - 1}.")
    if getattr(settings, "interpolate", None) is not None:
        return [*plan_pairs(settings.seeds, settings.classes, num_classes)]
    return [(sample,) for sample in plan_samples(settings.seeds, settings.classes, num_classes)]


# ------------------------------------------------------------------------------------------------------------- records


def write_record(path: Path, kind: str, settings: SubjectSettings, content: Mapping[str, Any]) -> None:
    """Write the JSON beside a render; `read_record` takes its settings back."""
    write_json(path, {"render": kind, "format": RECORD_VERSION, "settings": settings.model_dump(), **content})


def recorded_format(path: Path, kind: str) -> str | None:
    """Format of the render of this kind that a record describes; `other` for any other file; None for none."""
    if not path.is_file():
        return None
    try:
        settings, _ = read_record(path, kind)
    except ThreeDGPError:
        return "other"
    return settings.get("format") or settings["formats"][0]


def read_record(path: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and checkpoint of an earlier render.

    Returns:
        (settings, checkpoint with the keys run, name and sha256).

    Raises:
        DataError: missing, no such JSON, settings that no render has, of a newer version.
        UsageError: it describes another kind of render.
    """
    content = read_json(path)
    try:
        found, version = str(content["render"]), content["format"]
        settings, checkpoint = dict(content["settings"]), content["checkpoint"]
        checkpoint = {key: str(checkpoint[key]) for key in ("run", "name", "sha256")}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is no record of a render: `3dgp render` writes one beside each result.") from None
    if version != RECORD_VERSION:
        raise DataError(f"{path} was written by another version of 3dgp (record format {version}).")
    if found not in KINDS:
        raise DataError(f"{path} is no record of a render: it describes a {shorten(found)}.")
    if found != kind:
        raise UsageError(f"{path} describes a {found}: use `3dgp render {found} --from {path}`.")
    try:
        return KINDS[kind].model_validate(settings).model_dump(), checkpoint
    except ValidationError as error:
        raise DataError(f"{path} is no record of a render. {_problems(error)}") from None
