"""Where training cameras come from before any learning: the prior over position, field of view and look-at point.

Source: 3DGP (arXiv 2303.01416), Sec. 3.3 and App. B; EpiGRAF (arXiv 2206.10535), Sec. 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from threedgp.camera.camera import PITCH_MARGIN, Camera
from threedgp.config.schema import CameraConfig, RangeConfig, ScalarPriorConfig
from threedgp.errors import ConfigError

DRAW_NAMES = ("yaw", "pitch", "fov", "radius", "la_yaw", "la_pitch", "la_radius")


@dataclass(frozen=True)
class CameraBounds:
    """Interval (min, max) of each camera number, as the camera adaptor needs them; radius None: unbounded."""

    yaw: tuple[float, float]
    pitch: tuple[float, float]
    fov: tuple[float, float]
    la_yaw: tuple[float, float]
    la_pitch: tuple[float, float]
    la_radius: tuple[float, float]
    radius: tuple[float, float] | None = None


class CameraPrior:
    """Samples cameras from a profile's camera section.

    Angles (`origin` and `look_at`, each for yaw and pitch, with m = (min+max)/2):
        uniform: min..max; normal: mean + std·Z; truncnorm: a normal of width std about **m** (not mean), cut to
        min..max; hybrid: one fair coin for the batch decides between mean ± 2·std uniform and normal;
        spherical_uniform: yaw uniform, and pitch = arccos(1 − 2v/π) with v uniform in min..max, which is uniform on
        the sphere for 0..π; custom: given by the data.
    Numbers (fov, radius, look-at radius):
        uniform; truncnorm about mean; normal, which with its std of 0 is a constant.
    Pitches then stay 1e-5 away from the poles; the roll is 0.

    Args:
        config: a camera section of a resolved profile.

    Example:
        >>> from threedgp.config.schema import CameraConfig
        >>> len(CameraPrior(CameraConfig()).sample(16, generator=torch.Generator().manual_seed(0)))
        16
    """

    def __init__(self, config: CameraConfig):
        self.config = config

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        angles: Tensor | None = None,
    ) -> Camera:
        """Draw cameras.

        Args:
            batch: how many.
            generator: the only source of randomness (None: torch's own); it may live on another device.
            device: where the cameras go.
            angles: [batch, 3] from the data, needed by (and only used with) origin dist `custom`.

        Raises:
            ConfigError: dist `custom` without angles.
        """
        return self.from_draws(self.draw(batch, generator=generator), angles=angles).to(device)

    def draw(self, batch: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The raw random numbers of `sample`, in the order of DRAW_NAMES, for `from_draws`.

        [batch] each: standard normals where the distribution is normal, else uniforms in [0, 1); constants draw
        nothing. The coin of a hybrid prior is a 0-dimensional boolean under `origin_coin` or `look_at_coin`
        (true: uniform).
        """
        config = self.config
        draws: dict[str, Tensor] = {}
        kinds: dict[str, str] = {}
        for group, names in (("origin", ("yaw", "pitch")), ("look_at", ("la_yaw", "la_pitch"))):
            kind = getattr(config, group).dist
            if kind == "hybrid":
                coin = self._random("uniform", (), generator) < 0.5
                draws[f"{group}_coin"] = coin
                kind = "uniform" if coin else "normal"
            kinds |= dict.fromkeys(names, kind)
        for name, scalar in (("fov", config.fov), ("radius", config.radius), ("la_radius", config.look_at.radius)):
            kinds[name] = "constant" if scalar.dist == "normal" else "uniform"
        for name in DRAW_NAMES:
            if kinds[name] not in ("constant", "custom"):
                draws[name] = self._random(kinds[name], (batch,), generator)
        return draws

    @staticmethod
    def _random(kind: str, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        function = torch.randn if kind == "normal" else torch.rand
        return function(shape, generator=generator, device=None if generator is None else generator.device)

    def from_draws(self, draws: Mapping[str, Tensor], angles: Tensor | None = None) -> Camera:
        """Turn raw random numbers into cameras; see `draw`."""
        config = self.config
        la_yaw, la_pitch = self._angles("look_at", draws, "la_")
        if config.origin.dist == "custom":
            if angles is None:
                raise ConfigError(
                    "camera.origin.dist=custom takes the camera angles from the data set, which has none."
                )
            yaw, pitch, roll = angles.to(la_yaw).unbind(dim=1)
        else:
            yaw, pitch = self._angles("origin", draws, "")
            roll = torch.zeros_like(yaw)
        pitch = pitch.clamp(PITCH_MARGIN, math.pi - PITCH_MARGIN)
        la_pitch = la_pitch.clamp(PITCH_MARGIN, math.pi - PITCH_MARGIN)
        la_radius = _scalar(config.look_at.radius, draws.get("la_radius"), like=yaw)
        return Camera(
            angles=torch.stack([yaw, pitch, roll], dim=1),
            fov=_scalar(config.fov, draws.get("fov"), like=yaw),
            radius=_scalar(config.radius, draws.get("radius"), like=yaw),
            look_at=torch.stack([la_yaw, la_pitch, la_radius], dim=1),
        )

    def _angles(self, group: str, draws: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
        config = getattr(self.config, group)
        dist = config.dist
        if dist == "hybrid":
            dist = "hybrid_uniform" if draws[f"{group}_coin"] else "normal"
        yaw = _angle(dist, config.yaw, draws[f"{prefix}yaw"])
        pitch = _angle(dist, config.pitch, draws[f"{prefix}pitch"])
        if dist == "spherical_uniform":
            share = (pitch / math.pi).clamp(1e-5, 1 - 1e-5)
            pitch = torch.arccos(1 - 2 * share)
        return yaw, pitch

    @property
    def has_mean(self) -> bool:
        """Whether `mean` needs nothing of the data set."""
        own = self.config.origin.dist not in ("custom", "hybrid") and self.config.look_at.dist != "hybrid"
        return own or self.config.data_mean is not None

    def mean(self, data_angles: tuple[float, float, float] | None = None) -> Camera:
        """One camera made of the analytic means of all numbers.

        Args:
            data_angles: mean yaw, pitch, roll of the data, needed by origin dist `custom` without `camera.data_mean`.

        Raises:
            ConfigError: neither the prior nor `camera.data_mean` defines it (hybrid; `custom` without data_angles).
        """
        config = self.config
        if config.data_mean is not None and data_angles is None:
            return Camera.from_vector(torch.tensor([[*config.data_mean, 0.0, 0.0, 0.0]], device="cpu"))
        if config.origin.dist == "custom":
            if data_angles is None:
                raise ConfigError("camera.origin.dist=custom has the mean of the data set's camera angles; none given.")
            origin = list(data_angles)
        else:
            origin = [_angle_mean("origin", config.origin.dist, r) for r in (config.origin.yaw, config.origin.pitch)]
            origin.append(0.0)
        look_at = [_angle_mean("look_at", config.look_at.dist, r) for r in (config.look_at.yaw, config.look_at.pitch)]
        row = [
            *origin,
            scalar_mean(config.fov),
            scalar_mean(config.radius),
            *look_at,
            scalar_mean(config.look_at.radius),
        ]
        return Camera.from_vector(torch.tensor([row], device="cpu"))  # even while networks are built on "meta"

    def bounds(self) -> CameraBounds:
        """The interval of each number.

        Raises:
            ConfigError: a number has no min and max, so a camera adaptor cannot work with this prior.
        """
        config = self.config
        ranges = {
            "yaw": ("origin.yaw", config.origin.yaw),
            "pitch": ("origin.pitch", config.origin.pitch),
            "fov": ("fov", config.fov),
            "la_yaw": ("look_at.yaw", config.look_at.yaw),
            "la_pitch": ("look_at.pitch", config.look_at.pitch),
            "la_radius": ("look_at.radius", config.look_at.radius),
        }
        bounds = {name: (r.min, r.max) for name, (_, r) in ranges.items() if r.min is not None and r.max is not None}
        missing = [f"camera.{path}" for name, (path, _) in ranges.items() if name not in bounds]
        if missing:
            raise ConfigError(f"Learning the cameras needs bounds (min and max) for {', '.join(missing)}.")
        radius = config.radius
        return CameraBounds(
            **bounds, radius=None if radius.min is None or radius.max is None else (radius.min, radius.max)
        )


def scalar_mean(config: ScalarPriorConfig) -> float:
    """Mean of a number: its mean parameter, or the middle of a uniform interval."""
    return _middle(config) if config.dist == "uniform" else _set(config.mean)


def scalar_max(config: ScalarPriorConfig) -> float:
    """Largest value a number can take."""
    if config.dist != "normal":
        return _set(config.max)
    return _set(config.mean) if (config.std or 0.0) <= 1e-8 else math.inf


def _set(value: float | None) -> float:
    """A number that `threedgp.config.rules` asks of its distribution."""
    assert value is not None
    return value


def _middle(config: RangeConfig) -> float:
    return (_set(config.min) + _set(config.max)) / 2


def _angle_mean(group: str, dist: str, config: RangeConfig) -> float:
    if dist in ("hybrid", "custom"):
        raise ConfigError(f"camera.{group}.dist={dist} has no mean.")
    return _set(config.mean) if dist == "normal" else _middle(config)


def _angle(dist: str, config: RangeConfig, draw: Tensor) -> Tensor:
    if dist == "normal":
        return _set(config.mean) + _set(config.std) * draw
    if dist == "hybrid_uniform":
        return _set(config.mean) + 2 * _set(config.std) * (2 * draw - 1)
    low, high = _set(config.min), _set(config.max)
    if dist == "truncnorm":
        return truncated_normal(draw, _middle(config), _set(config.std), low, high)
    return low + draw * (high - low)


def _scalar(config: ScalarPriorConfig, draw: Tensor | None, like: Tensor) -> Tensor:
    if config.dist == "normal" or draw is None:  # a constant
        return torch.full_like(like, _set(config.mean))
    low, high = _set(config.min), _set(config.max)
    if config.dist == "truncnorm":
        return truncated_normal(draw, _set(config.mean), _set(config.std), low, high)
    return low + draw * (high - low)


def truncated_normal(u: Tensor, center: float, std: float, low: float, high: float) -> Tensor:
    """Quantiles of N(center, std²) restricted to [low, high], by inverting its distribution function.

    Args:
        u: [...] in [0, 1].

    Returns:
        [...] in the precision of u; computed in float64.
    """
    a, b = (low - center) / std, (high - center) / std
    if a + b > 0:  # the lower tail is where Φ keeps its precision
        return (2 * center - truncated_normal(1 - u.double(), center, std, 2 * center - high, 2 * center - low)).to(u)
    share_a, share_b = math.erfc(-a / math.sqrt(2)) / 2, math.erfc(-b / math.sqrt(2)) / 2  # Φ(a), Φ(b)
    z = torch.special.ndtri(share_a + (share_b - share_a) * u.double())
    return (center + std * z.clamp(a, b)).to(u)
