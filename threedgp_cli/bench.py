"""`3dgp bench`: how fast this machine does the work, next to the plain way of doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threedgp_cli.console import JsonOption, print_json, progress, say, show, table

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.command()
def data(
    count: Annotated[int, typer.Option("-n", "--count", min=8, help="Photos of 2000x1500 (4x as many small).")] = 96,
    size: Annotated[int, typer.Option("-s", "--size", min=1, help="Side of the resized images.")] = 256,
    jobs: Annotated[list[int] | None, typer.Option("-j", "--jobs", min=1, show_default="1 and 2")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Best of so many runs.")] = 3,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Folder for temporary files.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Images a second of every data stage, on photos made for it, beside a plain Pillow script."""
    from threedgp.benchmarks.bench_data import bench_data

    workers = tuple(jobs or (1, 2))
    timings = list(
        bench_data(count=count, size=size, jobs=workers, repeats=repeats, scratch=scratch, progress=progress())
    )
    if json_output:
        print_json([{**timing._asdict(), "ratio": timing.ratio} for timing in timings])
    rows = [
        (
            timing.stage,
            timing.photos,
            timing.jobs,
            f"{timing.images_per_second:.1f}",
            f"{timing.plain_per_second:.1f}" if timing.plain_per_second else "",
            f"{timing.ratio:.2f}x" if timing.ratio else "",
            "" if timing.psnr is None else "exact" if timing.psnr == float("inf") else f"{timing.psnr:.1f} dB",
        )
        for timing in timings
    ]
    columns = ["stage", "photos", "jobs", "images/s", "plain images/s", "ratio", "loss (PSNR)"]
    show(table(f"Data stages, to {size}x{size} PNG", columns, rows, right=(2, 3, 4, 5)), json_output=json_output)
    say("plain: Pillow's open, crop, Lanczos and save with their defaults, in joblib.", json_output=json_output)
