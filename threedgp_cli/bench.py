"""`3dgp bench`: how fast this machine does the work, next to the plain way of doing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from threedgp_cli.console import JsonOption, SetOption, WorkspaceOption, print_json, progress, say, show, table
from threedgp_cli.render import BatchOption, DeviceOption, SizeOption, TargetArgument, WhichOption, load_model

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)

RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, help="Runs of each way, of which one number is made.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Runs of each way, alternating.")]


@app.command()
def data(
    count: Annotated[int, typer.Option("-n", "--count", min=8, help="Photos of 2000x1500 (4x as many small).")] = 96,
    size: Annotated[int, typer.Option("-s", "--size", min=1, help="Side of the resized images.")] = 256,
    jobs: Annotated[list[int] | None, typer.Option("-j", "--jobs", min=1, show_default="1 and 2")] = None,
    repeats: RepeatsOption = 3,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Folder for temporary files.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Images a second of every data stage, on photos made for it, beside a plain Pillow script."""
    from threedgp.benchmarks.bench_data import bench_data

    columns = [
        ("stage", "stage", "{}"),
        ("photos", "photos", "{}"),
        ("jobs", "jobs", "{}"),
        ("images/s", "images_per_second", "{:.1f}"),
        ("plain images/s", "plain_per_second", "{:.1f}"),
        ("ratio", "ratio", "{:.2f}x"),
        ("loss (PSNR)", "psnr", "{:.1f} dB"),
    ]
    timings = list(
        bench_data(
            count=count, size=size, jobs=tuple(jobs or (1, 2)), repeats=repeats, scratch=scratch, progress=progress()
        )
    )
    _report(f"Data stages, to {size}x{size} PNG", columns, timings, json_output)
    say("plain: Pillow's open, crop, Lanczos and save with their defaults, in joblib.", json_output=json_output)


@app.command("eval")
def metrics(
    dims: Annotated[int, typer.Option("--dims", min=16, max=8192, help="Feature dimensions.")] = 2048,
    repeats: RepeatsOption = 3,
    json_output: JsonOption = False,
) -> None:
    """Time the metrics; the Frechet distance beside scipy's matrix square root."""
    from threedgp.benchmarks.bench_metrics import bench_metrics

    columns = [
        ("work", "work", "{}"),
        ("seconds", "seconds", "{:.3f}"),
        ("usual way", "plain_seconds", "{:.3f}"),
        ("ratio", "ratio", "{:.1f}x"),
        ("difference", "difference", "{:.1e}"),
    ]
    _report("Metrics", columns, list(bench_metrics(dims=dims, repeats=repeats, progress=progress())), json_output)


@app.command()
def ops(rounds: RoundsOption = 7, json_output: JsonOption = False) -> None:
    """Time the fused CPU operations beside their plain PyTorch forms."""
    from threedgp.benchmarks.bench_ops import bench_ops
    from threedgp.errors import UsageError
    from threedgp.ops import native
    from threedgp.ops.allocator import keep_memory

    keep_memory()
    if not native.available():
        raise UsageError("There are no native operations to compare: get a C++ compiler (g++), unset THREEDGP_NATIVE.")
    columns = [
        ("operation", "name", "{}"),
        ("plain forward ms", "plain_forward", "{:.2f}"),
        ("fast", "forward", "{:.2f}"),
        ("speed", "forward_ratio", "{:.1f}x"),
        ("plain with backward ms", "plain_both", "{:.2f}"),
        ("fast", "both", "{:.2f}"),
        ("speed", "ratio", "{:.1f}x"),
    ]
    _report("Operations in float32", columns, list(bench_ops(rounds=rounds, progress=progress())), json_output)


@app.command()
def render(
    target: TargetArgument = None,
    checkpoint: WhichOption = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Time this profile's untrained model instead of a run's.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, max=64, help="Tiles of the video.")] = 4,
    frames: Annotated[int, typer.Option("--frames", min=2, help="Of the video.")] = 32,
    size: SizeOption = None,
    batch: BatchOption = None,
    device: DeviceOption = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Time a video of a model: pictures a second, and the share of time inside the networks."""
    from threedgp.benchmarks.bench_render import bench_render
    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import Workspace
    from threedgp.errors import UsageError
    from threedgp.inference.model import TrainedModel
    from threedgp.inference.settings import complete_settings
    from threedgp.processes import choose_device

    if profile is None:
        model = load_model(Workspace.find(workspace), target, checkpoint, None, None, device, progress())
    elif target is not None or checkpoint is not None:
        raise UsageError("--profile times an untrained model: leave the run and --checkpoint out.")
    else:
        model = TrainedModel.untrained(load_profile(profile), choose_device(device))
    given = {"seeds": list(range(samples)), "size": size, "motion": {"num_frames": frames}, "per_file": samples}
    given |= {"batch": batch} if batch else {}
    settings = complete_settings("video", given, batch=model.profile.training.test_batch_gpu)
    speed = bench_render(model, settings, progress())
    total = speed.seconds["total"]
    rest = 2 * total - sum(speed.seconds[part] for part in ("network", "compose", "encode", "total"))
    parts = [*list(speed.seconds.items())[:-1], ("rest", rest), ("total", total)]
    rows = [(part, f"{spent:.2f}", f"{100 * spent / total:.1f} %") for part, spent in parts]
    title = f"{speed.frames} frames of {speed.samples} samples at {speed.size}x{speed.size} on {model.device}"
    result = {
        **speed._asdict(),
        "device": str(model.device),
        "batch": settings.batch,
        "pictures_per_second": speed.pictures_per_second,
        "network_share": speed.network_share,
        "saved_by_planes": speed.saved_by_planes,
    }
    if json_output:
        print_json(result)
    show(table(title, ["part", "seconds", "share"], rows, right=(1, 2)), json_output=json_output)
    say(
        f"{speed.pictures_per_second:.1f} pictures/s; with planes made for every frame it would take "
        f"{speed.saved_by_planes:.2f} times as long.",
        json_output=json_output,
    )


@app.command()
def train(
    profile: Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a YAML file.")] = "demo64",
    overrides: SetOption = None,
    rounds: RoundsOption = 10,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; `train --procs` gives each process its share.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Time training iterations: plain PyTorch, and the fast paths in float32 and bfloat16.

    Images are random numbers, so no data set is needed. The limit is what a product of large matrices reaches.
    """
    from threedgp.config.profile import load_profile
    from threedgp.errors import UsageError

    resolved = load_profile(profile, list(overrides or []))
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, not {device}.")

    import torch

    from threedgp.benchmarks.bench_train import bench_train
    from threedgp.ops import native
    from threedgp.ops.allocator import keep_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU, and PyTorch finds none here.")
    if device == "cpu":
        keep_memory()
        native.available()
    if threads is not None:
        torch.set_num_threads(threads)
    speeds, parts = bench_train(resolved, device=device, rounds=rounds, progress=progress())
    batch, threads = resolved.training.batch_size, torch.get_num_threads()
    title = f"One iteration of {resolved.name} on {device}, batch {batch}, {threads} CPU threads"
    columns = [
        ("path", "name", "{}"),
        ("ms", "milliseconds", "{:.0f}"),
        ("images/s", "images_per_second", "{:.1f}"),
        ("speed", "ratio_to_plain", "{:.2f}x"),
        ("GFLOP/s", "gigaflops", "{:.0f}"),
        ("reached", "fraction_of_limit", "{:.0%}"),
        ("peak MiB", "peak_mebibytes", "{:.0f}"),
    ]
    result = {"profile": resolved.name, "device": device, "threads": threads, "batch_size": batch}
    result |= {"paths": [speed._asdict() for speed in speeds], "parts_seconds": parts}
    _report(title, columns, speeds, json_output, result)
    total = sum(parts.values())
    rows = [(name, f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}") for name, seconds in parts.items()]
    show(table(None, ["part of the fastest", "ms", "share"], rows, right=(1, 2)), json_output=json_output)


def _report(
    title: str, columns: Sequence[tuple[str, str, str]], records: Sequence[Any], json_output: bool, result: Any = None
) -> None:
    """Show what was measured; with --json, also print it as an object.

    Args:
        columns: heading, attribute of the records, and form of each column.
        result: the object; default: the records.
    """
    if json_output:
        print_json(result or [record._asdict() | {"ratio": record.ratio} for record in records])

    def cell(record: Any, attribute: str, form: str) -> str:
        value = getattr(record, attribute)
        return "" if value is None else form.format(value)

    rows = [[cell(record, *column[1:]) for column in columns] for record in records]
    right = [index for index, column in enumerate(columns) if column[2] != "{}"]
    show(table(title, [column[0] for column in columns], rows, right=right), json_output=json_output)
