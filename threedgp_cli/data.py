"""`3dgp data`: from a folder of photos to a training set, one command a stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from threedgp_cli.console import (
    DatasetOption,
    JobsOption,
    JsonOption,
    WorkspaceOption,
    print_json,
    progress,
    say,
    show,
    table,
    takes_options,
)

if TYPE_CHECKING:
    from threedgp.config.workspace import DatasetFolder
    from threedgp.data.check import CheckReport
    from threedgp.data.stage import Policy, Stage

app = typer.Typer(
    help="Turn a folder of photos into a training set: select, depth, merge, resize, embed, check.",
    no_args_is_help=True,
)
SHOWN_PROBLEMS = 40


def _parse_errors(text: str) -> float:
    """`5%`, `0.05` or a number of files."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (value > 1 and (text.endswith("%") or value != int(value))):
        raise typer.BadParameter(f"'{text}' is neither a share (5%, 0.05) nor a number of files (20).")
    return 0.9999999 if text.endswith("%") and value == 1 else value


InputOption = Annotated[Path | None, typer.Option("-i", "--input", help="Folder or zip to read.")]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Redo a folder that was made with other settings.")]
SizeOption = Annotated[
    int | None, typer.Option("-s", "--size", help="Side of the set in pixels.", show_default="the newest set")
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Pictures shown to the network at once.")]
WeightsOption = Annotated[Path | None, typer.Option(help="File with the network's weights.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing weights (checksum is verified).")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if there is one")]


@dataclass
class SetOptions:
    """Which data set, and how the answer is shown."""

    dataset: DatasetOption = None
    workspace: WorkspaceOption = None
    json_output: JsonOption = False

    @property
    def folder(self) -> DatasetFolder:
        """The chosen data set; to be asked for only when a path is not given."""
        from threedgp.config.workspace import Workspace

        return Workspace.find(self.workspace).dataset(self.dataset)


@dataclass
class StageOptions(SetOptions):
    """What every stage takes."""

    input: InputOption = None
    output: OutputOption = None
    jobs: JobsOption = None
    on_error: Annotated[Literal["skip", "fail"], typer.Option(help="What to do with a broken file.")] = "skip"
    max_errors: Annotated[
        Any,
        typer.Option(
            parser=_parse_errors,
            metavar="SHARE|COUNT",
            help="Exit with an error, after all is done, if more files were broken.",
            show_default="1%, but at least 10 files",
        ),
    ] = None

    def policy(self) -> Policy:
        """How a stage works, in its own words."""
        return {
            "jobs": self.jobs, "on_error": self.on_error, "max_errors": self.max_errors, "progress": progress(),
        }  # fmt: skip


@dataclass
class WorkerOptions(StageOptions):
    """What stages take whose worker processes may run on a cluster."""

    backend: Annotated[Literal["loky", "dask", "ray"], typer.Option(help="Where workers run: here, or a cluster.")] = (
        "loky"
    )
    overwrite: OverwriteOption = False

    def policy(self) -> Policy:
        return {**super().policy(), "backend": self.backend, "overwrite": self.overwrite}


@dataclass
class ExtractorOptions:
    """Where the network of `select` and `embed` comes from and runs."""

    weights: WeightsOption = None
    download: DownloadOption = False
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Accept weights whose checksum is not the published one.")
    ] = False
    device: DeviceOption = None


@dataclass
class SelectOptions:
    """What `select` keeps."""

    keep_ratio: Annotated[str | None, typer.Option(help="Share to keep, as 1/3 or 0.3.", show_default="1/3")] = None
    keep: Annotated[int | None, typer.Option(min=1, help="Number of photos to keep (of each class).")] = None
    per_class: Annotated[
        bool | None,
        typer.Option("--per-class/--global", help="One choice a class folder, or over all.", show_default="by folders"),
    ] = None
    reg_covar: Annotated[float, typer.Option(help="Added to each variance of the features.")] = 1e-5
    extractor: Annotated[str, typer.Option(help="inception, tf_efficientnet_lite0 (offline), or a timm model.")] = (
        "inception"
    )
    link: Annotated[Literal["copy", "hardlink", "symlink"], typer.Option(help="How kept photos get there.")] = "copy"
    montage: Annotated[bool, typer.Option(help="Draw the most and least typical.")] = True
    square: Annotated[int, typer.Option(min=32, help="Side at which the network sees the photos.")] = 256
    batch_size: BatchOption = 64


@app.command()
@takes_options
def select(choice: SelectOptions, network: ExtractorOptions, stage: StageOptions) -> None:
    """Keep the most typical photos of each class and leave outliers behind (images -> selected)."""
    from threedgp.data.select import run_select

    source, output = stage.input or stage.folder.images, stage.output or stage.folder.selected
    report = run_select(source, output, **asdict(choice), **asdict(network), **stage.policy())
    _show_report(report, "kept", stage.json_output)


@dataclass
class EstimatorOptions:
    """The network of `depth`."""

    name: Annotated[
        str, typer.Option("--estimator", help="leres, hf:MODEL-ID (transformers), or synthetic (made up, for trials).")
    ] = "leres"
    backbone: Annotated[
        str | None, typer.Option(help="Of LeReS: resnet50 or resnext101.", show_default="whose weights are found")
    ] = None
    dtype: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="Number format of the network.")] = "fp32"
    prediction: Annotated[
        Literal["auto", "depth", "disparity"],
        typer.Option(
            help="What an hf: network returns: depth (larger is farther) or disparity (larger is nearer); auto knows "
            "common ones.",
        ),
    ] = "auto"
    weights: WeightsOption = None
    sha256: Annotated[str | None, typer.Option(help="Checksum that the weights must have.")] = None
    download: DownloadOption = False


@app.command()
@takes_options
def depth(
    network: EstimatorOptions,
    stage: StageOptions,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the work.")] = 1,
    batch: BatchOption = 8,
    colormap: Annotated[bool, typer.Option("--colormap", help="Also write colour previews (depth-preview).")] = False,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Estimate one depth map for every photo (selected or images -> depth); larger is farther."""
    from threedgp.data.depth import run_depth
    from threedgp.pretrained.depth_estimators import choose_estimator

    source = stage.input or stage.folder.photos()
    policy: Policy = {**stage.policy(), "overwrite": overwrite}
    spec = choose_estimator(**asdict(network), progress=policy["progress"])
    output = stage.output or stage.folder.depth
    report = run_depth(source, output, spec, device=device, gpus=gpus, batch_size=batch, colormap=colormap, **policy)
    _show_report(report, "estimated", stage.json_output)


@app.command()
@takes_options
def merge(
    stage: WorkerOptions,
    depth_folder: Annotated[
        Path | None, typer.Option("--depth", help="Folder of depth maps.", show_default="depth")
    ] = None,
    depth_is: Annotated[
        Literal["far-large", "near-large"],
        typer.Option(
            help="Which way round the maps are: far-large (larger is farther: LeReS, metric depth) or near-large "
            "(larger is nearer: MiDaS, Depth-Anything), which are turned round.",
        ),
    ] = "far-large",
) -> None:
    """Put every photo beside its depth map (selected or images, and depth -> merged)."""
    from threedgp.data.merge import merge as run_merge

    source, maps = stage.input or stage.folder.photos(), depth_folder or stage.folder.depth
    report = run_merge(source, maps, stage.output or stage.folder.merged, depth_is=depth_is, **stage.policy())
    _show_report(report, "merged", stage.json_output)


@dataclass
class PictureOptions:
    """What becomes of each picture; see `ResizeSettings`."""

    format: Annotated[Literal["png", "jpg"], typer.Option(help="Of the images; depth maps are 16-bit PNG.")] = "png"
    fast: Annotated[
        bool, typer.Option("--fast", help="Decode large JPEGs at reduced size: 2x as fast, above 50 dB from exact.")
    ] = False
    labels: Annotated[str, typer.Option(help="auto (dataset.json, else class folders), none, or a JSON file.")] = "auto"
    drop_grey: Annotated[bool, typer.Option("--drop-grey", help="Leave out pictures without colour.")] = False
    min_size: Annotated[int, typer.Option(min=0, help="Leave out smaller photos. 0 enlarges them.")] = 0
    rename: Annotated[bool, typer.Option("--rename", help="Number the images instead of keeping their names.")] = False


@app.command()
@takes_options
def resize(
    pictures: PictureOptions,
    stage: WorkerOptions,
    size: Annotated[int, typer.Option("-s", "--size", help="Side of the square images in pixels.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="images, selected or merged. --from images makes full-SIZE, the whole set FID is measured against.",
            show_default="the newest stage there is",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with all class names, to keep a full set's numbering.")
    ] = None,
    pack: Annotated[bool, typer.Option("--zip", help="Also pack the set into a zip beside it.")] = False,
) -> None:
    """Crop and resize photos and depth to squares, with labels (merged, selected or images -> SIZE)."""
    from threedgp.data.labels import read_classes
    from threedgp.data.resize import ResizeSettings
    from threedgp.data.resize import resize as run_resize
    from threedgp.errors import UsageError

    if source not in (None, "images", "selected", "merged"):
        raise UsageError(f"--from must be images, selected or merged, not '{source}'. For a path use -i.")
    if stage.input and source:
        raise UsageError("Give either --from or -i, not both.")
    output = stage.output or (stage.folder.full(size) if source == "images" else stage.folder.resized(size))
    report = run_resize(
        stage.input or (getattr(stage.folder, source) if source else stage.folder.prepared()),
        output,
        ResizeSettings(size, **asdict(pictures)),
        classes=read_classes(classes) if classes else None,
        pack=pack,
        **stage.policy(),
    )
    _show_report(report, "resized", stage.json_output)


@app.command()
@takes_options
def embed(
    network: ExtractorOptions,
    stage: StageOptions,
    model: Annotated[str, typer.Option(help="resnet50, tf_efficientnet_lite0 (offline), or a timm model.")] = (
        "resnet50"
    ),
    size: SizeOption = None,
    batch: BatchOption = 32,
) -> None:
    """Compute the features of every image that training distils (SIZE -> SIZE/embeddings)."""
    from threedgp.data.embed import run_embed
    from threedgp.data.source import embeddings_folder

    source = stage.input or _newest_set(stage.folder, size)
    output = stage.output or embeddings_folder(source)
    report = run_embed(source, output, model=model, batch_size=batch, **asdict(network), **stage.policy())
    _show_report(report, "embedded", stage.json_output)


@app.command()
@takes_options
def check(
    which: SetOptions,
    path: Annotated[Path | None, typer.Argument(help="Folder or zip.", show_default="the newest set")] = None,
    size: SizeOption = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every pixel, not only the headers.")] = False,
    jobs: JobsOption = None,
) -> None:
    """Check a set: pairs, sizes, modes, labels, embeddings. Exit code 1 if anything is wrong."""
    from threedgp.data.check import check as run_check

    if path is None:
        path = _newest_set(which.folder, size) if size or which.folder.sizes() else which.folder.prepared()
    report = run_check(path, decode=decode, jobs=jobs, progress=progress())
    if which.json_output:
        print_json(report.as_json())
    _show_check(report, which.json_output)
    raise typer.Exit(1 if report.problems else 0)


@app.command()
def demo(
    count: Annotated[int, typer.Option("-n", "--count", help="Number of images.")] = 2048,
    size: Annotated[int, typer.Option("-s", "--size", help="Side of the images in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, another world.")] = 0,
    exact_depth: Annotated[
        bool, typer.Option("--exact-depth", help="Store true distances instead of an estimate's unknown scale.")
    ] = False,
    jobs: JobsOption = None,
    output: OutputOption = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Render a small set of solid objects with depth, so that everything can be tried offline (-> data/demo)."""
    from threedgp.config.workspace import Workspace
    from threedgp.demo_world.scenes import write_demo_set

    root = output or Workspace.find(workspace).data / "demo"
    made = write_demo_set(root, count, size, seed, exact_depth, jobs, progress())
    if json_output:
        print_json(made.__dict__)
    say(f"{made.images} images of {len(made.per_class)} classes in {made.root}", json_output=json_output)
    say(f"Look at them: {made.contact_sheet}", json_output=json_output)


def _newest_set(folder: DatasetFolder, size: int | None) -> Path:
    """The resized set of this side, or the one that was written last."""
    from threedgp.errors import DataError

    sizes = folder.sizes()
    if not sizes or (size is not None and size not in sizes):
        raise DataError(f"{folder.root} has no resized set. Make it with: 3dgp data resize -s {size or 256}")
    if size is not None:
        return folder.resized(size)
    return max((folder.resized(side) for side in sizes), key=lambda path: path.stat().st_mtime)


def _show_report(report: Stage, verb: str, json_output: bool) -> None:
    if json_output:
        print_json(report.as_json())
    lines = [f"{report.images} images of {report.source} {verb} in {report.output}"]
    for files, what in ((report.skipped, "broken files skipped"), (report.dropped, "files left out")):
        if files:
            lines.append(f"{len(files)} {what}; reasons in {report.output / report.manifest}")
    if "zip" in report.extra:
        lines.append(f"Packed into {report.extra['zip']}")
    say("\n".join(lines), json_output=json_output)


def _show_check(report: CheckReport, json_output: bool) -> None:
    def counted(values: dict[str, int]) -> str:
        listed = [f"{name} ({count})" for name, count in sorted(values.items(), key=lambda item: -item[1])]
        return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")

    rows = [
        ("images", f"{report.images}: {counted(report.sizes)}, {counted(report.modes)}"),
        ("depth maps", f"{report.depth_maps}: {counted(report.depth_modes)}" if report.depth_maps else "none"),
        ("labels", f"{report.labels} images" if report.labels is not None else "none"),
        ("classes", f"{len(report.classes)}: {counted(report.classes)}"),
        ("embeddings", ", ".join(f"{name} {n}x{d}" for name, (n, d) in report.embeddings.items()) or "none"),
        ("read", "every pixel" if report.decoded else "headers (--decode reads every pixel)"),
    ]
    show(table(str(report.path), ["what", "found"], rows), json_output=json_output)
    shown = report.problems[:SHOWN_PROBLEMS]
    if shown:
        show(table(f"\n{len(report.problems)} problems", ["file", "problem"], shown), json_output=json_output)
    if len(report.problems) > len(shown):
        say(f"... and {len(report.problems) - len(shown)} more: --json lists all.", json_output=json_output)
    elif not shown:
        say("No problems.", json_output=json_output)
