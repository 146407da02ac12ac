"""Two-pass volume rendering of any field: find the matter, look closer there, composite everything.

Source: hierarchical sampling of NeRF (arXiv 2003.08934, Sec. 5.2) as used by EG3D (arXiv 2112.07945, Sec. 4.2), in
which the coarse samples also take part in the final picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from threedgp.ops import native
from threedgp.ops.march import MarchOptions, RaySamples, importance, march
from threedgp.rendering import marching
from threedgp.rendering.rays import box_bounds
from threedgp.rendering.sampling import Marcher, importance_samples, stratified_samples

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""points [B, M, 3] in world units -> (rgb [B, M, C], raw density [B, M, 1])."""

Jitter = Literal["ray", "stratified", "image", "none"]
"""Where samples lie in their strata: at random, the quantiles of the second pass anywhere (as published) or one in each
of equal shares; shifted alike on all rays of an image, so that few samples do not show as grain; or at the centres.
"""


@dataclass(frozen=True)
class RenderOptions:
    """How rays are turned into colours.

    Attributes:
        near, far: ray interval, world units from the camera centre along the ray.
        num_steps: coarse samples per ray (at least 4).
        num_fine_steps: samples of the second pass; None: as many as num_steps, 0: no second pass.
        marcher: `classical`, or `mip` (EG3D's midpoint rule; the field's colours must then lie in [0, 1]).
        clamp_mode: non-negativity of the density for the classical marcher.
        density_bias: added to the raw density by the mip marcher.
        use_inf_depth: whatever passes the last sample is absorbed there.
        full_box: half side of the scene cube; rays then cover their part of the cube instead of [near, far].
        last_back: the last sample takes the missing weight (classical only).
        white_back: the missing weight shows white (+1).
        cut_quantile: remove densities below this quantile of the whole call.
        density_noise_std: noise on raw densities (training only).
        jitter: where inside its stratum a ray is sampled, see `Jitter`.
        chunk_rays: render at most this many rays of every image at once (test time only; None: all). It changes the
            memory needed, never the result.
    """

    near: float
    far: float
    num_steps: int = 32
    num_fine_steps: int | None = None
    marcher: Marcher = "classical"
    clamp_mode: Literal["softplus", "relu"] = "softplus"
    density_bias: float = 0.0
    use_inf_depth: bool = True
    full_box: float | None = None
    last_back: bool = False
    white_back: bool = False
    cut_quantile: float = 0.0
    density_noise_std: float = 0.0
    jitter: Jitter = "ray"
    chunk_rays: int | None = None

    def __post_init__(self):
        if self.num_steps < 4:
            raise ValueError(f"a ray needs at least 4 coarse samples, not {self.num_steps}")
        if self.marcher == "mip" and (self.last_back or self.clamp_mode != "softplus"):
            raise ValueError("the mip marcher has neither last_back nor another clamp_mode than softplus")

    @property
    def fine_steps(self) -> int:
        return self.num_steps if self.num_fine_steps is None else self.num_fine_steps


class RenderDraws(NamedTuple):
    """The random numbers of one call.

    Attributes:
        jitter: [B, R, N] in [0, 1), position inside each stratum.
        u: [B, R, N_fine] in [0, 1], quantiles of the second pass.
        noise_coarse, noise_fine: [B, R, N], [B, R, N_fine] standard normal, multiplied by density_noise_std.
    """

    jitter: Tensor
    u: Tensor
    noise_coarse: Tensor | None = None
    noise_fine: Tensor | None = None


class RayColors(NamedTuple):
    """color [B, R, C]; depth [B, R] in world units along the ray; weight_sum [B, R], with what last_back adds;
    transmittance [B, R] behind the last sample.
    """

    color: Tensor
    depth: Tensor
    weight_sum: Tensor
    transmittance: Tensor


def make_draws(
    batch: int,
    rays: int,
    options: RenderOptions,
    *,
    generator: torch.Generator | None = None,
    device=None,
    dtype=None,
) -> RenderDraws:
    """Everything random about a call, for all rays at once, so that rendering in chunks changes nothing.

    `options.jitter` decides how random: `ray` draws every jitter and u; `stratified` every jitter and v, with
    u_k = (k + v)/N_fine; `image` one jitter and one v an image; `none` takes 0.5 for both. Density noise stays random.
    The generator may live on another device than the rays.
    """
    coarse, fine = (batch, rays, options.num_steps), (batch, rays, options.fine_steps)
    place = {"device": device, "dtype": dtype}

    def draw(function: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        origin = device if generator is None else generator.device
        return function(shape, generator=generator, device=origin, dtype=dtype).to(device)

    if options.jitter in ("ray", "stratified"):
        jitter, u = draw(torch.rand, coarse), draw(torch.rand, fine)
    else:
        alike = (2, batch, 1, 1)
        jitter, u = torch.full(alike, 0.5, **place) if options.jitter == "none" else draw(torch.rand, alike)
    if options.jitter != "ray":
        u = (torch.arange(fine[2], **place) + u) / max(fine[2], 1)
    jitter, u = jitter.expand(coarse), u.expand(fine)
    if options.density_noise_std == 0:
        return RenderDraws(jitter, u)
    return RenderDraws(jitter, u, draw(torch.randn, coarse), draw(torch.randn, fine))


def render_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    options: RenderOptions,
    *,
    draws: RenderDraws | None = None,
    generator: torch.Generator | None = None,
) -> RayColors:
    """Render B bundles of R rays.

    Args:
        field: colour and raw density at world points.
        origins, directions: [B, R, 3]; directions of unit length.
        options: see RenderOptions.
        draws: the random numbers to use; None draws them from `generator` (None: torch's own).

    Returns:
        RayColors; differentiable in the field's outputs and, through the sample points, in origins and directions.

    Example:
        >>> def fog(points):
        ...     return torch.ones_like(points), torch.zeros_like(points[..., :1])
        >>> origins, directions = torch.zeros(1, 5, 3), torch.tensor([0.0, 0.0, -1.0]).expand(1, 5, 3)
        >>> render_rays(fog, origins, directions, RenderOptions(near=0.75, far=1.25)).color.shape
        torch.Size([1, 5, 3])
    """
    batch, rays = origins.shape[:2]
    if draws is None:
        draws = make_draws(batch, rays, options, generator=generator, device=origins.device, dtype=origins.dtype)
    if options.full_box is None:
        start = origins.new_full((1, 1), options.near).expand(batch, rays)
        end = origins.new_full((1, 1), options.far).expand(batch, rays)
    else:
        start, end = box_bounds(origins, directions, options.full_box, options.near, options.far)
    bundle = _Rays(origins, directions, start, end, draws)
    chunk = options.chunk_rays or rays
    if options.cut_quantile > 0 or chunk >= rays:
        # A quantile is taken over all rays of the call, so only the field may see them in pieces.
        return _render_bundle(_in_pieces(field, chunk * options.num_steps), bundle, options)
    parts = [_render_bundle(field, bundle.part(first, first + chunk), options) for first in range(0, rays, chunk)]
    return RayColors(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


class _Rays(NamedTuple):
    """Rays with their interval [start, end] and their random numbers; all [B, R, ...]."""

    origins: Tensor
    directions: Tensor
    start: Tensor
    end: Tensor
    draws: RenderDraws

    def part(self, first: int, last: int) -> _Rays:
        rays = slice(first, last)
        jitter, u, *noise = self.draws
        draws = RenderDraws(jitter[:, rays], u[:, rays], *(None if draw is None else draw[:, rays] for draw in noise))
        start, end = self.start[:, rays], self.end[:, rays]
        return _Rays(self.origins[:, rays], self.directions[:, rays], start, end, draws)

    def distances(self, s: Tensor) -> Tensor:
        """Normalised positions [B, R, N] to world distances."""
        return s * self.end[..., None] + (1.0 - s) * self.start[..., None]


def _in_pieces(field: Field, points_at_once: int) -> Field:
    def query(points: Tensor) -> tuple[Tensor, Tensor]:
        if points.shape[1] <= points_at_once:
            return field(points)
        rgb, sigma = zip(*(field(piece) for piece in points.split(points_at_once, dim=1)), strict=True)
        return torch.cat(rgb, dim=1), torch.cat(sigma, dim=1)

    return query


def _render_bundle(field: Field, rays: _Rays, options: RenderOptions) -> RayColors:
    draws = rays.draws
    s_coarse = stratified_samples(draws.jitter, options.marcher)  # [B, R, N]
    t = rays.distances(s_coarse)
    rgb, sigma = _query(field, rays, t, draws.noise_coarse, options)  # [B, R, N, C], [B, R, N]
    coarse, fused = RaySamples(rgb, sigma, t), _can_fuse(options, rgb, sigma, t)
    if options.fine_steps == 0:
        fine = RaySamples(rgb[..., :0, :], sigma[..., :0], t[..., :0])
    else:
        # The first pass marches in normalised units, as the published models were trained.
        if fused:
            s_fine = importance(sigma, s_coarse, draws.u, _march_options(options))
        else:
            with torch.no_grad():
                weights = _weights(sigma, s_coarse, options)
                s_fine = importance_samples(s_coarse, weights, draws.u, options.marcher)
        t_fine = rays.distances(s_fine)
        rgb_fine, sigma_fine = _query(field, rays, t_fine, draws.noise_fine, options)
        fine = RaySamples(rgb_fine, sigma_fine, t_fine)
    plain = functools.partial(_composite, options=options)
    if fused:
        white = rgb.shape[-1] if options.white_back else 0
        return RayColors(*march(coarse, fine, _march_options(options), plain, white))
    return plain(coarse, fine)


def _composite(coarse: RaySamples, fine: RaySamples, *, options: RenderOptions) -> RayColors:
    """Merge both passes by distance and march through them; the plain form of `threedgp.ops.march.march`."""
    rgb, sigma, t = coarse
    if fine.t.shape[-1] > 0:
        t, order = torch.cat([coarse.t, fine.t], dim=-1).sort(dim=-1)
        sigma = torch.cat([coarse.sigma, fine.sigma], dim=-1).gather(-1, order)
        rgb = torch.cat([coarse.rgb, fine.rgb], dim=-2)
        rgb = rgb.gather(-2, order[..., None].expand_as(rgb))
    composite = _march(rgb, sigma, t, options)
    weight_sum = composite.weights.sum(dim=-1)
    return RayColors(composite.color, composite.depth, weight_sum, composite.transmittance[..., -1])


def _can_fuse(options: RenderOptions, rgb: Tensor, sigma: Tensor, t: Tensor) -> bool:
    """Native marching is for float32 rays on the CPU whose distances are constants; quantiles need all rays at once."""
    if options.cut_quantile > 0 or t.requires_grad or t.dtype != torch.float32:
        return False
    return native.library(rgb, sigma, t) is not None


def _march_options(options: RenderOptions) -> MarchOptions:
    return MarchOptions(
        mip=options.marcher == "mip",
        relu=options.clamp_mode == "relu",
        use_inf_depth=options.use_inf_depth,
        last_back=options.last_back,
        density_bias=options.density_bias,
    )


def _query(field: Field, rays: _Rays, t: Tensor, noise: Tensor | None, options: RenderOptions):
    batch, count, steps = t.shape
    points = torch.addcmul(rays.origins[:, :, None], t[..., None], rays.directions[:, :, None])  # [B, R, N, 3]
    rgb, sigma = field(points.reshape(batch, count * steps, 3))
    # Compositing keeps the rays' precision, whatever the field computes in.
    rgb, sigma = rgb.reshape(batch, count, steps, -1).to(t.dtype), sigma.reshape(batch, count, steps).to(t.dtype)
    if noise is not None and options.density_noise_std > 0:
        sigma = sigma + options.density_noise_std * noise
    return rgb, sigma


def _weights(sigma: Tensor, distances: Tensor, options: RenderOptions) -> Tensor:
    if options.marcher == "mip":
        return marching.mip_weights(
            sigma,
            distances,
            use_inf_depth=options.use_inf_depth,
            density_bias=options.density_bias,
            cut_quantile=options.cut_quantile,
        ).weights
    weights, weight_sum, _ = marching.classical_weights(
        sigma,
        distances,
        use_inf_depth=options.use_inf_depth,
        clamp_mode=options.clamp_mode,
        cut_quantile=options.cut_quantile,
    )
    if options.last_back:
        weights = marching.fill_last(weights, weight_sum)
    return weights


def _march(rgb: Tensor, sigma: Tensor, distances: Tensor, options: RenderOptions) -> marching.Composite:
    common: dict[str, Any] = {
        "use_inf_depth": options.use_inf_depth,
        "cut_quantile": options.cut_quantile,
        "white_back": rgb.shape[-1] if options.white_back else 0,
    }
    if options.marcher == "mip":
        return marching.mip_march(rgb, sigma, distances, density_bias=options.density_bias, **common)
    return marching.classical_march(
        rgb, sigma, distances, clamp_mode=options.clamp_mode, last_back=options.last_back, **common
    )
