"""`3dgp eval`: scores of checkpoints and of image folders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from threedgp_cli.console import JsonOption, WorkspaceOption, print_json, progress, show, table
from threedgp_cli.processes import is_first, is_worker, run_in_processes
from threedgp_cli.scores import class_rows, computed, finish, problems, report, show_classes, show_results

if TYPE_CHECKING:
    from threedgp.metrics.depth import DepthScores

app = typer.Typer(
    help="Score a checkpoint (fid, kid, pr, is, nfs, all), or one image folder against another (dataset).",
    no_args_is_help=True,
)


MOST_IMAGES = 10_000_000


class Extractor(str, Enum):
    inception = "inception"
    offline = "tf_efficientnet_lite0"


TargetArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN|CHECKPOINT]", help="A run or a checkpoint's folder.", show_default="newest run"),
]
WhichOption = Annotated[str, typer.Option("--checkpoint", metavar="best|latest|KIMG", help="Which one of the run.")]
NumberOption = Annotated[
    int, typer.Option("--n", min=1, max=MOST_IMAGES, help="Generated images, or depth maps of nfs.")
]
NumRealOption = Annotated[
    int | None, typer.Option("--num-real", min=1, help="Use a random part of the real set.", show_default="all of it")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Real images, folder or zip; for nfs the training set with its classes.",
        show_default="full-SIZE of the data set, else its SIZE",
    ),
]
ExtractorOption = Annotated[
    Extractor | None,
    typer.Option("--extractor", help="Feature network.", show_default="what the profile uses in training"),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Weight file of the feature network, where it is not found by itself.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing weights of feature networks.")]
UnverifiedOption = Annotated[
    bool, typer.Option("--allow-unverified-weights", help="Accept weights with another checksum; results say so.")
]
GpusOption = Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs on this machine, one process each.")]
ProcsOption = Annotated[int | None, typer.Option("--procs", min=1, help="Processes on CPUs, instead of GPUs.")]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="Images at a time and process.", show_default="the profile's")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Another seed makes other images.")]
CacheOption = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Keep statistics of real images, and go on with interrupted work.")
]
CacheDirOption = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where.", show_default="$THREEDGP_CACHE/metrics or ~/.cache/...")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Also append the result lines to this file.")]
AdaptorOption = Annotated[
    bool, typer.Option("--adaptor/--no-adaptor", help="Learned camera, or exactly frontal (not as published).")
]
QuantileOption = Annotated[
    str, typer.Option("--nfs-quantile", metavar="group|per-image", help="Density quantile of 4 images, or of each.")
]


@dataclass(frozen=True)
class Options:
    """Every option of the scores, once; a command shows those that it names."""

    target: TargetArgument = None
    number: NumberOption = 50_000
    num_depth: Annotated[int, typer.Option("--n-depth", min=1, help="Depth maps of the non-flatness score.")] = 256
    num_real: NumRealOption = None
    depth: Annotated[Path | None, typer.Option("--depth", help="Score a folder of depth maps instead.")] = None
    near: Annotated[float, typer.Option("--near", help="With --depth: smallest value.")] = 0.0
    far: Annotated[float, typer.Option("--far", help="With --depth: largest value.")] = 65535.0
    quantile: QuantileOption = "group"
    adaptor: AdaptorOption = True
    checkpoint: WhichOption = "best"
    data: DataOption = None
    extractor: ExtractorOption = None
    weights: WeightsOption = None
    download: DownloadOption = False
    unverified: UnverifiedOption = False
    gpus: GpusOption = None
    procs: ProcsOption = None
    batch: BatchOption = None
    seed: SeedOption = 0
    cache: CacheOption = True
    cache_dir: CacheDirOption = None
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Where to draw depths.", show_default="the run's folder")
    ] = None
    out: OutOption = None
    workspace: WorkspaceOption = None
    json_output: JsonOption = False


OF_DEPTH_FOLDERS = ("depth", "near", "far")
OF_DEPTH = ("num_depth", "quantile", "adaptor", "plot")
OF_IMAGES = (
    "number", "num_real", "extractor", "weights", "download", "unverified", "batch", "cache", "cache_dir",
)  # fmt: skip


def _command(
    name: str, function: Callable[[Options], None], help_text: str, *, without: Sequence[str], **defaults: Any
) -> None:
    """Add a command that is called with its `Options`; those in `without` it does not show."""
    hints = get_type_hints(Options, include_extras=True)
    shown = [option for option in fields(Options) if option.name not in without]

    def command(**values: Any) -> None:
        function(Options(**values))

    command.__annotations__ = {option.name: hints[option.name] for option in shown}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(option.name, option.default),
                annotation=hints[option.name],
            )
            for option in shown
        ]
    )
    app.command(name, help=help_text)(command)


def _nfs(options: Options) -> None:
    if options.depth is not None:
        _score_depth_folder(options.depth, options.near, options.far, options.plot, options.json_output)
    else:
        _score(["nfs"], replace(options, num_depth=options.number))


@app.command("dataset")
def dataset(
    real: Annotated[Path, typer.Argument(help="Folder or zip to compare with.")],
    scored: Annotated[Path, typer.Argument(help="Folder or zip to be scored.")],
    scores: Annotated[str, typer.Option("--scores", help="Any of fid, kid, pr, is, with commas.")] = "fid,kid,pr",
    extractor: Annotated[Extractor, typer.Option("--extractor", help="Feature network.")] = Extractor.inception,
    weights: WeightsOption = None,
    download: DownloadOption = False,
    unverified: UnverifiedOption = False,
    gpus: GpusOption = None,
    procs: ProcsOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time and process.")] = 64,
    seed: SeedOption = 0,
    cache: CacheOption = True,
    cache_dir: CacheDirOption = None,
    out: OutOption = None,
    json_output: JsonOption = False,
) -> None:
    """Compare two image folders, without any model."""
    from threedgp.errors import UsageError
    from threedgp.metrics.evaluate import RealSets, evaluate
    from threedgp.metrics.generator import choose_extractors
    from threedgp.metrics.images import RealImages
    from threedgp.metrics.plan import choose_names, compare_sizes

    families = [name.strip() for name in scores.split(",") if name.strip()]
    unknown = [name for name in families if name not in ("fid", "kid", "pr", "is")]
    if unknown or not families:
        raise UsageError(f"--scores knows fid, kid, pr and is, not '{', '.join(unknown) or scores}'.")
    options = Options(
        extractor=extractor,
        weights=weights,
        download=download,
        unverified=unverified,
        gpus=gpus,
        procs=procs,
        cache=cache,
        cache_dir=cache_dir,
    )
    images, listener = RealImages(scored), _progress(options)
    compare_sizes(real, scored, listener)
    offline = extractor is Extractor.offline
    specs = _parse(choose_names(families, num_gen=len(images), offline=offline))
    with _world(options) as world:
        networks = _networks(options, offline, world.device)
        specs = choose_extractors(specs, networks, listener)
        results = evaluate(
            specs,
            lambda count: images,
            RealSets(real),
            networks,
            batch=batch,
            seed=seed,
            cache=_cache(options),
            resume=cache,
            label="Scored images",
            world=world,
            progress=listener,
        )
    if is_first():
        where = {"real": str(real), "scored": str(scored)}
        lines = [{**result.line(None), **where} for result in computed(results)]
        if json_output:
            print_json({**where, "results": lines, "problems": problems(results)})
        else:
            show_results(f"{scored} against {real}", computed(results))
        finish(results, lines, out)


# ------------------------------------------------------------------------------------------------------------- the work


def _score(families: list[Any], options: Options) -> None:
    """Plan, check, score a checkpoint, and report."""
    from threedgp.config.workspace import Workspace
    from threedgp.runs.run import find_checkpoint, load_generator

    listener = _progress(options)
    place = Workspace.find(options.workspace)
    run, checkpoint = find_checkpoint(place, options.target, options.checkpoint, listener)
    profile = run.profile  # torch is imported only now: most mistakes are found by here

    from threedgp.metrics.evaluate import RealSets
    from threedgp.metrics.generator import choose_extractors, open_labels, score_generator
    from threedgp.metrics.plan import choose_names, choose_real_set, prefers_offline
    from threedgp.metrics.samples import Sampler
    from threedgp.runs.catalog import read_manifest

    offline = prefers_offline(profile) if options.extractor is None else options.extractor is Extractor.offline
    if profile.model.kind == "stylegan2" and len(families) > 1:
        families = [family for family in families if family != "nfs"]
    names = choose_names(
        families,
        num_gen=options.number,
        num_real=options.num_real,
        num_depth=options.num_depth,
        per_image=_per_image(options.quantile),
        offline=offline,
    )
    training_set, reason = _training_set(place, run)
    specs, real = _parse(names), None
    if any(spec.needs_real for spec in specs):
        choice = choose_real_set(options.data, training_set, profile.data.resolution, reason)
        for note in choice.notes:
            listener.note(note)
        real = RealSets(choice.path, profile.data.resolution, profile.data.mirror, options.seed)
    elif options.data is not None:
        training_set = options.data
    with _world(options) as world:
        networks = _networks(options, offline, world.device)
        specs = choose_extractors(specs, networks, listener)
        labels = open_labels(profile, training_set, listener)
        sampler = Sampler(load_generator(checkpoint, world.device), profile, labels, options.seed)
        results, depths = score_generator(
            specs,
            sampler,
            real,
            networks,
            batch=options.batch or profile.training.test_batch_gpu,
            checkpoint=read_manifest(checkpoint)["digest"],
            adaptor=options.adaptor,
            cache=_cache(options),
            resume=options.cache,
            world=world,
            progress=listener,
        )
    if is_first():
        report(
            run,
            checkpoint,
            results,
            depths,
            real,
            getattr(labels, "classes", None),
            options.plot,
            options.out,
            options.json_output,
        )


def _training_set(place: Any, run: Any) -> tuple[Path | None, str]:
    """The run's training set, or None and the reason why it is not here."""
    from threedgp.errors import ThreeDGPError
    from threedgp.launch.here import training_data

    try:
        path = training_data(place, run.profile, run)
    except ThreeDGPError as error:
        return None, str(error)
    return (path, "") if path.exists() else (None, f"The run's training set {path} is gone.")


@contextmanager
def _world(options: Options):
    """This process's place; starts the others first if several are asked for."""
    from threedgp.errors import ThreeDGPError
    from threedgp.launch.plan import choose_launch
    from threedgp.processes import join_world

    launch = choose_launch(gpus=options.gpus, procs=options.procs)
    if launch.processes > 1 and not is_worker():
        raise typer.Exit(run_in_processes(launch.processes))
    try:
        with join_world(launch.device) as world:
            yield world
    except ThreeDGPError as error:
        if is_first():
            raise
        raise typer.Exit(error.exit_code) from None  # the first process says it
    except KeyboardInterrupt:
        if not is_worker():
            raise
        raise typer.Exit(130) from None  # the process that started this one says it


def _networks(options: Options, offline: bool, device: Any) -> Any:
    from threedgp.config.metric_names import EFFLITE0, INCEPTION
    from threedgp.metrics.generator import Extractors

    name = EFFLITE0 if offline else INCEPTION
    return Extractors(
        weights={name: options.weights} if options.weights else None,
        download=options.download,
        allow_unverified=options.unverified,
        device=device,
        progress=_progress(options),
    )


def _cache(options: Options) -> Any:
    from threedgp.metrics.cache import StatisticsCache, metrics_cache

    return StatisticsCache(options.cache_dir or metrics_cache(), _progress(options)) if options.cache else None


def _parse(names: list[str]) -> list[Any]:
    from threedgp.config.metric_names import parse_metric

    return [parse_metric(name) for name in names]


def _per_image(quantile: str) -> bool:
    from threedgp.errors import UsageError

    if quantile not in ("group", "per-image"):
        raise UsageError(f"--nfs-quantile is 'group' or 'per-image', not '{quantile}'.")
    return quantile == "per-image"


def _progress(options: Options) -> Any:
    """Listens in the one process that talks to people: not in one that only starts others."""
    from threedgp.progress import NULL_PROGRESS

    starts_others = (options.gpus or options.procs or 1) > 1 and not is_worker()
    return progress() if is_first() and not starts_others else NULL_PROGRESS


def _score_depth_folder(depth: Path, near: float, far: float, plot: Path | None, json_output: bool) -> None:
    from threedgp.data.source import class_of
    from threedgp.metrics.depth import score_depth_folder
    from threedgp.metrics.plot import plot_depth_scores

    scores, names = score_depth_folder(depth, near=near, far=far, class_of=class_of, progress=progress())
    value, entropy, clamped = scores.values
    rows = class_rows(scores, names)
    if json_output:
        result = {"nfs": value, "entropy": entropy, "clamped": clamped, "images": len(scores.entropy)}
        per_class = [dict(zip(("class", "score", "images"), row, strict=True)) for row in rows]
        print_json({"depth": str(depth), **result, "near": near, "far": far, "per_class": per_class})
    else:
        _show_depth_folder(depth, scores, rows)
    if plot is not None:
        plot_depth_scores(scores, f"non-flatness of {depth}", plot)


def _show_depth_folder(depth: Path, scores: DepthScores, rows: list[tuple[str, float, int]]) -> None:
    value, entropy, clamped = scores.values
    cells = [("Non-flatness score", f"{value:.4g}"), ("mean entropy (nats)", f"{entropy:.4g}")]
    cells += [("pixels outside [near, far]", f"{clamped:.2%}"), ("depth maps", len(scores.entropy))]
    show(table(str(depth), ["", "value"], cells, right=(1,)))
    show_classes("nfs", rows)


# ------------------------------------------------------------------------------------------------------- the commands

for _name, _help in {
    "fid": "Frechet Inception distance (lower is better).",
    "kid": "Kernel Inception distance (lower is better).",
    "pr": "Precision and recall with 3 neighbours (higher is better).",
    "is": "Inception score (higher is better).",
}.items():
    _command(_name, partial(_score, [_name]), _help, without=OF_DEPTH + OF_DEPTH_FOLDERS)
_command(
    "nfs",
    _nfs,
    "Non-flatness score: how many depths the scenes use (1 flat, 64 at most; higher is better).",
    without=("num_depth", *(name for name in OF_IMAGES if name != "number")),
    number=256,
)
_command(
    "all",
    partial(_score, ["fid", "kid", "pr", "is", "nfs"]),
    "Every score; each image is made once.",
    without=OF_DEPTH_FOLDERS,
)
