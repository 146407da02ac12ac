"""Ray tracing of one demo scene: an object on a ground that curves up into a backdrop, lit by a sun and a sky.

A scene is a function of (seed, index) alone. All randomness comes from one counter-based generator, drawn in one
order, so that images can be made in any order, by any number of workers, at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from threedgp.demo_world.objects import DemoObject, Part, Random, build_object
from threedgp.demo_world.paint import pick, random_waves, to_srgb, waves
from threedgp.demo_world.shapes import Array, apply, dot, unit

CLASSES: tuple[str, ...] = ("car", "chair", "house", "mug", "mushroom", "rocket", "snowman", "tree")

NEAR, FAR = 0.5, 1.6  # world units along the ray; every pixel of every scene lies between
YAW = (-np.pi / 2, np.pi / 2)
PITCH = (0.98, 1.38)  # looking down from 11 to 34 degrees
FOV = (20.0, 38.0)
FILL = (0.62, 0.8)  # share of the frame that the object's reach takes
LOOK_AT = 0.2  # largest look-at offset as a share of the object's half size
SAMPLES = 3  # rays per pixel and axis; the middle one is the pixel's centre and gives its depth
RAYS_AT_ONCE = 1 << 16  # bounds the memory of large images

# Surroundings: colours of the ground, of the backdrop just above it and high up; ground pattern; softness of the cove.
MOODS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str, float]] = {
    "street": (("#8f8f93", "#a19d97", "#85888f"), ("#e4e4e0", "#dfe3e6"), ("#a9bccb", "#b9c4cc"), "plain", 0.05),
    "meadow": (("#7fa35a", "#8aa85c", "#6f9a55"), ("#e3edf0", "#e9ecdf"), ("#8fb8dd", "#9cc3e0"), "soft", 0.06),
    "snow": (("#e6ecf3", "#dfe7f0"), ("#cddcea", "#d8dfe8"), ("#8fadd0", "#7d9cc4"), "soft", 0.12),
    "room": (
        ("#b08a5e", "#9c7650", "#bd9a70"),
        ("#e6dcc8", "#ccd6d2", "#dccac0"),
        ("#e2d8c6", "#c6d2d0"),
        "planks",
        0.05,
    ),
    "studio": (
        ("#c9bfb2", "#b9c4c6", "#cbb8b4", "#c2c3ae"),
        ("#d6cdc0", "#c6d0d2"),
        ("#d9d2c8", "#cdd6d8"),
        "plain",
        0.3,
    ),
    "forest": (("#6e5f3f", "#5f6a3c", "#756545"), ("#8fa07a", "#9aa886"), ("#4f6a4c", "#5d7a5a"), "soft", 0.15),
    "dusk": (("#93869a", "#9a8c8c"), ("#f0bd98", "#f2c9a6"), ("#6a78ae", "#7783b4"), "plain", 0.08),
    "night": (("#565c70", "#626578"), ("#7c8bb4", "#8a90b8"), ("#2f3a63", "#38406b"), "plain", 0.08),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "car": ("street", "street", "meadow", "dusk", "studio"),
    "chair": ("room", "room", "studio"),
    "house": ("meadow", "meadow", "street", "dusk"),
    "mug": ("room", "studio", "studio"),
    "mushroom": ("forest", "forest", "meadow"),
    "rocket": ("night", "night", "dusk", "street"),
    "snowman": ("snow", "snow", "dusk"),
    "tree": ("meadow", "snow", "snow", "dusk"),
}


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
        rgb: [S, S, 3] uint8, sRGB.
        depth: [S, S] float32, distance from the camera along the ray of the pixel's centre, in world units.
        camera: [8] float32 `[yaw, pitch, roll, fov, radius, look-at yaw, look-at pitch, look-at radius]`, angles in
            radians, fov in degrees; rays run through x = -1 + 2j/(S-1), y = 1 - 2i/(S-1).
        class_id: place of the object's class in `CLASSES`.
    """

    rgb: Array
    depth: Array
    camera: Array
    class_id: int


class Backdrop(NamedTuple):
    ground: Array  # linear RGB [3]
    low: Array
    high: Array
    pattern: str
    cove: float  # width of the blend between ground and backdrop, object units
    radius: float  # of the round wall about the object, object units
    noise: tuple[Array, Array]
    turn: float  # direction of the planks


class Light(NamedTuple):
    direction: Array  # [3] unit, towards the sun
    colour: Array  # [3]
    sky: Array
    bounce: Array
    softness: float  # tangent of the sun's half angle


class Stage(NamedTuple):
    """Everything a scene is made of; lengths in object units, `scale` world units each."""

    class_id: int
    thing: DemoObject
    backdrop: Backdrop
    light: Light
    camera: Array
    scale: float


class View(NamedTuple):
    eye: Array  # [3]
    right: Array  # [3], times tan(fov/2)
    up: Array  # [3], times tan(fov/2)
    forward: Array  # [3]
    reach: float  # z-depth of the plane through the object's middle, where rays start


def build_stage(index: int, seed: int) -> Stage:
    """Draw camera, surroundings, light and object of scene `index`."""
    rng = np.random.default_rng([seed, index])
    class_id = index % len(CLASSES)
    yaw, pitch, fov = rng.uniform(*YAW), rng.uniform(*PITCH), rng.uniform(*FOV)
    half = rng.uniform(*FILL) * np.tan(np.radians(fov) / 2)  # half size of the object in world units
    look = (rng.uniform(-np.pi, np.pi), np.arccos(rng.uniform(-1, 1)), LOOK_AT * half * rng.uniform(0, 1))
    camera = np.array([yaw, pitch, 0, fov, 1.0, *look], np.float32)

    options = SETTINGS[CLASSES[class_id]]
    ground, low, high, pattern, cove = MOODS[options[int(rng.integers(len(options)))]]
    light = _draw_light(rng, yaw)
    ground_colour, low_colour, high_colour = (pick(rng, *colours) for colours in (ground, low, high))
    width, radius, noise, turn = (
        rng.uniform(0.8, 1.4),
        rng.uniform(2.3, 2.8),
        random_waves(rng, 5, 2.2),
        rng.uniform(0, 3),
    )
    thing = build_object(CLASSES[class_id], rng)
    scale = half / thing.reach
    radius = min(radius * thing.reach, 0.9 * (FAR - 1) / scale)
    backdrop = Backdrop(ground_colour, low_colour, high_colour, pattern, cove * width, radius, noise, turn)
    return Stage(class_id, thing, backdrop, light, camera, scale)


def _draw_light(rng: Random, yaw: float) -> Light:
    """A sun over one of the photographer's shoulders, warm or cool, under a sky of the other tint."""
    side = yaw + rng.choice([-1, 1]) * rng.uniform(0.35, 1.25)
    height = rng.uniform(0.6, 1.05)
    direction = np.array([-np.cos(height) * np.sin(side), np.sin(height), np.cos(height) * np.cos(side)])
    warmth, strength = rng.uniform(-0.05, 0.12), rng.uniform(0.62, 0.82)
    colour = strength * np.array([1 + warmth, 1.0, 1 - warmth])
    fill = rng.uniform(0.36, 0.48)
    sky = fill * np.array([1 - warmth / 2, 1.0, 1 + warmth / 2 + 0.04])
    return Light(direction, colour, sky, 0.55 * sky, rng.uniform(0.035, 0.075))


def render_scene(
    index: int,
    size: int,
    seed: int = 0,
    *,
    yaw: float | None = None,
    pitch: float | None = None,
    fov: float | None = None,
) -> Scene:
    """Ray-trace scene `index` of the set `seed` at `size` x `size` pixels.

    Args:
        index: number of the scene, from 0; its class is `CLASSES[index % 8]`.
        yaw, pitch, fov: look at the same scene (object, light, surroundings) from elsewhere; radians, degrees.
    """
    stage = build_stage(index, seed)
    camera = stage.camera.copy()
    for place, value in ((0, yaw), (1, pitch), (3, fov)):
        if value is not None:
            camera[place] = value
    rows = max(2, RAYS_AT_ONCE // (size * SAMPLES * SAMPLES) // 2 * 2)  # even: the sun's pattern repeats every two rows
    strips = [_render_rows(stage, camera, size, top, min(top + rows, size)) for top in range(0, size, rows)]
    linear, depth = (np.concatenate(part) for part in zip(*strips, strict=True))
    rgb = (to_srgb(_shoulder(linear)) * 255 + 0.5).astype(np.uint8)
    return Scene(rgb, depth, camera, stage.class_id)


def _shoulder(linear: Array) -> Array:
    """Roll highlights off smoothly below 1, as film does."""
    knee = np.float32(0.72)
    over = np.maximum(linear - knee, 0)
    return np.minimum(linear, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))


def spherical(yaw: float, pitch: float, radius: float) -> Array:
    """World position of a point on a sphere: y is up, pitch counts from +y, yaw 0 is +z and turns towards -x."""
    flat = radius * np.sin(pitch)
    return np.array([-flat * np.sin(yaw), radius * np.cos(pitch), flat * np.cos(yaw)])


def _view(camera: Array, scale: float) -> View:
    yaw, pitch, _, fov, radius, *look = (float(v) for v in camera)
    eye, target = spherical(yaw, pitch, radius) / scale, spherical(*look) / scale
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    tangent = np.tan(np.radians(fov) / 2)
    return View(eye, right * tangent, np.cross(right, forward) * tangent, forward, float(-eye @ forward))


def _render_rows(stage: Stage, camera: Array, size: int, top: int, bottom: int) -> tuple[Array, Array]:
    """Linear RGB [rows, S, 3] and ray distance [rows, S] of some pixel rows."""
    view = _view(camera, stage.scale)
    step = 2 / (size - 1)
    offset = (np.arange(SAMPLES) - SAMPLES // 2) / SAMPLES
    x = (-1 + step * (np.arange(size)[:, None] + offset)).ravel().astype(np.float32)
    y = (1 - step * (np.arange(top, bottom)[:, None] + offset)).ravel().astype(np.float32)

    depth, owner = _trace(stage.thing.parts, view, x, y)
    length = np.sqrt(1 + float(view.up @ view.up) * (x[None, :] ** 2 + y[:, None] ** 2))  # of a ray per unit of z-depth
    colour = np.empty((3, *owner.shape), np.float32)

    behind = np.nonzero(owner < 0)
    direction = _at(view, x[behind[1]], y[behind[0]])
    distance, share = _hit_backdrop(stage, view, direction)
    depth[behind] = distance
    points = [view.eye[:, None].astype(np.float32) + distance * direction]
    where = [behind]
    surfaces: list[tuple[Array, Array, Array | float]] = [_paint_backdrop(stage.backdrop, points[0], share)]
    for number, part in enumerate(stage.thing.parts):
        hit = np.nonzero(owner == number)
        if len(hit[0]):
            direction = _at(view, x[hit[1]], y[hit[0]])
            points.append(view.eye[:, None].astype(np.float32) + depth[hit] * direction)
            where.append(hit)
            surfaces.append(_paint_part(part, points[-1]))
    sun = _sun(stage, points, where, surfaces)
    for hit, point, (albedo, normal, gloss), lit in zip(where, points, surfaces, sun, strict=True):
        toward_eye = unit(view.eye[:, None].astype(np.float32) - point)
        colour[:, hit[0], hit[1]] = _shade(stage, point, toward_eye, albedo, normal, gloss, lit)

    tall = bottom - top
    linear = colour.reshape(3, tall, SAMPLES, size, SAMPLES).mean((2, 4)).transpose(1, 2, 0)
    middle = slice(SAMPLES // 2, None, SAMPLES)
    exact = (depth * length)[middle, middle] * np.float32(stage.scale)
    return linear, np.clip(exact, NEAR, FAR).astype(np.float32)


def _at(view: View, x: Array, y: Array) -> Array:
    """Ray directions [3, N] of unit z-depth at image coordinates."""
    f, r, u = (v.astype(np.float32) for v in (view.forward, view.right, view.up))
    return f[:, None] + x * r[:, None] + y * u[:, None]


def _trace(parts: tuple[Part, ...], view: View, x: Array, y: Array) -> tuple[Array, Array]:
    """Nearest hit of every ray: z-depth [H, W] (inf: none) and number of the part (-1: none)."""
    best = np.full((len(y), len(x)), np.inf, np.float32)
    owner = np.full(best.shape, -1, np.int8)
    square = float(view.up @ view.up)
    for number, part in enumerate(parts):
        corners = part.corners - view.eye
        depth = corners @ view.forward
        u, v = corners @ view.right / (square * depth), corners @ view.up / (square * depth)
        columns = slice(*np.searchsorted(x, [u.min(), u.max()]))
        rows = slice(*(len(y) - np.searchsorted(y[::-1], [v.max(), v.min()])))
        xs, ys = x[columns], y[rows]
        if not len(xs) or not len(ys):
            continue
        # In the part's frame directions are linear in the image coordinates, so no matrix product for each ray.
        axes = np.stack([part.axes @ v for v in (view.right, view.up, view.forward)]).astype(np.float32)
        grid = axes[0][:, None, None] * xs + (axes[1][:, None] * ys + axes[2][:, None])[:, :, None]
        direction = grid.reshape(3, -1)
        start = (part.axes @ (view.eye - np.asarray(part.origin))).astype(np.float32)
        position = start[:, None] + np.float32(view.reach) * direction  # near the object: small numbers, exact roots
        t = part.shape.hit(position, direction, -0.9 * view.reach).reshape(len(ys), len(xs)) + np.float32(view.reach)
        closer = t < best[rows, columns]
        np.copyto(best[rows, columns], t, where=closer)
        np.copyto(owner[rows, columns], number, where=closer)
    return best, owner


def _hit_backdrop(stage: Stage, view: View, direction: Array) -> tuple[Array, Array]:
    """z-depth [N] of ground and round wall, joined by a smooth minimum, and the wall's share [N] in the blend."""
    eye, cove = view.eye.astype(np.float32), np.float32(stage.backdrop.cove * stage.thing.reach)
    fall = np.minimum(direction[1], -1e-4)
    plane = (np.float32(stage.thing.ground) - eye[1]) / fall
    a = direction[0] ** 2 + direction[2] ** 2
    b = eye[0] * direction[0] + eye[2] * direction[2]
    c = eye[0] ** 2 + eye[2] ** 2 - np.float32(stage.backdrop.radius) ** 2
    wall = (-b + np.sqrt(np.maximum(b * b - a * c, 0))) / a
    gap = np.clip((wall - plane) / cove, -30, 30)
    share = 1 / (1 + np.exp(gap))
    return np.minimum(plane, wall) - cove * np.log1p(np.exp(-np.abs(gap))) * np.float32(0.5), share


def _paint_backdrop(backdrop: Backdrop, p: Array, share: Array) -> tuple[Array, Array, Array]:
    """Colour, normal and gloss of ground and backdrop: soft gradients and low-contrast patterns."""
    cloud = waves(p, *backdrop.noise)
    tone = 1 + 0.05 * cloud
    if backdrop.pattern == "soft":
        tone = tone + 0.07 * waves(p, backdrop.noise[0][::-1] * 2.6, backdrop.noise[1])
    elif backdrop.pattern == "planks":
        across = (p[0] * np.float32(np.cos(backdrop.turn)) + p[2] * np.float32(np.sin(backdrop.turn))) * np.float32(2.4)
        board = np.floor(across)
        seam = np.abs(across - board - 0.5) > 0.47
        tone = tone * (1 + 0.07 * np.sin(board * 12.9)) * np.where(seam, 0.8, 1.0)
    height = np.clip(p[1] / np.float32(backdrop.radius) * 1.1 + 0.35, 0, 1)
    wall = backdrop.low[:, None] * (1 - height) + backdrop.high[:, None] * height
    albedo: Array = backdrop.ground[:, None] * tone * (1 - share) + wall * (1 + 0.03 * cloud) * share
    normal = np.stack([np.zeros_like(share), np.ones_like(share), np.zeros_like(share)])
    return albedo, normal, share


def _paint_part(part: Part, p: Array) -> tuple[Array, Array, float]:
    axes = part.axes.astype(np.float32)
    local = apply(axes, p - np.asarray(part.origin, np.float32)[:, None])
    normal = part.shape.normal(local)
    return part.paint(local, normal), apply(axes.T, normal), part.gloss


def _sun(stage: Stage, points: list[Array], where: list[tuple[Array, ...]], surfaces: list) -> list[Array]:
    """Which of the points see the sun, as one float32 [N] for each list entry.

    Every one of the nine rays of a pixel looks at another spot of the sun's disc; their mean is a soft shadow. The
    spots are turned from pixel to pixel, which keeps the shadows of thin parts from falling apart into stripes.
    """
    light = stage.light
    across = np.cross(light.direction, [0.3, 0.2, 0.93])
    across /= np.linalg.norm(across)
    along = np.cross(across, light.direction)
    around = max(float(np.linalg.norm(part.corners, axis=1).max()) for part in stage.thing.parts)
    lit = []
    for (row, column), point, (_, normal, _) in zip(where, points, surfaces, strict=True):
        spot = (row % SAMPLES) * SAMPLES + column % SAMPLES
        neighbour = (row // SAMPLES) % 2 * 2 + (column // SAMPLES) % 2
        turn, out = spot * 2.399963 + neighbour * (np.pi / 2), light.softness * np.sqrt((spot + 0.5) / SAMPLES**2)
        aim = light.direction[:, None] + across[:, None] * (out * np.cos(turn)) + along[:, None] * (out * np.sin(turn))
        aim = aim.astype(np.float32)
        start = point + normal * np.float32(2e-3)
        open_sky = np.ones(point.shape[1], np.float32)
        # Only points whose ray meets the ball around the object can be in shadow; those turned away are dark anyway.
        near = np.nonzero(_meets_ball(start, aim, [0.0, 0.0, 0.0], around) & (dot(normal, aim) > 0))[0]
        if len(near):
            open_sky[near] = _unblocked(stage.thing.parts, start[:, near], aim[:, near])
        lit.append(open_sky)
    return lit


def _meets_ball(p: Array, d: Array, centre: list[float], radius: float) -> Array:
    q = p - np.asarray(centre, np.float32)[:, None]
    b, c = dot(q, d), dot(q, q) - np.float32(radius * radius)
    return (b * b > dot(d, d) * c) & ((b < 0) | (c < 0))


def _unblocked(parts: tuple[Part, ...], p: Array, d: Array) -> Array:
    clear = np.ones(p.shape[1], bool)
    for part in parts:
        left = np.nonzero(clear & _meets_ball(p, d, *part.ball))[0]
        if len(left):
            axes = part.axes.astype(np.float32)
            local = apply(axes, p[:, left] - np.asarray(part.origin, np.float32)[:, None])
            clear[left[np.isfinite(part.shape.hit(local, apply(axes, d[:, left]), 1e-3))]] = False
    return clear.astype(np.float32)


def _shade(
    stage: Stage, p: Array, toward_eye: Array, albedo: Array, normal: Array, gloss: float | Array, lit: Array
) -> Array:
    """Lambert sun, hemisphere sky darkened near the ground, and for glossy parts a highlight and a sheen."""
    light, reach = stage.light, np.float32(stage.thing.reach)
    sun = light.direction.astype(np.float32)[:, None]
    facing = np.maximum(dot(normal, sun), 0) * lit
    upward = 0.5 + 0.5 * normal[1]
    ambient = light.bounce[:, None] * (1 - upward) + light.sky[:, None] * upward
    above = (p[1] - np.float32(stage.thing.ground)) / reach
    if isinstance(gloss, np.ndarray):  # ground and backdrop: `gloss` holds the backdrop's share, which glows evenly
        flat = np.sqrt(p[0] ** 2 + p[2] ** 2) / reach
        contact = 1 - 0.35 * np.exp(-((flat / 0.75) ** 2) * 1.4)
        ground = albedo * (ambient * contact + light.colour[:, None] * facing)
        bright = float(np.mean(light.colour) * sun[1, 0] + np.mean(light.sky))
        return (ground * (1 - gloss) + albedo * bright * gloss).astype(np.float32)
    occlusion = 0.55 + 0.45 * np.clip(above / 0.5, 0, 1)
    colour = albedo * (ambient * occlusion + light.colour[:, None] * facing)
    half = unit(toward_eye + sun)
    shine = np.maximum(dot(normal, half), 0) ** np.float32(12 + 60 * gloss)
    grazing = (1 - np.clip(dot(normal, toward_eye), 0, 1)) ** 4
    sheen = gloss * (0.03 + 0.35 * grazing) * np.clip(0.35 + 0.65 * normal[1], 0, 1)
    colour = colour + light.colour[:, None] * (0.5 * gloss * shine * lit) + light.sky[:, None] * sheen
    return colour.astype(np.float32)
