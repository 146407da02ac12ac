"""The eight kinds of objects of the demo set: how each is put together and how much it varies.

A builder stands its object on y = 0 with the front towards +z, in any size; `build_object` centres it. Shapes,
proportions and colours are drawn within what keeps the class recognisable from every side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from threedgp.demo_world.paint import (
    Paint,
    bands,
    by_height,
    dots,
    facade,
    glossy_car,
    grain,
    mottled,
    pick,
    plain,
    ring_bands,
    rows,
    shade,
)
from threedgp.demo_world.shapes import Array, Box, Ellipsoid, Lathe, Prism, Shape, Tube, arc, smooth_profile, tapered

Random = np.random.Generator


@dataclass(frozen=True)
class Part:
    """One solid of an object: shape, place, axes (rows are the shape's x, y, z in the object's frame) and surface."""

    shape: Shape
    paint: Paint
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes: Array = field(default_factory=lambda: np.eye(3))
    gloss: float = 0.1

    @cached_property
    def corners(self) -> Array:
        """The eight corners of its box in the object's frame, [8, 3]."""
        low, high = self.shape.bounds()
        grid = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(8, 3)
        return grid @ self.axes + np.asarray(self.origin)

    @cached_property
    def ball(self) -> tuple[list[float], float]:
        """Centre and radius of the ball around its box."""
        middle = self.corners.mean(0)
        return middle.tolist(), float(np.linalg.norm(self.corners[0] - middle))


@dataclass(frozen=True)
class DemoObject:
    """Parts centred on the origin, standing on the plane y = `ground`; `reach` is half of its apparent size."""

    parts: tuple[Part, ...]
    ground: float
    reach: float


def turned(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Axes of a part rolled about z, then pitched about x, then turned about y (radians)."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_y @ about_x @ about_z).T


def upright_along(direction: tuple[float, float, float]) -> Array:
    """Axes of a part whose own y axis points along `direction`."""
    y = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    x = np.cross(y, [0, 0, 1] if abs(y[2]) < 0.9 else [1, 0, 0])
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)])


def build_object(name: str, rng: Random) -> DemoObject:
    """Draw one object of the class `name`, centred on the origin."""
    parts = BUILDERS[name](rng)
    corners = np.concatenate([part.corners for part in parts])
    low, high = corners.min(0), corners.max(0)
    middle = float(low[1] + high[1]) / 2
    sideways = float(np.abs(corners[:, [0, 2]]).max(0) @ np.array([0.78, 0.42]))
    moved = tuple(replace(part, origin=(part.origin[0], part.origin[1] - middle, part.origin[2])) for part in parts)
    return DemoObject(moved, ground=float(low[1]) - middle, reach=max(float(high[1]) - middle, sideways))


# ---- the eight classes ------------------------------------------------------------------------------------------


def car(rng: Random) -> list[Part]:
    """A small car, long along x, nose towards +x: saloon, hatchback or van."""
    colour = pick(rng, "#c8322b", "#e0a526", "#2f6fb5", "#2e9c8f", "#d9662b", "#8fb339", "#b8465f")
    kind = rng.integers(3)
    length, half_width = rng.uniform(0.8, 0.92), rng.uniform(0.34, 0.4)
    wheel, base = rng.uniform(0.165, 0.195), 0.1
    waist = rng.uniform(0.4, 0.46)
    hood = waist - rng.uniform(0.02, 0.08)
    axle = length * rng.uniform(0.56, 0.62)
    body = ((-length, base), (length, base), (length + 0.02, 0.24), (length - 0.06, hood), (0.3, waist),
            (-length + 0.08, waist), (-length - 0.02, 0.28))  # fmt: skip
    rear = (-length + 0.1, -length + 0.1, -length + 0.28)[kind] + rng.uniform(0, 0.06)
    top = waist + rng.uniform(0.24, 0.3) + (0.1 if kind == 1 else 0.0)
    front, slope = (0.28, 0.5, 0.26)[kind] + rng.uniform(-0.05, 0.05), rng.uniform(0.2, 0.28)
    back_slope = (0.12, 0.03, 0.2)[kind]
    cabin = ((rear, waist - 0.02), (front + 0.08, waist - 0.02), (front - slope + 0.06, top), (rear + back_slope, top))
    wheels = [(side * axle, wheel) for side in (-1, 1)]
    body_paint, cabin_paint = glossy_car(colour, wheels, wheel * 1.22, waist, top)
    parts = [
        Part(Prism(body, half_width, 0.06, bevel=0.06), body_paint, gloss=0.8),
        Part(Prism(cabin, half_width - 0.045, 0.22, bevel=0.045), cabin_paint, gloss=0.8),
    ]
    hub = pick(rng, "#d5d7da", "#b9bec5", "#efe9d8")
    width = 0.075
    tyre = Lathe(((0, -width), (wheel * 0.6, -width), (wheel * 0.92, -width), (wheel, -width * 0.55),
                  (wheel, width * 0.55), (wheel * 0.92, width), (wheel * 0.6, width), (0, width)))  # fmt: skip
    wheel_paint = ring_bands([wheel * 0.2, wheel * 0.62], [shade(hub, 0.6), hub, pick(rng, "#25262a")])
    for x, y in wheels:
        for side in (-1, 1):
            place = (x, y, side * (half_width - width * 0.72))
            parts.append(Part(tyre, wheel_paint, place, upright_along((0, 0, 1)), gloss=0.15))
    lamp, tail = plain(pick(rng, "#fff3c9")), plain(pick(rng, "#7d1512"))
    for side in (-1, 1):
        z = side * half_width * 0.66
        parts.append(Part(Ellipsoid((0.03, 0.05, 0.07)), lamp, (length - 0.01, 0.29, z), gloss=0.9))
        parts.append(Part(Ellipsoid((0.025, 0.045, 0.07)), tail, (-length + 0.0, 0.32, z), gloss=0.9))
    return parts


def chair(rng: Random) -> list[Part]:
    """A wooden chair: four legs, a seat, a back of slats or a panel, at times a cushion."""
    wood = pick(rng, "#b07a45", "#8a5a33", "#c99a62", "#6d4429", "#a8683a")
    paint = grain(wood, rng)
    half, height, thick = rng.uniform(0.36, 0.43), rng.uniform(0.66, 0.76), rng.uniform(0.035, 0.05)
    depth = half * rng.uniform(0.9, 1.02)
    parts = [Part(Box((half, thick, depth), 0.04), paint, (0, height, 0), gloss=0.3)]
    splay, leg = rng.uniform(0.0, 0.09), rng.uniform(0.042, 0.058)
    legs = tapered(leg * 0.75, leg, height, 0.01)
    for x in (-1, 1):
        for z in (-1, 1):
            top = np.array([x * (half - leg * 1.1), height, z * (depth - leg * 1.1)])
            foot = top + np.array([x * splay, -height, z * splay])
            parts.append(Part(legs, paint, tuple(foot.tolist()), upright_along(tuple(top - foot)), gloss=0.3))
    tilt, tall = rng.uniform(0.06, 0.16), rng.uniform(0.72, 0.9)
    lean = np.array([0, np.cos(tilt), -np.sin(tilt)])
    axes = turned(pitch=-tilt)
    foot = np.array([0, height, -depth + leg * 1.1])
    post = tapered(leg, leg * 0.85, tall, 0.015)
    for x in (-1, 1):
        start = foot + np.array([x * (half - leg * 1.2), 0, 0])
        parts.append(Part(post, paint, tuple(start.tolist()), upright_along(tuple(lean)), gloss=0.3))
    inner, board = half - leg * 1.2, 0.024
    style = rng.integers(3)
    if style == 0:  # ladder back
        for share in np.linspace(0.36, 0.9, int(rng.integers(2, 4))):
            place = tuple((foot + lean * tall * share).tolist())
            parts.append(Part(Box((inner, 0.075, board), 0.02), paint, place, axes, gloss=0.3))
    elif style == 1:  # spindles under a top rail
        place = tuple((foot + lean * tall * 0.9).tolist())
        parts.append(Part(Box((inner, 0.08, board * 1.3), 0.025), paint, place, axes, gloss=0.3))
        for x in np.linspace(-0.6, 0.6, int(rng.integers(3, 5))):
            start = (x * inner, float(foot[1]), float(foot[2]))
            parts.append(Part(tapered(0.028, 0.022, tall * 0.88), paint, start, upright_along(tuple(lean)), gloss=0.3))
    else:  # one broad panel
        place = tuple((foot + lean * tall * 0.66).tolist())
        parts.append(Part(Box((inner, tall * 0.27, board), 0.03), paint, place, axes, gloss=0.3))
    if rng.random() < 0.5:
        cloth = mottled(pick(rng, "#b5413c", "#c9b28a", "#4d7d8c", "#7c8f4e", "#d8cdb8"), rng, 0.1)
        cushion = Ellipsoid((half * 0.86, 0.075, depth * 0.86))
        parts.append(Part(cushion, cloth, (0, height + thick + 0.02, 0.01), gloss=0.02))
    return parts


def house(rng: Random) -> list[Part]:
    """A cottage: plastered or planked walls with windows and a door, a gable roof of tiles, a chimney."""
    wall = pick(rng, "#efe3c6", "#f2efe6", "#e9cfa5", "#dfe3d8", "#edd3c4", "#cfdbe0")
    tiles = pick(rng, "#a9462f", "#8c4a36", "#c0633d", "#6f4a3f", "#93402f")
    trim = pick(rng, "#f7f3ea", "#6b4a32", "#e8e0cf")
    door = pick(rng, "#7b3f26", "#34607a", "#5d7044", "#8a2f2b", "#3c4f63")
    wide, deep, tall = rng.uniform(0.52, 0.62), rng.uniform(0.44, 0.56), rng.uniform(0.56, 0.72)
    rise = rng.uniform(0.36, 0.52)
    gable = ((-wide, 0.0), (wide, 0.0), (wide, tall), (0.0, tall + rise), (-wide, tall))
    walls = facade(wall, trim, door, wide, deep, tall, columns=int(rng.integers(2, 4)), rng=rng)
    parts = [Part(Prism(gable, deep, bevel=0.012), walls, gloss=0.03)]
    pitch, over = np.arctan2(rise, wide), rng.uniform(0.09, 0.14)
    slope = np.hypot(rise, wide)
    half, thick = slope / 2 + over / 2 + 0.01, 0.035
    for side in (-1, 1):
        middle = np.array([side * wide / 2, tall + rise / 2, 0.0])
        along = np.array([side * np.cos(pitch), -np.sin(pitch), 0.0])
        up = np.array([side * np.sin(pitch), np.cos(pitch), 0.0])
        place = middle + along * (over / 2 - 0.005) + up * thick * 0.7
        slab = Box((half, thick, deep + over), 0.03)
        parts.append(
            Part(
                slab, rows(tiles, rng), tuple(place.tolist()), turned(0 if side > 0 else np.pi, roll=-pitch), gloss=0.05
            )
        )
    ridge, end = tall + rise + thick * 0.9, deep + over - 0.02
    parts.append(Part(Tube(((0.0, ridge, -end), (0.0, ridge, end)), 0.042), plain(shade(tiles, 0.85)), gloss=0.05))
    side = rng.choice([-1.0, 1.0])
    x, z = side * wide * rng.uniform(0.4, 0.55), -deep * rng.uniform(0.1, 0.45)
    top = tall + rise * rng.uniform(1.05, 1.2)
    brick = mottled(shade(tiles, 0.85), rng, 0.12)
    parts.append(Part(Box((0.085, (top - tall) / 2, 0.085), 0.02), brick, (x, (top + tall) / 2, z), gloss=0.02))
    parts.append(Part(Box((0.11, 0.03, 0.11), 0.02), plain(trim * 0.8), (x, top, z), gloss=0.02))
    parts.append(Part(Box((0.2, 0.03, 0.09), 0.02), plain(pick(rng, "#a8a196")), (0, 0.03, deep + 0.08), gloss=0.02))
    return parts


def mug(rng: Random) -> list[Part]:
    """A glazed mug of coffee or tea with a handle, straight, flared or bellied."""
    glaze = pick(rng, "#2f7fb0", "#2b9aa0", "#4f66ad", "#6aaed0", "#3b8f8c", "#7a6fb8", "#e9e7e2")
    band = pick(rng, "#f3efe4", "#f0c64a", "#e7e2d4", "#243f66")
    inside = pick(rng, "#f4f0e6", "#e9e4d8")
    drink = pick(rng, "#4a2a17", "#7b4a22", "#8f5a2a")
    radius, height, wall = rng.uniform(0.5, 0.58), rng.uniform(1.0, 1.2), 0.055
    bottom, belly = radius * rng.uniform(0.78, 1.0), rng.uniform(0.95, 1.12)
    outer = smooth_profile([(bottom - 0.04, 0.0), (bottom, 0.05), (radius * belly * 0.98, height * 0.45),
                            (radius, height - 0.02)], 5)  # fmt: skip
    rim = arc((radius - wall / 2, height - 0.02), wall / 2, 0, 180, 5)
    level = height * rng.uniform(0.74, 0.86)
    inner = [(radius - wall, level), (0.0, level)]
    profile = ((0.0, 0.0), *outer, *rim[1:], *inner)
    style = rng.integers(4)
    if style == 0:
        cuts, colours = [height * 0.36, height * 0.6], [glaze, band, glaze]
    elif style == 1:
        cuts, colours = [height * rng.uniform(0.3, 0.5)], [band, glaze]
    elif style == 2:
        cuts, colours = [height * 0.3, height * 0.38, height * 0.62, height * 0.7], [glaze, band, glaze, band, glaze]
    else:
        cuts, colours = [], [glaze]
    outside = bands(cuts, colours)

    def surface(p: Array, n: Array) -> Array:
        r = np.sqrt(p[0] ** 2 + p[2] ** 2)
        hollow = (n[1] > 0.7) | (p[0] * n[0] + p[2] * n[2] < 0)
        hollow &= (r < radius - wall / 2) & (p[1] > level - 0.01)
        colour = np.where(hollow, inside[:, None], outside(p, n))
        return np.where((p[1] < level + 0.004) & hollow & (n[1] > 0.7), drink[:, None], colour)

    grip, thick = rng.uniform(0.26, 0.34), rng.uniform(0.06, 0.075)
    low, high = height * rng.uniform(0.2, 0.28), height * rng.uniform(0.74, 0.84)
    angles = np.radians(np.linspace(-90, 90, 14))
    start = radius * 0.97
    loop = [(start + grip * float(np.cos(a)), (low + high) / 2 + (high - low) / 2 * float(np.sin(a)), 0.0)
            for a in angles]  # fmt: skip
    points = ((start - 0.04, low, 0.0), *loop, (start - 0.04, high, 0.0))
    handle = plain(colours[-1])
    return [
        Part(Lathe(profile), surface, gloss=0.9),
        Part(Tube(points, thick), handle, axes=turned(yaw=-rng.uniform(0.35, 0.95)), gloss=0.9),
    ]


def mushroom(rng: Random) -> list[Part]:
    """A toadstool with a spotted cap, often with a little one beside it."""
    cap = pick(rng, "#c0271f", "#cf3a24", "#b3202b", "#d9541f", "#a81e3a")
    stem = pick(rng, "#efe6d0", "#e6dac0", "#f3efe2")
    spots = pick(rng, "#f7f2e6", "#f4ead2")

    def one(size: float, place: tuple[float, float], lean: float, wide: float, dome: float, tall: float) -> list[Part]:
        axes = turned(yaw=rng.uniform(0, 6.28), roll=lean)
        rim = tall - 0.12
        stalk = smooth_profile([(0.17, 0.0), (0.25, 0.1), (0.17, 0.36), (0.13, tall * 0.8), (0.12, tall)], 4)
        skirt = tall * 0.66
        top = smooth_profile([(wide * 0.9, rim - 0.03), (wide, rim + 0.06), (wide * 0.86, rim + dome * 0.55),
                              (wide * 0.5, rim + dome * 0.9), (0.0, rim + dome)], 5)  # fmt: skip
        under = [(0.0, rim + 0.09), (wide * 0.35, rim + 0.06), *top]
        scale = lambda profile: Lathe(tuple((r * size, y * size) for r, y in profile))  # noqa: E731
        origin = (place[0], 0.0, place[1])
        gills = by_height((rim - 0.03) * size, stem, spots)
        cap_paint = dots(cap, spots, (rim + dome * 0.1) * size, wide * size, dome * size, rng)
        ring = [
            (0.0, skirt + 0.05),
            (0.24, skirt - 0.04),
            (0.25, skirt - 0.02),
            (0.13, skirt + 0.08),
            (0.0, skirt + 0.08),
        ]

        def surface(p: Array, n: Array) -> Array:
            return np.where(n[1] < -0.15, shade(stem, 0.8)[:, None], cap_paint(p, n))

        return [
            Part(scale([(0.0, 0.0), *stalk, (0.0, tall)]), gills, origin, axes, gloss=0.05),
            Part(scale(ring), plain(stem), origin, axes, gloss=0.05),
            Part(scale(under), surface, origin, axes, gloss=0.5),
        ]

    wide, dome, tall = rng.uniform(0.6, 0.76), rng.uniform(0.42, 0.66), rng.uniform(0.86, 1.1)
    parts = one(1.0, (0.0, 0.0), rng.uniform(-0.1, 0.1), wide, dome, tall)
    if rng.random() < 0.6:
        angle = rng.uniform(-0.6, 3.7)
        place = (0.62 * float(np.cos(angle)), 0.62 * float(np.sin(angle)))
        parts += one(rng.uniform(0.36, 0.46), place, rng.uniform(-0.12, 0.12), wide * 0.9, dome, tall)
    return parts


def rocket(rng: Random) -> list[Part]:
    """A toy rocket on its fins: rounded hull with a coloured nose, portholes all round, a nozzle."""
    hull = pick(rng, "#e8eaee", "#d5dae0", "#f0ece2", "#c4ccd6")
    accent = pick(rng, "#d8432f", "#e8772a", "#2b62b8", "#c92f52", "#e3a422")
    radius, tall, lift = rng.uniform(0.27, 0.34), rng.uniform(1.6, 1.85), rng.uniform(0.2, 0.28)
    waist = rng.uniform(0.72, 0.9)
    profile = smooth_profile([(radius * waist, lift), (radius * 0.98, lift + tall * 0.25), (radius, lift + tall * 0.42),
                              (radius * 0.72, lift + tall * 0.7), (0.0, lift + tall * 0.97)], 5)  # fmt: skip
    nose = lift + tall * rng.uniform(0.62, 0.72)
    low = lift + tall * rng.uniform(0.1, 0.16)
    surface = bands([low, low + 0.09, nose - 0.1, nose - 0.05], [hull, accent, hull, hull * 0.55, accent])
    parts = [Part(Lathe(((0.0, lift), *profile)), surface, gloss=0.7)]
    nozzle = tapered(radius * 0.72, radius * 0.45, 0.16)
    parts.append(Part(nozzle, plain(pick(rng, "#4b4f57")), (0, lift - 0.12, 0), gloss=0.5))
    count = int(rng.integers(3, 5))
    reach = radius + rng.uniform(0.24, 0.34)
    top = lift + tall * rng.uniform(0.3, 0.4)
    fin = ((radius * 0.6, lift + 0.03), (reach - 0.12, 0.0), (reach, 0.0), (reach, lift * 0.9), (radius * 0.6, top))
    phase = rng.uniform(0, 6.28)
    for i in range(count):
        axes = turned(yaw=phase + 2 * np.pi * i / count)
        parts.append(Part(Prism(fin, 0.04, bevel=0.03), plain(accent), axes=axes, gloss=0.6))
    ring, glass = plain(accent), plain(pick(rng, "#2a4a6b", "#1f3a52"))
    height, size = lift + tall * rng.uniform(0.46, 0.52), radius * rng.uniform(0.34, 0.42)
    for i in range(3):
        angle = 2 * np.pi * i / 3 + 0.2
        out = np.array([np.sin(angle), 0.12, np.cos(angle)])
        flat = upright_along(tuple(out))
        for scale, sink, paint in ((1.0, 0.97, ring), (0.72, 1.03, glass)):
            place = (out[0] * radius * sink, height, out[2] * radius * sink)
            disc = Ellipsoid((size * scale, 0.045, size * scale))
            parts.append(Part(disc, paint, place, flat, gloss=0.9))
    return parts


def snowman(rng: Random) -> list[Part]:
    """Three balls of snow with a carrot, coal, stick arms, a scarf, and a top hat or a bobble hat."""
    snow = mottled(pick(rng, "#f1f5fa", "#e9f0f7", "#f6f4f0"), rng, 0.05)
    cloth = pick(rng, "#c4302b", "#2c7a4b", "#2f5fae", "#d98a1e", "#8b3f8f")
    coal, stick = plain(pick(rng, "#26262b")), plain(pick(rng, "#5a3d28"))
    r0, r1, r2 = rng.uniform(0.46, 0.54), rng.uniform(0.34, 0.4), rng.uniform(0.25, 0.29)
    y0, y1 = r0 * 0.9, r0 * 1.7 + r1 * 0.42
    y2 = y1 + r1 * 0.8 + r2 * 0.62
    parts = [Part(Ellipsoid((r, r * 0.95, r)), snow, (0, y, 0), gloss=0.1) for r, y in ((r0, y0), (r1, y1), (r2, y2))]
    nose = Lathe(((0.0, 0.0), (0.06, 0.0), (0.035, 0.13), (0.0, rng.uniform(0.24, 0.32))))
    place = (0, y2 - 0.01, r2 * 0.92)
    parts.append(Part(nose, plain(pick(rng, "#e8761f", "#d9641a")), place, upright_along((0, 0.05, 1)), gloss=0.1))
    for x in (-1, 1):
        parts.append(Part(Ellipsoid((0.04, 0.045, 0.03)), coal, (x * r2 * 0.36, y2 + r2 * 0.3, r2 * 0.86), gloss=0.5))
        swing, reach = rng.uniform(-0.1, 0.35), rng.uniform(0.42, 0.52)
        start = (x * r1 * 0.9, y1 + 0.06, 0.0)
        end = (x * (r1 + reach), y1 + swing, 0.1)
        middle = (x * (r1 + reach * 0.5), y1 + swing * 0.5 - 0.03, 0.03)
        parts.append(Part(Tube((start, middle, end), 0.032), stick, gloss=0.05))
    for y in (-0.12, 0.12):
        place = (0, y1 + y, np.sqrt(max(r1**2 - y * y * 1.1, 0.01)) - 0.005)
        parts.append(Part(Ellipsoid((0.042, 0.042, 0.03)), coal, place, gloss=0.5))
    neck, wrap = y1 + r1 * 0.82, r2 * 0.9
    scarf = Lathe((
        (0.0, neck - 0.075), (wrap, neck - 0.075), (wrap + 0.07, neck - 0.035), (wrap + 0.07, neck + 0.035),
        (wrap, neck + 0.075), (0.0, neck + 0.075),
    ))  # fmt: skip
    woven = plain(cloth)
    parts.append(Part(scarf, woven, gloss=0.02))
    tail = turned(pitch=0.12, roll=rng.uniform(-0.1, 0.2))
    parts.append(Part(Box((0.075, 0.17, 0.03), 0.02), woven, (0.16, neck - 0.2, r1 * 0.96), tail, gloss=0.02))
    brow = y2 + r2 * 0.52
    tilt = turned(roll=rng.uniform(-0.12, 0.12))
    if rng.random() < 0.5:
        felt, height = pick(rng, "#2b2b33", "#3a2d2a", "#2d3a4d"), rng.uniform(0.3, 0.4)
        width = r2 * 0.82
        hat = Lathe(((0.0, 0.0), (width * 1.65, 0.0), (width * 1.65, 0.04), (width, 0.045), (width * 0.97, height),
                     (0.0, height)))  # fmt: skip
        parts.append(Part(hat, bands([0.05, 0.13], [felt, cloth, felt]), (0, brow, 0), tilt, gloss=0.1))
    else:
        hat = Lathe(((0.0, 0.0), *arc((0.0, 0.0), r2 * 0.98, 0, 90, 8)[:-1], (0.0, r2 * 0.98)))
        knit = bands([0.075], [shade(cloth, 1.5), cloth])
        parts.append(Part(hat, knit, (0, brow - 0.02, 0), tilt, gloss=0.02))
        parts.append(Part(Ellipsoid((0.09, 0.09, 0.09)), plain(shade(cloth, 1.5)), (0, brow + r2, 0), gloss=0.02))
    return parts


def tree(rng: Random) -> list[Part]:
    """A conifer of stacked skirts on a trunk; some carry snow, some baubles."""
    green = pick(rng, "#2f6b3a", "#3f7d3c", "#24594a", "#4b7f34", "#2c6e57")
    trunk = grain(pick(rng, "#6a4a30", "#5b3d29"), rng)
    tiers = int(rng.integers(3, 5))
    wide, tall, stem = rng.uniform(0.56, 0.68), rng.uniform(1.4, 1.65), rng.uniform(0.34, 0.46)
    parts = [Part(tapered(0.14, 0.1, stem + 0.3), trunk, gloss=0.02)]
    dressed = rng.random()
    snow = pick(rng, "#eef3f7") if dressed < 0.3 else None
    step = tall / (tiers + 0.6)
    for i in range(tiers):
        share = 1 - i / (tiers + 0.25)
        radius, base = wide * share**0.9, stem + step * i
        height = step * 1.75 if i < tiers - 1 else tall + stem - base
        skirt = smooth_profile([(radius * 0.93, base), (radius, base + 0.03), (radius * 0.5, base + height * 0.42),
                                (0.0, base + height)], 4)  # fmt: skip
        shape = Lathe(((0.0, base + 0.07), *skirt))
        leaf = mottled(shade(green, 0.9 + 0.14 * i), rng, 0.22, needles=int(rng.integers(9, 14)))

        def surface(p: Array, n: Array, leaf: Paint = leaf, edge: float = base + height * 0.34) -> Array:
            colour = leaf(p, n)
            if snow is None:
                return colour
            angle = np.arctan2(p[0], p[2])
            return np.where(p[1] > edge + 0.05 * np.sin(5 * angle), snow[:, None], colour)

        parts.append(Part(shape, surface, gloss=0.04))
        if dressed > 0.6:
            ball = plain(pick(rng, "#d0342c", "#e5b32f", "#d9d3e0", "#c7417b"))
            for turn in np.arange(5 - i) * 2 * np.pi / (5 - i) + rng.uniform(0, 6.28):
                place = (radius * 0.96 * float(np.sin(turn)), base + 0.02, radius * 0.96 * float(np.cos(turn)))
                parts.append(Part(Ellipsoid((0.062,) * 3), ball, place, gloss=0.9))
    return parts


BUILDERS: dict[str, Callable[[Random], list[Part]]] = {
    "car": car,
    "chair": chair,
    "house": house,
    "mug": mug,
    "mushroom": mushroom,
    "rocket": rocket,
    "snowman": snowman,
    "tree": tree,
}
