"""`3dgp bench eval`: how long the metrics take on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from threedgp_cli.console import JsonOption, print_json, progress, show, table


def bench_eval(
    dims: Annotated[int, typer.Option("--dims", min=16, max=8192, help="Feature dimensions.")] = 2048,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Median of so many runs.")] = 3,
    json_output: JsonOption = False,
) -> None:
    """Time the metrics; the Frechet distance beside scipy's matrix square root."""
    from threedgp.benchmarks.bench_metrics import bench_metrics

    timings = list(bench_metrics(dims=dims, repeats=repeats, progress=progress()))
    if json_output:
        print_json([{**timing._asdict(), "ratio": timing.ratio} for timing in timings])
        return
    rows = [
        (
            timing.work,
            f"{timing.seconds:.3f}",
            "" if timing.plain_seconds is None else f"{timing.plain_seconds:.3f}",
            "" if timing.ratio is None else f"{timing.ratio:.1f}x",
            "" if timing.difference is None else f"{timing.difference:.1e}",
        )
        for timing in timings
    ]
    show(table("Metrics", ["work", "seconds", "usual way", "ratio", "difference"], rows, right=(1, 2, 3, 4)))


def register(app: typer.Typer) -> None:
    """Add the command to `3dgp bench`."""
    app.command("eval")(bench_eval)
