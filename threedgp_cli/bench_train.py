"""`3dgp bench train|ops`: the training's speed, beside plain PyTorch and beside what the machine could do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from threedgp_cli.console import JsonOption, SetOption, print_json, progress, say, show, table

RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Runs of each way, alternating.")]


def bench_train(
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

    Images are random numbers, so no data set is needed. The limit is what the convolutions and matrix products of an
    iteration would take alone, each measured at its shape.
    """
    from threedgp.config.profile import load_profile
    from threedgp.errors import UsageError

    resolved = load_profile(profile, list(overrides or []))
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, not {device}.")

    import torch

    from threedgp.benchmarks.bench_train import bench_train as measure
    from threedgp.ops import native
    from threedgp.ops.allocator import keep_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU, and PyTorch finds none here.")
    if device == "cpu":
        keep_memory()
        native.available()
    if threads is not None:
        torch.set_num_threads(threads)
    bench = measure(resolved, device=device, rounds=rounds, progress=progress())
    if json_output:
        print_json(_as_dict(bench, device))
        return
    batch = resolved.training.batch_size
    rows = []
    for timing in bench.timings:
        limit = bench.limits[timing.variant.precision]
        rows.append(
            (
                timing.variant.name,
                f"{timing.median * 1e3:.0f}",
                f"{batch / timing.median:.1f}",
                f"{bench.ratio(timing):.2f}x",
                f"{limit.flops / timing.median / 1e9:.0f}",
                f"{limit.rate / 1e9:.0f}",
                f"{bench.fraction(timing):.0%}",
                f"{timing.peak_bytes / 2**20:.0f}",
            )
        )
    columns = ["path", "ms", "images/s", "speed", "GFLOP/s", "limit", "reached", "peak MiB"]
    title = f"One iteration of {resolved.name} on {device}, batch {batch}, {torch.get_num_threads()} CPU threads"
    show(table(title, columns, rows, right=range(1, 8)))
    total = sum(bench.parts.values())
    parts = [(name, f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}") for name, seconds in bench.parts.items()]
    show(table(None, ["part of the fastest", "ms", "share"], parts, right=(1, 2)))
    say("limit: GFLOP/s of each convolution and matrix product of an iteration alone, at its shape.")


def _as_dict(bench: Any, device: str) -> dict[str, Any]:
    import torch

    return {
        "profile": bench.profile.name,
        "device": device,
        "threads": torch.get_num_threads(),
        "batch_size": bench.profile.training.batch_size,
        "paths": [
            {
                "name": timing.variant.name,
                "precision": timing.variant.precision,
                "seconds_per_iteration": timing.median,
                "images_per_second": bench.profile.training.batch_size / timing.median,
                "ratio_to_plain": bench.ratio(timing),
                "flops_per_second": bench.limits[timing.variant.precision].flops / timing.median,
                "limit_flops_per_second": bench.limits[timing.variant.precision].rate,
                "peak_flops_per_second": bench.limits[timing.variant.precision].peak,
                "fraction_of_limit": bench.fraction(timing),
                "peak_bytes": timing.peak_bytes,
            }
            for timing in bench.timings
        ],
        "parts_seconds": bench.parts,
    }


def bench_ops(rounds: RoundsOption = 7, json_output: JsonOption = False) -> None:
    """Time the fused CPU operations beside their plain PyTorch forms."""
    from threedgp.benchmarks.bench_ops import bench_ops as measure
    from threedgp.errors import UsageError
    from threedgp.ops import native
    from threedgp.ops.allocator import keep_memory

    keep_memory()
    if not native.available():
        raise UsageError("There are no native operations to compare: install a C++ compiler (g++) and unset "
                         "THREEDGP_NATIVE.")  # fmt: skip
    timings = list(measure(rounds=rounds, progress=progress()))
    if json_output:
        ratios = [{"forward_ratio": timing.forward_ratio, "ratio": timing.ratio} for timing in timings]
        print_json([timing._asdict() | ratio for timing, ratio in zip(timings, ratios, strict=True)])
        return
    rows = [
        (
            timing.name,
            f"{timing.plain_forward:.2f}",
            f"{timing.forward:.2f}",
            f"{timing.forward_ratio:.1f}x",
            f"{timing.plain_both:.2f}",
            f"{timing.both:.2f}",
            f"{timing.ratio:.1f}x",
        )
        for timing in timings
    ]
    columns = ["operation", "plain forward ms", "fast", "speed", "plain with backward ms", "fast", "speed"]
    show(table("Operations in float32", columns, rows, right=range(1, 7)))


def register(app: typer.Typer) -> None:
    """Add the commands to `3dgp bench`."""
    app.command("train")(bench_train)
    app.command("ops")(bench_ops)
