"""Line charts as SVG text: enough for curves in a report, with no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 34
COLORS = ("#2f6fde", "#d6562f", "#2c9a68", "#8b55c8", "#b98a12", "#5a6672")
LARGEST = 1e300  # beyond it differences overflow

Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points], *, x_label: str = "thousand images") -> str:
    """One chart as an `<svg>` element; "" if no series has two finite points.

    Args:
        series: name -> (x, y) points in ascending x; points that are not finite, or nearly so, are left out.
    """
    shown = {name: [(x, y) for x, y in points if abs(y) < LARGEST] for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if len(points) > 1}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        up = (y - low_y) / ((high_y - low_y) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>',
    ]
    for value in y_ticks:
        _, y = place(low_x, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        if low_x <= value <= high_x:
            x, _ = place(value, low_y)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, points) in enumerate(shown.items()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        if len(shown) > 1:
            parts.append(
                f'<text class="tick" x="{WIDTH - RIGHT}" y="{TOP + 14 * number + 4}" text-anchor="end" '
                f'style="fill:{color}">{escape(name)}</text>'
            )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low..high, about `count` steps apart."""
    if high - low <= 1 / LARGEST:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(k * step, 12) for k in range(first, last + 1)]
