"""`3dgp render`: videos, grids and meshes of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from threedgp_cli.console import (
    JsonOption,
    WorkspaceOption,
    print_json,
    progress,
    say,
    show,
    show_error,
    table,
    takes_options,
)

if TYPE_CHECKING:
    from threedgp.config.workspace import Workspace
    from threedgp.inference.jobs import Rendered
    from threedgp.inference.model import TrainedModel
    from threedgp.progress import Progress
    from threedgp.runs.run import Run

app = typer.Typer(help="Look at a model: videos along a trajectory, grids of pictures, meshes.", no_args_is_help=True)


MODEL, SAMPLES, VIEW, RESULT = "Model", "Samples", "View", "Result"


TargetArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN|CHECKPOINT]", help="A run or a checkpoint's folder.", show_default="newest run"),
]
WhichOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="best|latest|KIMG", help="Which one.", show_default="best", rich_help_panel=MODEL
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1.", show_default="a GPU", rich_help_panel=MODEL)
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Pictures at a time.", show_default="the profile's", rich_help_panel=MODEL),
]
SizeOption = Annotated[
    int | None,
    typer.Option("--size", min=1, help="Side in pixels.", show_default="as in training", rich_help_panel=VIEW),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model is shown, and where things are."""

    target: TargetArgument = None
    checkpoint: WhichOption = None
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Training set, for class names.", show_default="the run's", rich_help_panel=MODEL),
    ] = None
    device: DeviceOption = None
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File or folder.", show_default="renders/...", rich_help_panel=RESULT),
    ] = None
    record: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="JSON", help="Repeat an earlier render; options change it.", rich_help_panel=RESULT
        ),
    ] = None
    workspace: WorkspaceOption = None
    json_output: JsonOption = False


@dataclass(frozen=True)
class SampleOptions:
    """Which samples; the fields are those of `inference.settings`, None where nothing was said."""

    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", metavar="0-15,20", help="Numbers, ranges.", show_default="0-15; mesh: 0", rich_help_panel=SAMPLES
        ),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes", metavar="1-4,7,NAME", help="Numbers, ranges, names; all seeds of each.",
            show_default="one drawn by each seed", rich_help_panel=SAMPLES,
        ),
    ] = None  # fmt: skip
    truncation: Annotated[
        float | None,
        typer.Option(
            "--truncation", help="1: full variety, 0: the class's mean.", show_default="0.7", rich_help_panel=SAMPLES
        ),
    ] = None
    camera: Annotated[
        Literal["mean", "posterior"] | None,
        typer.Option("--camera", help="One for all, or each sample's own.", show_default="mean", rich_help_panel=VIEW),
    ] = None
    batch: BatchOption = None


@dataclass(frozen=True)
class PictureOptions(SampleOptions):
    """How grids and videos show them."""

    interpolate: Annotated[
        int | None,
        typer.Option(
            "--interpolate", min=2, metavar="N", help="Go in N steps from each first to each second seed.",
            rich_help_panel=SAMPLES,
        ),
    ] = None  # fmt: skip
    trajectory: Annotated[
        str | None,
        typer.Option(
            "--trajectory", help="front_circle, points, point, line, wiggle, orbit, spiral.", rich_help_panel=VIEW
        ),
    ] = None
    motion: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the trajectory: yaw_diff=0.6.", rich_help_panel=VIEW),
    ] = None
    size: SizeOption = None
    steps: Annotated[
        float | None,
        typer.Option("--steps", help="Times the ray samples of training.", show_default="2", rich_help_panel=VIEW),
    ] = None
    far_offset: Annotated[
        float | None,
        typer.Option(
            "--far-offset", help="Look so much farther than in training.", show_default="0; as published: 1",
            rich_help_panel=VIEW,
        ),
    ] = None  # fmt: skip
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="rgb|depth|both", help="Side by side; also adapted: depth as trained on.",
            show_default="rgb", rich_help_panel=VIEW,
        ),
    ] = None  # fmt: skip
    captions: Annotated[
        bool | None,
        typer.Option(
            "--captions/--no-captions", help="Class and seed under each.", show_default="no", rich_help_panel=RESULT
        ),
    ] = None
    columns: Annotated[int | None, typer.Option("--columns", min=1, help="Tiles a row.", rich_help_panel=RESULT)] = None
    per_file: Annotated[
        int | None,
        typer.Option("--per-file", min=1, help="Samples in one file.", show_default="16", rich_help_panel=RESULT),
    ] = None


@dataclass(frozen=True)
class VideoOptions(PictureOptions):
    """And videos alone."""

    format: Annotated[
        Literal["mp4", "gif", "webp", "png"] | None,
        typer.Option("--format", help="png: single frames.", show_default="mp4", rich_help_panel=RESULT),
    ] = None
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames a second.", show_default="30", rich_help_panel=RESULT)
    ] = None
    crf: Annotated[
        int | None, typer.Option("--crf", help="MP4: 0 lossless to 51.", show_default="10", rich_help_panel=RESULT)
    ] = None


@dataclass(frozen=True)
class GridOptions(PictureOptions):
    """And grids alone."""

    format: Annotated[
        Literal["png", "jpg"] | None, typer.Option("--format", show_default="png", rich_help_panel=RESULT)
    ] = None


@dataclass(frozen=True)
class MeshOptions(SampleOptions):
    """How surfaces are found and written."""

    preview_size: Annotated[
        int | None,
        typer.Option("--size", help="Side of a preview's tile.", show_default="256", rich_help_panel=VIEW),
    ] = None
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", help="Density samples an axis.", show_default="256", rich_help_panel=RESULT),
    ] = None
    cube_size: Annotated[
        float | None,
        typer.Option("--cube-size", help="Side, world units.", show_default="the scene's", rich_help_panel=RESULT),
    ] = None
    threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold", metavar="opacity:0.5", help="Or density:25, percentile:95.", rich_help_panel=RESULT
        ),
    ] = None
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="ply,obj,glb,mrc", help="One or more.", show_default="ply", rich_help_panel=RESULT
        ),
    ] = None
    all_components: Annotated[
        bool | None,
        typer.Option(
            "--all-components/--largest", help="Keep loose parts.", show_default="largest", rich_help_panel=RESULT
        ),
    ] = None
    crop: Annotated[
        bool | None,
        typer.Option(
            "--crop/--no-crop", help="Cut off the lower and near parts.", show_default="no", rich_help_panel=RESULT
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--world", help="Make the diagonal 1 instead of keeping world units.", show_default="world",
            rich_help_panel=RESULT,
        ),
    ] = None  # fmt: skip


@app.command("video")
@takes_options
def video(model: ModelOptions, options: VideoOptions) -> None:
    """A video of samples side by side, moving along a trajectory (front_circle unless told otherwise)."""
    _render("video", model, options)


@app.command("grid")
@takes_options
def grid(model: ModelOptions, options: GridOptions) -> None:
    """A picture of samples, each seen from the points of a trajectory (points unless told otherwise)."""
    _render("grid", model, options)


@app.command("mesh")
@takes_options
def mesh(model: ModelOptions, options: MeshOptions) -> None:
    """The surface of each sample as a coloured mesh, with a preview picture."""
    _render("mesh", model, options)


def _given(options: SampleOptions) -> dict[str, Any]:
    """What was said, as settings understand it; classes as they were written."""
    from threedgp.inference.grid import parse_panels
    from threedgp.inference.latents import parse_seeds

    readers: dict[str, Callable[[Any], Any]] = {
        "seeds": parse_seeds,
        "motion": _motion,
        "show": parse_panels,
        "formats": lambda text: [part.strip().lower() for part in text.split(",")],
    }
    said = {name: value for name, value in vars(options).items() if value not in (None, [])}
    return {name: readers[name](value) if name in readers else value for name, value in said.items()}


def _motion(settings: list[str]) -> dict[str, str]:
    from threedgp.errors import UsageError

    pairs = [setting.partition("=") for setting in settings]
    for key, separator, value in pairs:
        if not key.strip() or not separator or not value.strip():
            raise UsageError(f"--set {key}{separator}{value}: write it as KEY=VALUE, for example yaw_diff=0.6.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _render(kind: str, chosen: ModelOptions, options: SampleOptions) -> None:
    """Settings from an earlier record, over them those of the command line, under them the usual ones; then work."""
    from threedgp.config.workspace import Workspace
    from threedgp.inference.jobs import render_grid, render_video
    from threedgp.inference.latents import parse_classes
    from threedgp.inference.mesh_job import render_mesh
    from threedgp.inference.outputs import output_base, wanted_format
    from threedgp.inference.settings import changed_settings, complete_settings, read_record

    place, listener = Workspace.find(chosen.workspace), progress()
    given = wanted_format(kind, chosen.out, _given(options))
    earlier, made_with = read_record(chosen.record, kind) if chosen.record else ({}, None)
    model = load_model(place, chosen.target, chosen.checkpoint, made_with, chosen.data, chosen.device, listener)
    if "classes" in given:
        given["classes"] = parse_classes(given["classes"], model.profile.data.num_classes, model.class_names)
    settings = complete_settings(
        kind,
        changed_settings(earlier, given),
        is_2d=model.is_2d,
        imported=model.imported,
        batch=model.profile.training.test_batch_gpu,
    )
    if model.is_2d and ("trajectory" in given or "motion" in given):
        listener.note("A 2D model has one view of each sample, so the trajectory does not matter.")
    base = output_base(kind, chosen.out, place.renders, f"{model.run}-{model.kimg}kimg", settings)
    render: Any = {"video": render_video, "grid": render_grid, "mesh": render_mesh}[kind]
    _report(render(model, settings, base, listener), chosen.json_output)


def load_model(
    place: Workspace,
    target: str | None,
    which: str | None,
    made_with: dict[str, str] | None,
    data: Path | None,
    device: str | None,
    listener: Progress,
) -> TrainedModel:
    """The checkpoint asked for, else the one an earlier render was made with, else the newest run's best."""
    from threedgp.errors import CheckpointError
    from threedgp.inference.model import TrainedModel
    from threedgp.processes import choose_device
    from threedgp.runs.run import find_checkpoint

    chosen = choose_device(device)
    repeated = made_with if target is None and which is None else None
    if repeated is not None:
        target, which = repeated["run"], repeated["name"]
    run, path = find_checkpoint(place, target, which or "best", listener)
    model = TrainedModel.load(path, chosen, data or _training_set(place, run))
    if repeated is not None and model.sha256 != repeated["sha256"]:
        raise CheckpointError(
            f"Checkpoint {path} has other weights than the one that render was made with. Name a run to render the "
            "same samples with it."
        )
    say(f"Run {model.run}, checkpoint at {model.kimg} thousand images", json_output=True)
    return model


def _training_set(place: Workspace, run: Run) -> Path | None:
    """The run's training set, where it is still at hand."""
    from threedgp.errors import ThreeDGPError
    from threedgp.runs.training_set import training_data

    try:
        path = training_data(place, run.profile, run)
    except ThreeDGPError:
        return None
    return path if path.exists() else None


def _report(rendered: Rendered, json_output: bool) -> None:
    if json_output:
        print_json(
            {
                "files": [str(path) for path in rendered.files],
                "record": None if rendered.record is None else str(rendered.record),
                "samples": rendered.samples,
                "seconds": {part: round(seconds, 3) for part, seconds in rendered.seconds.items()},
                "failed": rendered.failed,
            }
        )
    else:
        rows = [(str(path), _size(path)) for path in [*rendered.files, rendered.record] if path is not None]
        show(table(None, ["written", "size"], rows, right=(1,)))
        say(time_split(rendered.seconds))
    for label, reason in rendered.failed.items():
        show_error(f"{label}: {reason}")
    if rendered.failed:
        raise typer.Exit(1)


def time_split(seconds: dict[str, float]) -> str:
    """One line: the total, and the share of each part in percent."""
    from threedgp.inference.sampler import NETWORK_PARTS

    def share(part: str) -> str:
        return f"{part} {100 * seconds[part] / seconds['total']:.0f}"

    inside = ", ".join(share(part) for part in seconds if part in NETWORK_PARTS)
    others = [f"{share(part)} %" for part in seconds if part not in (*NETWORK_PARTS, "network", "total")]
    return f"{seconds['total']:.1f} s: " + ", ".join([f"{share('network')} % ({inside})", *others])


def _size(path: Path) -> str:
    if path.is_dir():
        return f"{len(list(path.iterdir()))} files"
    return f"{path.stat().st_size / 1000:,.1f} kB"
