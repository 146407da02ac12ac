"""One self-contained HTML page about a run: what it learned, how it went, and how to do the same.

Everything is inside the file (pictures and videos as data URIs, charts as SVG), so it can be mailed or opened anywhere
without a network.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from threedgp.config.metric_names import parse_metric
from threedgp.errors import UsageError
from threedgp.files import atomic_open, read_json_lines
from threedgp.runs.charts import line_chart
from threedgp.runs.run import Run

MOST_SHEETS = 6  # sample sheets shown over time
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".mp4": "video/mp4"}

CURVES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Losses", {"generator": "Loss/G/loss", "discriminator": "Loss/D/loss"}),
    ("What the discriminator says", {"of reals": "Loss/scores/real", "of fakes": "Loss/scores/fake"}),
    ("Gradient penalty R1", {"R1": "Loss/D/r1_penalty"}),
    ("Distillation distance", {"distance": "Loss/kd/D_dist"}),
    ("Speed, images a second", {"images/s": "Timing/images_per_second"}),
)

STYLE = """
:root { color-scheme: light dark; --ink: #20242c; --soft: #667080; --line: #dfe3ea; --card: #f6f7f9; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --soft: #99a2b0; --line: #333a46; --card: #1c2129; --page: #12161c; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
       max-width: 1040px; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; } h2 { font-size: 19px; margin: 40px 0 10px; }
p, figcaption { color: var(--soft); margin: 4px 0; } figcaption { font-size: 13px; }
figure { margin: 0; } img, video { max-width: 100%; border-radius: 6px; display: block; }
.pixel { image-rendering: pixelated; }
.facts, .row, .charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.row { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); align-items: start; }
.charts { grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); }
.fact { background: var(--card); border-radius: 8px; padding: 12px 14px; }
.fact b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.fact span { display: block; font-size: 13px; color: var(--soft); }
.chart { width: 100%; background: var(--card); border-radius: 8px; }
.chart text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.chart .title { font-size: 13px; fill: var(--ink); } .chart .grid { stroke: var(--line); }
pre { background: var(--card); border-radius: 8px; padding: 14px 16px; overflow-x: auto; font-size: 14px; }
table { border-collapse: collapse; font-size: 14px; } td, th { text-align: left; padding: 4px 18px 4px 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


class Fact(NamedTuple):
    """A figure at the top of the page: "43 %", "class accuracy", "chance is 12.5 %"."""

    value: str
    name: str
    note: str = ""


class Picture(NamedTuple):
    """An image or MP4 file with its caption."""

    path: Path
    caption: str = ""


@dataclass
class Report:
    """What goes on the page besides the run's own curves and samples.

    Attributes:
        title, summary: at the top.
        facts: the most important figures.
        renders: videos, grids and meshes of the trained model.
        data: pictures of the training set.
        steps: (command, seconds) of everything that was run.
        advice: commands for the reader's next steps.
    """

    title: str
    summary: str = ""
    facts: Sequence[Fact] = ()
    renders: Sequence[Picture] = ()
    data: Sequence[Picture] = ()
    steps: Sequence[tuple[str, float]] = ()
    advice: str = ""
    notes: list[str] = field(default_factory=list)


def write_report(run: Run, report: Report, path: Path | str) -> Path:
    """Write the page by atomic rename and return its path.

    Raises:
        UsageError: a picture is of a kind that browsers do not show.
        OSError: a picture is missing or the disk is full.
    """
    body = [f"<h1>{escape(report.title)}</h1>", f"<p>{escape(report.summary)}</p>" if report.summary else ""]
    if report.facts:
        body.append('<div class="facts">' + "".join(map(_fact, report.facts)) + "</div>")
    body += _section("What it has learned", [_figure(picture) for picture in report.renders], "row")
    body += _section("The same samples while it learned", [_figure(sheet) for sheet in sample_sheets(run)], "row")
    body += _section("Curves", curves(run), "charts")
    body += _section("Cameras: the prior (grey) and what the model made of it", [_figure(p) for p in _cameras(run)])
    body += _section("What it was trained on", [_figure(picture) for picture in report.data])
    if report.advice:
        body += ["<h2>Do it with your own photos</h2>", f"<pre>{escape(report.advice)}</pre>"]
    if report.steps:
        rows = "".join(
            f'<tr><td><code>{escape(command)}</code></td><td class="number">{seconds:.0f} s</td></tr>'
            for command, seconds in report.steps
        )
        body += ["<h2>What was run</h2>", f"<table>{rows}</table>"]
    body += [f"<p>{escape(note)}</p>" for note in report.notes]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    page = (
        f"<!doctype html><html lang=en><head>{head}<title>{escape(report.title)}</title><style>{STYLE}</style></head>"
    )
    with atomic_open(path, "w", encoding="utf-8") as file:
        file.write(page + "<body>" + "\n".join(part for part in body if part) + "</body></html>\n")
    return Path(path)


def curves(run: Run) -> list[str]:
    """Charts of the run's log and of its metrics."""
    ticks = _ticks(run.log_file)
    charts = []
    for title, names in CURVES:
        series = {}
        for label, name in names.items():
            values = [(line["nimg"] / 1000, line["statistics"].get(name)) for line in ticks]
            series[label] = [
                (x, y[0]) for x, y in values if isinstance(y, list) and y and isinstance(y[0], (int, float))
            ]
        charts.append(line_chart(title, series))
    scores: dict[str, list[tuple[float, float]]] = {}
    for line in run.metrics():
        checkpoint, value = line["checkpoint"], line["results"].get(line["metric"])
        if checkpoint is not None and value is not None:
            scores.setdefault(line["metric"], []).append((int(checkpoint) / 1000, value))
    for name, points in scores.items():
        charts.append(line_chart(f"{_label(name)} ({name})", {name: sorted(dict(points).items())}))
    return [chart for chart in charts if chart]


def sample_sheets(run: Run) -> list[Picture]:
    """The run's sample sheets, the first and the last among at most six, evenly spread."""
    sheets = sorted(path for path in run.samples.glob("*.jpg") if path.stem.isdigit())
    if len(sheets) > MOST_SHEETS:
        sheets = [sheets[round(k * (len(sheets) - 1) / (MOST_SHEETS - 1))] for k in range(MOST_SHEETS)]
    return [Picture(path, f"after {int(path.stem):,} images") for path in sheets]


def _cameras(run: Run) -> list[Picture]:
    sheets = sorted(run.samples.glob("*-cameras.png"))
    return [Picture(sheets[-1], f"after {int(sheets[-1].stem.split('-')[0]):,} images")] if sheets else []


def _ticks(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that a tick wrote, and that nobody has damaged."""
    return [
        line
        for line in read_json_lines(log)
        if isinstance(line, dict)
        and line.get("kind") == "tick"
        and isinstance(line.get("nimg"), int)
        and abs(line["nimg"]) < 1 << 60
        and isinstance(line.get("statistics"), dict)
    ]


def _label(metric: str) -> str:
    try:
        return parse_metric(metric).label
    except UsageError:
        return metric


def _section(title: str, parts: Sequence[str], style: str = "") -> list[str]:
    return [f"<h2>{escape(title)}</h2>", f'<div class="{style}">' + "".join(parts) + "</div>"] if parts else []


def _fact(fact: Fact) -> str:
    note = f"<span>{escape(fact.note)}</span>" if fact.note else ""
    return f'<div class="fact"><b>{escape(fact.value)}</b><span>{escape(fact.name)}</span>{note}</div>'


def _figure(picture: Picture) -> str:
    kind = KINDS.get(picture.path.suffix.lower())
    if kind is None:
        raise UsageError(f"{picture.path} cannot be shown in a report; use one of {', '.join(KINDS)}.")
    source = f"data:{kind};base64,{base64.b64encode(picture.path.read_bytes()).decode()}"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    if kind.startswith("video"):
        media = f'<video src="{source}" autoplay loop muted playsinline controls></video>'
    else:
        media = f'<img src="{source}" alt="{escape(picture.caption or picture.path.stem)}">'
    return f"<figure>{media}{caption}</figure>"
