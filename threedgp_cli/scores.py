"""How `3dgp eval` shows and stores its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from threedgp_cli.console import print_json, progress, say, show, show_error, show_note, table

if TYPE_CHECKING:
    from threedgp.metrics.evaluate import Result
    from threedgp.metrics.nfs import DepthScores
    from threedgp.metrics.real_set import RealSet
    from threedgp.runs.run import Run

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
    run: Run,
    checkpoint: Path,
    results: list[Result],
    depths: dict[str, DepthScores],
    *,
    real: RealSet | None,
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
        classes[name] = scores.by_class()
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
        raise DataError(" ".join(dict.fromkeys(problems(results).values())))
    return found


def problems(results: list[Result]) -> dict[str, str]:
    """Metric -> why it could not be computed."""
    return {result.metric: result.problem for result in results if result.problem is not None}


def finish(results: list[Result], lines: list[dict[str, Any]], out: Path | None) -> None:
    """Append the lines to the file that was asked for, and name what could not be computed."""
    from threedgp.files import append_json_line

    if out is not None:
        for line in lines:
            append_json_line(out, line)
    for metric, reason in problems(results).items():
        show_error(f"{metric} could not be computed: {reason}")
    if len(lines) < len(results):
        raise typer.Exit(1)


def show_classes(name: str, rows: list[tuple[str, float, int]]) -> None:
    """A table of the score of each class, or of the first and the last."""
    if not rows:
        return
    shown = rows if len(rows) <= SHOWN_CLASSES else [*rows[: SHOWN_CLASSES // 2], *rows[-SHOWN_CLASSES // 2 :]]
    cells = [(label, f"{value:.3f}", str(count)) for label, value, count in shown]
    title = f"{name} by class" + (f" (first and last of {len(rows)})" if len(shown) < len(rows) else "")
    show(table(title, ["class", "score", "images"], cells, right=(1, 2)))


def show_results(title: str, results: list[Result]) -> None:
    """One row for each number; names of the feature networks are part of the score's name where they matter."""
    from threedgp.config.metric_names import larger_is_better

    rows = []
    for result in results:
        settings = result.settings
        counts = [f"{settings['num_gen']:,}", f"{settings['num_real']:,}" if settings.get("num_real") else "-"]
        parts = {name: PARTS.get(name.removeprefix(f"{result.metric}_")) for name in result.results}
        if "precision" in parts.values():
            rows.append([result.label, "", "", *counts])
            counts = ["", ""]
        for name, value in result.results.items():
            part = parts[name]
            decides = part in (None, "mean", "precision", "recall")
            better = ("higher" if larger_is_better(name) else "lower") if decides else ""
            label = result.label if part in (None, "mean") else f"  {part}"
            number = f"{value:.5g}" if abs(value) > 1e-9 else "0"  # rounding noise around zero is zero
            rows.append([label, number, better, *counts])
            counts = ["", ""]
        if settings.get("weights_verified") is False:
            show_note(f"{result.metric} was computed with unverified weights.")
    show(table(title, ["score", "value", "better", "images", "real"], rows, right=(1, 3, 4)))
    say(f"Names: {', '.join(result.metric for result in results)}")
