"""Solid shapes that rays can hit exactly: the building blocks of the demo objects.

Vectors are arrays whose first axis holds x, y, z. Every shape lives in its own frame and answers three questions:
`bounds()` gives the corners of its box, `hit(p, d, t_min)` the distance parameter t of the first point p + t·d with
t > t_min where a ray goes in (inf where it misses), and `normal(p)` the outward unit normal at points on its surface.
Each is exact (plane and quadric roots), so that depth maps are ground truth and not the end of an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

Array = np.ndarray
Bounds = tuple[tuple[float, float, float], tuple[float, float, float]]

CREASE = np.cos(np.radians(50.0))  # profile corners sharper than this keep a hard edge
TINY = np.float32(1e-12)


class Shape(Protocol):
    """What the tracer asks of a solid; p and d are [3, N] float32, t and the result of `hit` are [N]."""

    def bounds(self) -> Bounds: ...

    def hit(self, p: Array, d: Array, t_min: float) -> Array: ...

    def normal(self, p: Array) -> Array: ...


def dot(a: Array, b: Array) -> Array:
    """Inner product over the first axis, written out: no BLAS, so the same bits for any number of threads."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(v: Array) -> Array:
    """v / |v| over the first axis."""
    return v / np.sqrt(dot(v, v) + TINY)


def apply(matrix: Array, v: Array) -> Array:
    """matrix [3, 3] times v [3, N], written out for the same reason as `dot`."""
    rows = [float(m[0]) * v[0] + float(m[1]) * v[1] + float(m[2]) * v[2] for m in matrix]
    return np.stack(rows)


def _column(values: object) -> Array:
    return np.asarray(values, np.float32)[:, None]


@dataclass(frozen=True)
class Ellipsoid:
    """Half-axes along x, y, z."""

    radii: tuple[float, float, float]

    def bounds(self) -> Bounds:
        x, y, z = self.radii
        return (-x, -y, -z), (x, y, z)

    def hit(self, p: Array, d: Array, t_min: float) -> Array:
        scale = 1 / _column(self.radii)
        q, e = p * scale, d * scale
        a = dot(e, e)
        middle = -dot(q, e) / a  # where the ray comes closest to the centre of the unit ball
        nearest = q + middle * e
        rest = 1 - dot(nearest, nearest)  # [N] squared half chord
        t = middle - np.sqrt(np.maximum(rest, 0) / a)
        return np.where((rest > 0) & (t > t_min), t, np.inf)

    def normal(self, p: Array) -> Array:
        return unit(p / _column(self.radii) ** 2)


@dataclass(frozen=True)
class Box:
    """Half-sizes along x, y, z; `bevel` is the width over which shading rounds the edges."""

    half: tuple[float, float, float]
    bevel: float = 0.02

    def bounds(self) -> Bounds:
        x, y, z = self.half
        return (-x, -y, -z), (x, y, z)

    def hit(self, p: Array, d: Array, t_min: float) -> Array:
        inverse = 1 / np.where(np.abs(d) < TINY, TINY, d)
        reach = np.abs(_column(self.half) * inverse)
        middle = -p * inverse
        enter = (middle - reach).max(0)
        leave = (middle + reach).min(0)
        return np.where((enter < leave) & (enter > t_min), enter, np.inf)

    def normal(self, p: Array) -> Array:
        gap = np.maximum(_column(self.half) - np.abs(p), 0)
        return unit(np.sign(p) * np.maximum(1 - gap / self.bevel, 1e-4) ** 2)


@dataclass(frozen=True)
class Prism:
    """A convex polygon of (x, y) corners, counter-clockwise, given thickness along z.

    `lean` > 0 lets the two side faces close in with height (dz per unit of y): a car's cabin, a tapered fin.
    """

    corners: tuple[tuple[float, float], ...]
    half_depth: float
    lean: float = 0.0
    bevel: float = 0.02

    @cached_property
    def _planes(self) -> tuple[Array, Array]:
        """Outward unit normals [K, 3] and offsets [K] of the faces n·p = w."""
        xy = np.asarray(self.corners, np.float64)
        edge = np.roll(xy, -1, 0) - xy
        flat = np.stack([edge[:, 1], -edge[:, 0], np.zeros(len(xy))], 1)
        base = xy[:, 1].min()
        sides = np.array([[0, self.lean, 1], [0, self.lean, -1]])
        normals = np.concatenate([flat, sides])
        points = np.concatenate(
            [np.c_[xy, np.zeros(len(xy))], [[0, base, self.half_depth], [0, base, -self.half_depth]]]
        )
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return normals.astype(np.float32), (normals * points).sum(1).astype(np.float32)

    def bounds(self) -> Bounds:
        xy = np.asarray(self.corners)
        (x0, y0), (x1, y1) = xy.min(0).tolist(), xy.max(0).tolist()
        depth = self.half_depth + max(0.0, -self.lean) * (y1 - y0)
        return (x0, y0, -depth), (x1, y1, depth)

    def hit(self, p: Array, d: Array, t_min: float) -> Array:
        enter = np.full(p.shape[1], -np.inf, np.float32)
        leave = np.full(p.shape[1], np.inf, np.float32)
        for (nx, ny, nz), offset in zip(*(part.tolist() for part in self._planes), strict=True):
            speed = nx * d[0] + ny * d[1] + nz * d[2]
            t = (offset - (nx * p[0] + ny * p[1] + nz * p[2])) / np.where(np.abs(speed) < TINY, TINY, speed)
            inward = speed < 0
            np.maximum(enter, t, out=enter, where=inward)
            np.minimum(leave, t, out=leave, where=~inward)
        return np.where((enter < leave) & (enter > t_min), enter, np.inf)

    def normal(self, p: Array) -> Array:
        total = np.zeros_like(p)
        for normal, offset in zip(*self._planes, strict=True):
            gap = np.maximum(offset - (normal[0] * p[0] + normal[1] * p[1] + normal[2] * p[2]), 0)
            total += normal[:, None] * np.maximum(1 - gap / self.bevel, 1e-4) ** 2
        return unit(total)


@dataclass(frozen=True)
class Lathe:
    """A profile of (radius, height) points turned about the y axis.

    The profile must run so that the outside lies on its right: up the outer wall, down an inner one. It starts and
    ends on the axis (radius 0), so the solid is closed. A hollow cup is one profile: out along the foot, up the
    outside, in over the rim, down the inside.
    """

    profile: tuple[tuple[float, float], ...]

    def bounds(self) -> Bounds:
        points = np.asarray(self.profile)
        r = float(points[:, 0].max())
        return (-r, float(points[:, 1].min()), -r), (r, float(points[:, 1].max()), r)

    def hit(self, p: Array, d: Array, t_min: float) -> Array:
        a = d[0] * d[0] + d[2] * d[2]
        b = p[0] * d[0] + p[2] * d[2]
        c = p[0] * p[0] + p[2] * p[2]
        best = np.full(p.shape[1], np.inf, np.float32)
        for (r0, y0), (r1, y1) in zip(self.profile[:-1], self.profile[1:], strict=True):
            if y0 == y1:  # a flat ring
                t = (y0 - p[1]) / np.where(np.abs(d[1]) < TINY, TINY, d[1])
                square = c + t * (2 * b + t * a)
                valid = (square >= min(r0, r1) ** 2) & (square <= max(r0, r1) ** 2)
            else:  # a piece of the cone x² + z² = (r0 + slope·(y − y0))²
                slope = (r1 - r0) / (y1 - y0)
                radius, change = r0 + slope * (p[1] - y0), slope * d[1]
                qa, qb = a - change * change, b - change * radius
                rest = qb * qb - qa * (c - radius * radius)
                root = np.sqrt(np.maximum(rest, 0))
                # Only the root where the ray crosses from the outside: the solid is closed, so it is the visible one.
                t = (-qb - root if y1 > y0 else -qb + root) / np.where(np.abs(qa) < TINY, TINY, qa)
                y = p[1] + t * d[1]
                valid = (rest > 0) & (y >= min(y0, y1)) & (y <= max(y0, y1))
            np.minimum(best, t, out=best, where=valid & (t > t_min))
        return best

    def normal(self, p: Array) -> Array:
        points = np.asarray(self.profile, np.float32)
        start, edge = points[:-1], np.diff(points, axis=0)  # [K, 2]
        first, last = _profile_normals(edge)
        r, y = np.sqrt(p[0] * p[0] + p[2] * p[2]), p[1]
        dr, dy = r - start[:, :1], y - start[:, 1:]  # [K, N]
        length = (edge * edge).sum(1, keepdims=True)
        along = np.clip((dr * edge[:, :1] + dy * edge[:, 1:]) / length, 0, 1)
        distance = (dr - along * edge[:, :1]) ** 2 + (dy - along * edge[:, 1:]) ** 2
        nearest = distance.argmin(0)
        share = np.take_along_axis(along, nearest[None], 0)[0]
        nr, ny = (first[nearest] * (1 - share)[:, None] + last[nearest] * share[:, None]).T
        outward = nr / np.maximum(r, 1e-6)
        return unit(np.stack([p[0] * outward, ny, p[2] * outward]))


def _profile_normals(edge: Array) -> tuple[Array, Array]:
    """Normals (radial, height) at the start and end of each profile piece [K, 2]; soft corners share one normal."""
    flat = np.stack([edge[:, 1], -edge[:, 0]], 1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    first, last = flat.copy(), flat.copy()
    for i in range(len(flat) - 1):
        if flat[i] @ flat[i + 1] > CREASE:
            shared = flat[i] + flat[i + 1]
            first[i + 1] = last[i] = shared / np.linalg.norm(shared)
    return first, last


@dataclass(frozen=True)
class Tube:
    """A rope of constant radius through (x, y, z) points, with round ends and joints."""

    points: tuple[tuple[float, float, float], ...]
    radius: float

    def bounds(self) -> Bounds:
        points = np.asarray(self.points)
        low, high = points.min(0) - self.radius, points.max(0) + self.radius
        return tuple(low.tolist()), tuple(high.tolist())

    def hit(self, p: Array, d: Array, t_min: float) -> Array:
        best = np.full(p.shape[1], np.inf, np.float32)
        square, a = self.radius**2, dot(d, d)
        for point in self.points:
            q = p - _column(point)
            middle = -dot(q, d) / a
            nearest = q + middle * d
            rest = square - dot(nearest, nearest)
            t = middle - np.sqrt(np.maximum(rest, 0) / a)
            np.minimum(best, t, out=best, where=(rest > 0) & (t > t_min))
        for start, end in zip(self.points[:-1], self.points[1:], strict=True):
            axis = np.subtract(end, start)
            length = float(np.linalg.norm(axis))
            axis = _column(axis / length)
            q = p - _column(start)
            qx, dx = dot(q, axis), dot(d, axis)
            qa = np.maximum(a - dx * dx, TINY)
            qb = dot(q, d) - qx * dx
            rest = qb * qb - qa * (dot(q, q) - qx * qx - square)
            t = (-qb - np.sqrt(np.maximum(rest, 0))) / qa
            along = qx + t * dx
            np.minimum(best, t, out=best, where=(rest > 0) & (along >= 0) & (along <= length) & (t > t_min))
        return best

    def normal(self, p: Array) -> Array:
        best = np.full(p.shape[1], np.inf, np.float32)
        result = np.zeros_like(p)
        for start, end in zip(self.points[:-1], self.points[1:], strict=True):
            axis = _column(np.subtract(end, start))
            q = p - _column(start)
            offset = q - np.clip(dot(q, axis) / dot(axis, axis), 0, 1) * axis
            distance = dot(offset, offset)
            closer = distance < best
            best = np.where(closer, distance, best)
            result = np.where(closer, offset, result)
        return unit(result)


# ---- profiles -------------------------------------------------------------------------------------------------


def smooth_profile(points: list[tuple[float, float]], pieces: int = 4) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through (radius, height) points, `pieces` straight bits for each gap; radius stays >= 0."""
    xy = np.asarray(points, np.float64)
    padded = np.concatenate([[2 * xy[0] - xy[1]], xy, [2 * xy[-1] - xy[-2]]])
    out = [tuple(xy[0])]
    for i in range(len(xy) - 1):
        p0, p1, p2, p3 = padded[i : i + 4]
        for s in np.linspace(0, 1, pieces + 1)[1:]:
            curve = 2 * p1 + (p2 - p0) * s + (2 * p0 - 5 * p1 + 4 * p2 - p3) * s**2 + (3 * p1 - p0 - 3 * p2 + p3) * s**3
            out.append((max(0.0, float(curve[0]) / 2), float(curve[1]) / 2))
    out[0], out[-1] = tuple(map(float, xy[0])), tuple(map(float, xy[-1]))
    return out


def arc(centre: tuple[float, float], radius: float, start: float, end: float, pieces: int) -> list[tuple[float, float]]:
    """Points on a circle from angle `start` to `end` in degrees (0 = +first axis, 90 = +second)."""
    angles = np.radians(np.linspace(start, end, pieces + 1))
    return [(centre[0] + radius * float(np.cos(a)), centre[1] + radius * float(np.sin(a))) for a in angles]


def tapered(bottom: float, top: float, height: float, rounding: float = 0.0) -> Lathe:
    """An upright frustum from y = 0 to y = `height`, its rims rounded by `rounding`."""
    if rounding == 0:
        return Lathe(((0.0, 0.0), (bottom, 0.0), (top, height), (0.0, height)))
    low = arc((bottom - rounding, rounding), rounding, -90, 0, 3)
    high = arc((top - rounding, height - rounding), rounding, 0, 90, 3)
    return Lathe(((0.0, 0.0), *low, *high, (0.0, height)))
