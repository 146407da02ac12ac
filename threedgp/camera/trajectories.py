"""Camera paths for pictures and videos, around the canonical camera of each sample.

A path is a small typed settings object whose `cameras(canonical)` gives the frames of S samples, **sample by sample**
(index = sample · frames + frame). Angles are in radians, fields of view in degrees; radius and look-at point stay.
With τ = k/(F−1) the last frame of a closed path repeats the first; `loop: true` uses k/F instead, for seamless loops.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from threedgp.camera.camera import PITCH_MARGIN, Camera
from threedgp.config.schema import Section
from threedgp.errors import ConfigError


class Trajectory(Section, ABC):
    """Settings that every path has."""

    fov_offset: float = Field(0.0, description="degrees added to the field of view of every frame")

    @abstractmethod
    def frames(self) -> int:
        """Number of frames per sample."""

    @abstractmethod
    def path(self, start: Tensor) -> Tensor:
        """Yaw, pitch, roll, fov [S, F, 4] for the canonical yaw, pitch, roll, fov `start` [S, 1, 4]."""

    def cameras(self, canonical: Camera) -> Camera:
        """All frames of all samples: S cameras -> S·F cameras, sample-major; the pitch stays off the poles.

        Raises:
            ConfigError: the field of view would leave 0..180 degrees.
        """
        start = torch.cat([canonical.angles, canonical.fov[:, None]], dim=1)[:, None]  # [S, 1, 4]
        yaw, pitch, roll, fov = self.path(start).flatten(0, 1).unbind(dim=-1)  # [S·F] each
        fov = fov + self.fov_offset
        if not ((fov > 0) & (fov < 180)).all():
            raise ConfigError(
                f"The trajectory's field of view runs from {fov.min():.1f} to {fov.max():.1f} degrees; it must stay "
                "between 0 and 180. Lower fov_diff or fov_offset."
            )
        pitch = pitch.clamp(PITCH_MARGIN, math.pi - PITCH_MARGIN)
        rest = canonical.repeat_interleave(self.frames())
        return Camera(torch.stack([yaw, pitch, roll], dim=1), fov, rest.radius, rest.look_at)


class Animation(Trajectory):
    """A path with a free number of frames."""

    num_frames: int = Field(16, ge=1, le=100_000)

    def frames(self) -> int:
        return self.num_frames


def _time(frames: int, start: Tensor, loop: bool = False) -> Tensor:
    """τ [1, F], from 0 to 1, or up to one step before 1 in a loop."""
    steps = frames if loop else max(frames - 1, 1)
    return torch.arange(frames, device=start.device, dtype=start.dtype)[None] / steps


def _between(first: float, last: float, frames: int, start: Tensor) -> Tensor:
    return torch.linspace(first, last, frames, device=start.device, dtype=start.dtype)[None]  # [1, F]


def _join(start: Tensor, *parts: Tensor | float) -> Tensor:
    """Yaw, pitch, roll, fov, each [S or 1, F or 1] or a number -> [S, F, 4]."""
    numbers = [torch.as_tensor(part, device=start.device, dtype=start.dtype) for part in parts]
    shape = torch.broadcast_shapes(*(number.shape for number in numbers), start.shape[:2])
    return torch.stack([number.expand(shape) for number in numbers], dim=-1)


class FrontCircle(Animation):
    """A circle in front of the subject, with a breathing field of view: the standard video of 3DGP."""

    num_frames: int = Field(64, ge=1, le=100_000)
    yaw_diff: float = Field(0.5, description="half width of the circle")
    pitch_diff: float = Field(0.3, description="half height of the circle")
    fov_diff: float = Field(1.0, description="half range of the field of view, degrees")
    loop: bool = False

    def path(self, start: Tensor) -> Tensor:
        yaw, pitch, roll, fov = start.unbind(dim=-1)  # [S, 1] each
        turn = 2 * math.pi * _time(self.num_frames, start, self.loop)
        return _join(
            start,
            yaw + self.yaw_diff * turn.sin(),
            pitch + self.pitch_diff * turn.cos(),
            roll,
            fov + self.fov_diff * turn.sin(),
        )


class Points(Trajectory):
    """A few fixed views side by side: one frame per yaw offset."""

    yaw_offsets: list[float] = Field(default=[-0.5, 0.0, 0.5], min_length=1)
    pitch_offset: float = 0.0

    @field_validator("yaw_offsets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.strip("[] ").split(",") if part.strip()] if isinstance(value, str) else value

    def frames(self) -> int:
        return len(self.yaw_offsets)

    def path(self, start: Tensor) -> Tensor:
        yaw, pitch, roll, fov = start.unbind(dim=-1)
        return _join(start, yaw + yaw.new_tensor(self.yaw_offsets), pitch + self.pitch_offset, roll, fov)


class Point(Trajectory):
    """A single view."""

    yaw_offset: float = 0.0
    pitch_offset: float = 0.0

    def frames(self) -> int:
        return 1

    def path(self, start: Tensor) -> Tensor:
        yaw, pitch, roll, fov = start.unbind(dim=-1)
        return _join(start, yaw + self.yaw_offset, pitch + self.pitch_offset, roll, fov)


class Line(Animation):
    """From one absolute direction to another; the canonical direction does not matter."""

    yaw_start: float = -1.57
    yaw_end: float = 1.57
    pitch_start: float = 1.57
    pitch_end: float = 1.57
    fov: float | None = Field(None, gt=0, lt=180, description="degrees; null: the canonical one")

    def path(self, start: Tensor) -> Tensor:
        fov = start[..., 3] if self.fov is None else self.fov
        yaw = _between(self.yaw_start, self.yaw_end, self.num_frames, start)
        return _join(start, yaw, _between(self.pitch_start, self.pitch_end, self.num_frames, start), 0.0, fov)


class Wiggle(Animation):
    """From left to right while nodding once about the equator; the canonical direction does not matter."""

    yaw_left: float = -1.57
    yaw_right: float = 1.57
    pitch_diff: float = 0.5

    def path(self, start: Tensor) -> Tensor:
        turn = 2 * math.pi * _time(self.num_frames, start)
        yaw = _between(self.yaw_left, self.yaw_right, self.num_frames, start)
        return _join(start, yaw, math.pi / 2 + self.pitch_diff * turn.cos(), 0.0, start[..., 3])


class Orbit(Animation):
    """All the way around the subject, starting at the canonical view."""

    num_frames: int = Field(64, ge=1, le=100_000)
    turns: float = Field(1.0, description="negative: the other way round")
    pitch_offset: float = 0.0
    loop: bool = True

    def path(self, start: Tensor) -> Tensor:
        yaw, pitch, roll, fov = start.unbind(dim=-1)
        turn = 2 * math.pi * self.turns * _time(self.num_frames, start, self.loop)
        return _join(start, yaw + turn, pitch + self.pitch_offset, roll, fov)


class Spiral(Animation):
    """From the canonical view outwards in growing circles, zooming as it goes."""

    num_frames: int = Field(96, ge=1, le=100_000)
    turns: float = Field(3.0, description="number of circles")
    yaw_diff: float = Field(0.5, description="half width of the last circle")
    pitch_diff: float = Field(0.3, description="half height of the last circle")
    fov_diff: float = Field(0.0, description="degrees by which the field of view has grown at the end")

    def path(self, start: Tensor) -> Tensor:
        yaw, pitch, roll, fov = start.unbind(dim=-1)
        time = _time(self.num_frames, start)
        turn = 2 * math.pi * self.turns * time
        return _join(
            start,
            yaw + self.yaw_diff * time * turn.sin(),
            pitch + self.pitch_diff * time * turn.cos(),
            roll,
            fov + self.fov_diff * time,
        )


TRAJECTORIES: dict[str, type[Trajectory]] = {
    "front_circle": FrontCircle,
    "points": Points,
    "point": Point,
    "line": Line,
    "wiggle": Wiggle,
    "orbit": Orbit,
    "spiral": Spiral,
}


LARGEST_NUMBER = 100_000  # of any setting: more has no meaning, and float32 no digits left for an angle

OTHER_NAMES = {"yaw_range": "yaw_diff", "pitch_range": "pitch_diff", "fov_range": "fov_diff"}
"""Names that people try, and the settings they mean."""


def build_trajectory(name: str, overrides: Mapping[str, Any] | None = None) -> Trajectory:
    """A path by name, with some of its settings changed.

    Args:
        name: a key of TRAJECTORIES.
        overrides: setting -> value; text is converted ("0.6", "true", and "-0.5,0,0.5" for lists).

    Raises:
        ConfigError: unknown name or setting (with the nearest valid one), or a value that does not fit.

    Example:
        >>> build_trajectory("front_circle", {"yaw_diff": "0.6"}).yaw_diff
        0.6
    """
    if name not in TRAJECTORIES:
        raise ConfigError(
            f"There is no trajectory '{name}'.{_nearest(name, TRAJECTORIES)} Choose one of: {', '.join(TRAJECTORIES)}."
        )
    kind = TRAJECTORIES[name]
    values = {key: None if value in ("null", "none") else value for key, value in (overrides or {}).items()}
    for other, key in OTHER_NAMES.items():
        if other in values and key in kind.model_fields:
            values.setdefault(key, values.pop(other))
    for key in values:
        if key not in kind.model_fields:
            known = ", ".join(kind.model_fields)
            raise ConfigError(
                f"Trajectory {name} has no setting '{key}'.{_nearest(key, kind.model_fields)} It has: {known}."
            )
    try:
        trajectory = kind.model_validate(values, strict=False)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(
            f"Trajectory {name}, {key}: {problem['msg'].lower()}, but it is {shorten(problem['input'])}."
        ) from None
    numbers = [
        value for entry in trajectory.model_dump().values() for value in (entry if isinstance(entry, list) else [entry])
    ]
    if not all(abs(value) <= LARGEST_NUMBER for value in numbers if value is not None):  # NaN neither
        raise ConfigError(f"Trajectory {name}: no number may be beyond ±{LARGEST_NUMBER:,}.")
    return trajectory


def shorten(value: Any) -> str:
    """A value of any origin as a few letters of a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""
