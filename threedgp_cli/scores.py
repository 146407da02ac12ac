"""How `3dgp eval` shows and stores its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from threedgp_cli.console import print_json, progress, say, show, show_error, show_note, table

if TYPE_CHECKING:
    from threedgp.metrics.depth import DepthScores
    from threedgp.metrics.evaluate import Result

SHOWN_CLASSES = 40
PARTS = {
    "mean": "mean",
    "std": "standard deviation",
    "precision": "precision",
    "recall": "recall",
    "entropy": "mean entropy (nats)",
    "clamped": "share of pixels outside near..far",
}


def report(
    run: Any,
    checkpoint: Path,
    results: list[Result],
    depths: dict[str, DepthScores],
    real: Any,
    class_names: list[str] | None,
    plot: Path | None,
    out: Path | None,
    json_output: bool,
) -> None:
    """Show what was computed, then store it; a store that cannot be written costs nobody the numbers.

    Raises:
        DataError: nothing could be computed.
        typer.Exit: a part could not; the code is 1.
    """
    from threedgp.files import best_effort
    from threedgp.metrics.plot import plot_depth_scores

    listener = progress()
    lines = []
    for result in computed(results):
        line = result.line(checkpoint.name)
        if real is not None and result.settings.get("num_real"):
            line["real"] = str(real.path)
        lines.append(line)
    title = f"{run.name}, checkpoint {int(checkpoint.name.strip('.').split('.')[0]) / 1000:g} thousand images"
    classes, pictures = {}, {}
    for name, scores in depths.items():
        classes[name] = class_rows(scores, class_names)
        path = plot or run.folder / f"{name}-{checkpoint.name}.png"
        with best_effort("The depth histogram", listener):
            plot_depth_scores(scores, f"{name}: {title}", path)
            pictures[name] = str(path)
    with best_effort(f"The line in {run.metrics_file}", listener):
        for line in lines:
            run.append_metrics(line)
    if json_output:
        per_class = {name: [dict(zip(("class", "score", "images"), row, strict=True)) for row in rows]
                     for name, rows in classes.items()}  # fmt: skip
        where = {"run": run.name, "checkpoint": checkpoint.name, "per_class": per_class, "plots": pictures}
        print_json({**where, "results": lines, "problems": problems(results)})
    else:
        show_results(title, computed(results))
        for name, rows in classes.items():
            show_classes(name, rows)
        for picture in pictures.values():
            say(f"Depth histogram: {picture}")
        say(f"Scores of {run.name}: {run.metrics_file}")
    finish(results, lines, out)


def computed(results: list[Result]) -> list[Result]:
    """Those that have an answer. Raises `DataError` with the reasons if none has."""
    from threedgp.errors import DataError

    found = [result for result in results if result.problem is None]
    if not found:
        raise DataError(" ".join(dict.fromkeys(result.problem for result in results)))
    return found


def problems(results: list[Result]) -> dict[str, str]:
    """Metric -> why it could not be computed."""
    return {result.metric: result.problem for result in results if result.problem is not None}


def finish(results: list[Result], lines: list[dict[str, Any]], out: Path | None) -> None:
    """Append the lines to the file that was asked for, and name what could not be computed."""
    append(lines, out)
    for metric, reason in problems(results).items():
        show_error(f"{metric} could not be computed: {reason}")
    if len(lines) < len(results):
        raise typer.Exit(1)


def class_rows(scores: DepthScores, names: list[str] | None) -> list[tuple[str, float, int]]:
    """(class, score, images), flattest class last."""
    rows = [
        (names[index] if names and index < len(names) else str(index), value, count)
        for index, (value, count) in scores.by_class().items()
    ]
    return sorted(rows, key=lambda row: -row[1])


def show_classes(name: str, rows: list[tuple[str, float, int]]) -> None:
    if not rows:
        return
    shown = rows if len(rows) <= SHOWN_CLASSES else [*rows[: SHOWN_CLASSES // 2], *rows[-SHOWN_CLASSES // 2 :]]
    cells = [(label, f"{value:.3f}", count) for label, value, count in shown]
    title = f"{name} by class" + (f" (first and last of {len(rows)})" if len(shown) < len(rows) else "")
    show(table(title, ["class", "score", "images"], cells, right=(1, 2)))


def show_results(title: str, results: list[Result]) -> None:
    """One row for each number; names of the feature networks are part of the score's name where they matter."""
    from threedgp.config.metric_names import larger_is_better

    rows = []
    for result in results:
        settings = result.settings
        for name, value in result.results.items():
            first = name == next(iter(result.results))
            part = PARTS.get(name.removeprefix(f"{result.metric}_"))
            better = ("higher" if larger_is_better(name) else "lower") if first or part == "recall" else ""
            label = result.label if first and part in (None, "mean") else f"  {part}"
            if first and part == "precision":
                rows.append((result.label, "", "", f"{settings['num_gen']:,}", f"{settings['num_real']:,}"))
                first = False
            counts = (f"{settings['num_gen']:,}", count(settings.get("num_real"))) if first else ("", "")
            rows.append((label, number(value), better, *counts))
        if settings.get("weights_verified") is False:
            show_note(f"{result.metric} was computed with unverified weights.")
    show(table(title, ["score", "value", "better", "images", "real"], rows, right=(1, 3, 4)))
    say(f"Names: {', '.join(result.metric for result in results)}")


def count(images: int | None) -> str:
    return f"{images:,}" if images else "-"


def number(value: float) -> str:
    """Five digits; rounding noise around zero is zero."""
    return f"{value:.5g}" if abs(value) > 1e-9 else "0"


def append(lines: list[dict[str, Any]], out: Path | None) -> None:
    if out is None:
        return
    from threedgp.files import append_json_line

    for line in lines:
        append_json_line(out, line)
