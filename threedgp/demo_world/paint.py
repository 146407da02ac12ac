"""Colours and solid textures of the demo objects.

A paint is a function of surface points and normals in the part's own frame, both [3, N], that gives linear RGB
[3, N]; being functions of 3D points, textures stay where they are when the camera moves.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from threedgp.demo_world.shapes import Array

Paint = Callable[[Array, Array], Array]
Random = np.random.Generator


def to_linear(srgb: Array) -> Array:
    """sRGB in [0, 1] to linear light."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(linear: Array) -> Array:
    """Linear light in [0, 1] to sRGB."""
    linear = np.asarray(linear, np.float32)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def pick(rng: Random, *choices: str) -> Array:
    """One of the "#rrggbb" colours, a little shifted in hue, saturation and value; linear RGB [3]."""
    text = choices[int(rng.integers(len(choices)))]
    h, s, v = colorsys.rgb_to_hsv(*(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    h, s, v = h + rng.normal(0, 0.012), s * rng.uniform(0.88, 1.12), v * rng.uniform(0.92, 1.06)
    return to_linear(np.array(colorsys.hsv_to_rgb(h % 1.0, min(s, 1.0), min(v, 1.0))))


def shade(colour: Array, factor: float) -> Array:
    """The colour made darker or lighter."""
    return np.clip(colour * np.float32(factor), 0, 1)


def plain(colour: Array) -> Paint:
    return lambda p, n: np.broadcast_to(colour[:, None], p.shape)


def bands(cuts: list[float], colours: list[Array]) -> Paint:
    """Rings of colour along the part's y axis: colours[i] lies between cuts[i-1] and cuts[i]."""
    return lambda p, n: np.stack(colours)[np.searchsorted(np.asarray(cuts, np.float32), p[1])].T


def ring_bands(cuts: list[float], colours: list[Array]) -> Paint:
    """Rings of colour around the part's y axis, from the inside out."""
    return lambda p, n: np.stack(colours)[np.searchsorted(np.asarray(cuts, np.float32), np.hypot(p[0], p[2]))].T


def by_height(top: float, low: Array, high: Array) -> Paint:
    """A soft blend from `low` at y = 0 to `high` at y = `top`."""

    def paint(p: Array, n: Array) -> Array:
        share = np.clip(p[1] / np.float32(top), 0, 1)
        return low[:, None] * (1 - share) + high[:, None] * share

    return paint


def waves(p: Array, directions: Array, phases: Array) -> Array:
    """Smooth noise in about [-1, 1]: the mean of sines along the rows of `directions` [K, 3]."""
    total = np.zeros(p.shape[1:], np.float32)
    for (x, y, z), phase in zip(directions.tolist(), phases.tolist(), strict=True):
        total += np.sin(x * p[0] + y * p[1] + z * p[2] + phase)
    return total * np.float32(1.4 / len(phases))


def random_waves(rng: Random, count: int, frequency: float) -> tuple[Array, Array]:
    """Directions [count, 3] of about that many radians per unit, and phases [count], for `waves`."""
    directions = rng.normal(size=(count, 3))
    directions *= frequency * rng.uniform(0.6, 1.4, (count, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
    return directions, rng.uniform(0, 2 * np.pi, count)


def mottled(colour: Array, rng: Random, amount: float, needles: int = 0) -> Paint:
    """Cloudy brightness; `needles` > 0 adds that many soft folds around the y axis (boughs)."""
    noise = random_waves(rng, 5, 11.0)
    phase = rng.uniform(0, 2 * np.pi)

    def paint(p: Array, n: Array) -> Array:
        level = 1 + amount * waves(p, *noise)
        if needles:
            level = level * (1 + 0.18 * np.sin(needles * np.arctan2(p[0], p[2]) + 9 * p[1] + phase))
        return colour[:, None] * level

    return paint


def grain(colour: Array, rng: Random) -> Paint:
    """Wood: fine rings about a long, slightly wandering axis."""
    wander = random_waves(rng, 3, 3.0)
    axis = int(rng.integers(0, 2)) * 2
    shift = rng.uniform(0, 6.28)

    def paint(p: Array, n: Array) -> Array:
        ring = np.sin(34 * p[axis] + 5 * p[1] + 1.6 * waves(p, *wander) + shift)
        return colour[:, None] * (1 + 0.13 * ring)

    return paint


def dots(ground: Array, spots: Array, base: float, wide: float, dome: float, rng: Random) -> Paint:
    """A cap with round spots spread by the golden angle; `base`, `wide`, `dome` are the cap's rim height and radii."""
    count = int(rng.integers(11, 17))
    order = np.arange(count) + 0.5
    height = 1 - 0.93 * order / count
    angle = order * 2.399963 + rng.uniform(0, 6.28)
    flat = np.sqrt(1 - height**2)
    centres = np.stack([flat * np.cos(angle), height, flat * np.sin(angle)], 1).astype(np.float32)
    nearness = np.cos(rng.uniform(0.13, 0.24, count)).astype(np.float32)
    noise = random_waves(rng, 4, 7.0)

    def paint(p: Array, n: Array) -> Array:
        q = np.stack([p[0] / wide, (p[1] - base) / dome, p[2] / wide])
        q = q / np.sqrt((q * q).sum(0) + 1e-9)
        inside = np.zeros(p.shape[1], bool)
        for (x, y, z), limit in zip(centres.tolist(), nearness.tolist(), strict=True):
            inside |= x * q[0] + y * q[1] + z * q[2] > limit
        return np.where(inside, spots[:, None], ground[:, None] * (1 + 0.1 * waves(p, *noise)))

    return paint


def rows(colour: Array, rng: Random) -> Paint:
    """Roof tiles on a slab whose x runs down the slope and z along the ridge."""
    per_unit = rng.uniform(8.5, 10.5)
    noise = random_waves(rng, 4, 8.0)

    def paint(p: Array, n: Array) -> Array:
        down = p[0] * per_unit
        step = down - np.floor(down)
        along = p[2] * per_unit + 0.5 * np.floor(down)
        gap = (np.abs(along - np.floor(along) - 0.5) > 0.43) | (step < 0.14)
        tone = (1 + 0.12 * waves(p, *noise)) * np.where(gap, 0.68, 0.92 + 0.2 * step)
        return colour[:, None] * tone

    return paint


def facade(
    wall: Array, trim: Array, door: Array, wide: float, deep: float, tall: float, columns: int, rng: Random
) -> Paint:
    """Walls of a house: windows with frames and crossbars on every side, a door in the front (+z)."""
    glass = pick(rng, "#31485c", "#f3cf7a", "#3b566b")
    foot = shade(wall, 0.55)
    planks = rng.random() < 0.4
    sill, half_w, half_h = tall * 0.56, 0.095, 0.125
    noise = random_waves(rng, 4, 6.0)
    front = [(-wide * 0.58, sill), (wide * 0.58, sill), (0.0, tall + 0.12)]
    back = [(x * wide, sill) for x in np.linspace(-0.55, 0.55, columns)]
    side = [(x * deep, sill) for x in ((-0.45, 0.45) if columns > 2 else (0.0,))]

    def paint(p: Array, n: Array) -> Array:
        level = 1 + 0.04 * waves(p, *noise)
        if planks:
            level = level * np.where(np.mod(p[1] * 11, 1.0) < 0.14, 0.8, 1.0)
        colour = np.where(p[1] < 0.07, foot[:, None], wall[:, None] * level)
        facing_z = np.abs(n[2]) > np.abs(n[0])
        for faces, windows, u in (
            (facing_z & (n[2] > 0), front, p[0]),
            (facing_z & (n[2] <= 0), back, p[0]),
            (~facing_z, side, p[2]),
        ):
            for x, y in windows:
                du, dv = np.abs(u - x), np.abs(p[1] - y)
                frame = faces & (du < half_w + 0.03) & (dv < half_h + 0.03)
                pane = faces & (du < half_w) & (dv < half_h) & (du > 0.012) & (dv > 0.012)
                colour = np.where(frame, trim[:, None], colour)
                colour = np.where(pane, glass[:, None], colour)
        entry = facing_z & (n[2] > 0)
        colour = np.where(entry & (np.abs(p[0]) < 0.15) & (p[1] < 0.45), trim[:, None], colour)
        colour = np.where(entry & (np.abs(p[0]) < 0.118) & (p[1] < 0.415), door[:, None], colour)
        knob = entry & ((p[0] - 0.08) ** 2 + (p[1] - 0.2) ** 2 < 0.017**2)
        return np.where(knob, trim[:, None], colour)

    return paint


def glossy_car(
    colour: Array, wheels: list[tuple[float, float]], arch: float, waist: float, top: float
) -> tuple[Paint, Paint]:
    """Body and cabin of a car: dark wheel arches and sills; windows between pillars, a painted roof."""
    dark = to_linear(np.array([0.1, 0.1, 0.11]))
    glass = to_linear(np.array([0.2, 0.27, 0.33]))

    def body(p: Array, n: Array) -> Array:
        result = np.broadcast_to(colour[:, None], p.shape)
        side = np.abs(n[2]) > 0.6
        for x, y in wheels:
            result = np.where(side & ((p[0] - x) ** 2 + (p[1] - y) ** 2 < arch**2), dark[:, None], result)
        crease = side & (np.abs(p[0] - 0.02) < 0.009) & (p[1] > 0.2)
        result = np.where(crease, colour[:, None] * 0.45, result)
        return np.where(p[1] < 0.155, dark[:, None], result)

    def cabin(p: Array, n: Array) -> Array:
        height = (p[1] - waist) / (top - waist)
        pane = (height > 0.1) & (height < 0.84) & (n[1] < 0.75)
        pillar = (np.abs(n[2]) > 0.6) & (np.abs(p[0] - 0.02) < 0.035)
        corner = (np.abs(n[2]) > 0.45) & (np.abs(n[0]) > 0.3)
        return np.where(pane & ~pillar & ~corner, glass[:, None], colour[:, None])

    return body, cabin
