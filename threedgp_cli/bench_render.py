"""`3dgp bench render`: how many pictures a second, and where the time goes."""

from __future__ import annotations

from typing import Annotated

import typer

from threedgp_cli.console import JsonOption, WorkspaceOption, print_json, progress, say, show, table
from threedgp_cli.render import BatchOption, DeviceOption, SizeOption, TargetArgument, WhichOption, load_model


def bench_render(
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
    from threedgp.benchmarks.bench_render import bench_render as measure
    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import Workspace
    from threedgp.errors import UsageError
    from threedgp.inference.model import TrainedModel, choose_device
    from threedgp.inference.settings import complete_settings

    if profile is not None:
        if target is not None or checkpoint is not None:
            raise UsageError("--profile times an untrained model: leave the run and --checkpoint out.")
        model = TrainedModel.untrained(load_profile(profile), choose_device(device))
    else:
        model = load_model(Workspace.find(workspace), target, checkpoint, None, None, device, progress())
    given = {"seeds": list(range(samples)), "size": size, "motion": {"num_frames": frames}, "per_file": samples}
    settings = complete_settings(
        "video", given | ({"batch": batch} if batch else {}), batch=model.profile.training.test_batch_gpu
    )
    speed = measure(model, settings, progress())
    if json_output:
        print_json(
            {
                "device": str(model.device),
                "samples": speed.samples,
                "frames": speed.frames,
                "size": speed.size,
                "batch": settings.batch,
                "pictures_per_second": speed.pictures_per_second,
                "network_share": speed.network_share,
                "seconds": speed.seconds,
                "saved_by_planes": speed.saved_by_planes,
            }
        )
        return
    total = speed.seconds["total"]
    rest = total - speed.seconds["network"] - speed.seconds["compose"] - speed.seconds["encode"]
    rows = [(part, f"{spent:.2f}", f"{100 * spent / total:.1f} %") for part, spent in speed.seconds.items()]
    rows.insert(-1, ("rest", f"{rest:.2f}", f"{100 * rest / total:.1f} %"))
    title = f"{speed.frames} frames of {speed.samples} samples at {speed.size}x{speed.size} on {model.device}"
    show(table(title, ["part", "seconds", "share"], rows, right=(1, 2)))
    say(
        f"{speed.pictures_per_second:.1f} pictures/s; with planes made for every frame it would take "
        f"{speed.saved_by_planes:.2f} times as long."
    )


def register(app: typer.Typer) -> None:
    """Add `render` to `3dgp bench`."""
    app.command("render")(bench_render)
