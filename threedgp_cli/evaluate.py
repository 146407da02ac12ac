"""`3dgp eval`: scores of checkpoints and of image folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from threedgp_cli.console import (
    JsonOption,
    WorkspaceOption,
    print_json,
    progress,
    say,
    show,
    table,
    takes_options,
)
from threedgp_cli.scores import computed, finish, problems, report, show_classes, show_results
from threedgp_cli.work import WorkOptions, is_first

if TYPE_CHECKING:
    from threedgp.config.metric_names import Family, MetricSpec
    from threedgp.config.workspace import Workspace
    from threedgp.metrics.evaluate import Evaluator
    from threedgp.processes import World
    from threedgp.progress import Progress
    from threedgp.runs.run import Run

app = typer.Typer(
    help="Score a checkpoint (fid, kid, pr, is, nfs, all, classes), or one image folder against another (dataset).",
    no_args_is_help=True,
)
MOST_IMAGES = 10_000_000
CLASS_SCORES = {
    "class_accuracy": "share of generated images recognised as their class",
    "class_accuracy_turned": "the same, turned by 0.4 radians",
    "class_accuracy_real": "share of real images recognised (held out)",
    "own_distance": "Frechet distance to real images in the judge's features",
    "own_distance_real": "the same between two halves of those",
    "own_variety": "variety within a class, real images: 1",
    "class_depth": "correlation of depth with that of the class seen",
    "class_depth_flat": "the same with that of all classes",
}


Extractor = Literal["inception", "tf_efficientnet_lite0"]
OFFLINE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint is scored."""

    target: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|CHECKPOINT]", help="A run or a checkpoint's folder.", show_default="newest run"),
    ] = None
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="best|latest|KIMG", help="Which one of the run.")
    ] = "best"
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Real images, folder or zip; for nfs and classes the training set with its classes.",
            show_default="full-SIZE of the data set, else its SIZE",
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed makes other images.")] = 0
    workspace: WorkspaceOption = None
    json_output: JsonOption = False


@dataclass(frozen=True)
class NetworkOptions:
    """Where feature networks come from, and what is kept of their work."""

    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weight file of the feature network, if it is not found by itself.")
    ] = None
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights of feature networks.")] = False
    unverified: Annotated[
        bool, typer.Option("--allow-unverified-weights", help="Accept weights with another checksum; results say so.")
    ] = False
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images at a time and process.", show_default="the profile's")
    ] = None
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep statistics of real images, and go on with unfinished work.")
    ] = True
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Where.", show_default="$THREEDGP_CACHE/metrics or ~/.cache/…")
    ] = None

    def evaluator(
        self, specs: list[MetricSpec], world: World, *, offline: bool, batch: int, seed: int, listener: Progress
    ) -> tuple[Evaluator, list[MetricSpec]]:
        """What computes the scores, and the metrics as they can be computed here."""
        from threedgp.config.metric_names import EFFLITE0, INCEPTION
        from threedgp.metrics.bank import StatisticsCache
        from threedgp.metrics.evaluate import Evaluator
        from threedgp.metrics.extractors import Extractors

        weights = {EFFLITE0 if offline else INCEPTION: self.weights} if self.weights else {}
        extractors = Extractors(weights, self.download, self.unverified, world.device, listener)
        specs = extractors.choose(specs)
        cache = StatisticsCache(self.cache_dir, listener) if self.cache else None
        return Evaluator(extractors, self.batch or batch, seed, cache, world, listener), specs


@dataclass(frozen=True)
class ImageOptions:
    """Scores of images."""

    number: Annotated[int, typer.Option("--n", min=1, max=MOST_IMAGES, help="Generated images.")] = 50_000
    num_real: Annotated[
        int | None, typer.Option("--num-real", min=1, help="Random part of the real set.", show_default="all of it")
    ] = None
    extractor: Annotated[
        Extractor | None,
        typer.Option("--extractor", help="Feature network.", show_default="what the profile uses in training"),
    ] = None


@dataclass(frozen=True)
class DepthOptions:
    """The non-flatness score."""

    quantile: Annotated[
        Literal["group", "per-image"], typer.Option("--nfs-quantile", help="Density quantile of 4 images, or of each.")
    ] = "group"
    adaptor: Annotated[
        bool, typer.Option("--adaptor/--no-adaptor", help="Learned camera, or exactly frontal (not as published).")
    ] = True
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Where to draw depths.", show_default="the run's folder")
    ] = None


def _score(
    families: list[Family],
    model: ModelOptions,
    work: WorkOptions,
    images: ImageOptions | None = None,
    networks: NetworkOptions | None = None,
    depth: DepthOptions | None = None,
    num_depth: int = 256,
) -> None:
    """Plan, check, score a checkpoint, and report."""
    from threedgp.config.metric_names import EFFLITE0, parse_metric
    from threedgp.config.workspace import Workspace
    from threedgp.pretrained.names import canonical_name
    from threedgp.runs.run import find_checkpoint, load_generator

    images, networks, depth = images or ImageOptions(), networks or NetworkOptions(), depth or DepthOptions()
    place, listener = Workspace.find(model.workspace), work.listener()
    run, checkpoint = find_checkpoint(place, model.target, model.checkpoint, listener)
    profile = run.profile  # torch is imported only now: most mistakes are found by here

    from threedgp.metrics.real_set import RealSet
    from threedgp.metrics.scored_samples import Sampler, open_labels
    from threedgp.runs.catalog import read_manifest

    own = [parse_metric(name).extractor for name in profile.training.metrics]
    offline = images.extractor == OFFLINE if images.extractor else EFFLITE0 in own
    if profile.model.kind == "stylegan2" and len(families) > 1:
        families = [family for family in families if family != "nfs"]
    specs = _specs(families, images.number, offline, images.num_real, num_depth, depth.quantile == "per-image")
    if offline and EFFLITE0 in map(canonical_name, profile.teachers) and is_first():
        listener.note(
            f"{EFFLITE0} also trained this model, so its scores flatter; a judge of its own: 3dgp eval classes"
        )
    training_set, reason = _training_set(place, run)
    real = None
    if any(spec.needs_real for spec in specs):
        real = RealSet.of_model(
            profile, model.data, training_set, reason=reason, seed=model.seed, progress=listener
        )  # fmt: skip
    else:
        training_set = model.data or training_set
    with work.world() as world:
        evaluator, specs = networks.evaluator(
            specs, world, offline=offline, batch=profile.training.test_batch_gpu, seed=model.seed, listener=listener
        )
        labels = open_labels(profile, training_set, listener)
        sampler = Sampler(load_generator(checkpoint, world.device), profile, labels, model.seed)
        digest = read_manifest(checkpoint)["digest"]
        results, depths = evaluator.score_generator(specs, sampler, real, checkpoint=digest, adaptor=depth.adaptor)
    if is_first():
        report(
            run, checkpoint, results, depths, real=real, plot=depth.plot, out=work.out, json_output=model.json_output
        )  # fmt: skip


def _specs(
    families: list[Family],
    number: int,
    offline: bool,
    num_real: int | None = None,
    num_depth: int = 256,
    per_image: bool = False,
) -> list[MetricSpec]:
    """The metrics; offline, several of them leave out what only Inception can answer."""
    from threedgp.config.metric_names import metric_name, parse_metric

    names = []
    for family in families:
        if family == "nfs":
            names.append(metric_name("nfs", num_depth) + ("_perimage" if per_image else ""))
        elif family != "is" or not offline or len(families) == 1:
            real = None if family == "is" else num_real
            names.append(metric_name(family, number, num_real=real, offline=offline))
    return [parse_metric(name) for name in names]


def _training_set(place: Workspace, run: Run) -> tuple[Path | None, str]:
    """The run's training set, or None and the reason why it is not here."""
    from threedgp.errors import ThreeDGPError
    from threedgp.runs.training_set import training_data

    try:
        return training_data(place, run.profile, run), ""
    except ThreeDGPError as error:
        return None, str(error)


def _add_score(family: Family, help_text: str) -> None:
    def command(images: ImageOptions, model: ModelOptions, networks: NetworkOptions, work: WorkOptions) -> None:
        _score([family], model, work, images, networks)

    app.command(family, help=help_text)(takes_options(command))


_add_score("fid", "Frechet Inception distance (lower is better).")
_add_score("kid", "Kernel Inception distance (lower is better).")
_add_score("pr", "Precision and recall with 3 neighbours (higher is better).")
_add_score("is", "Inception score (higher is better).")


@app.command("nfs")
@takes_options
def nfs(
    model: ModelOptions,
    options: DepthOptions,
    work: WorkOptions,
    number: Annotated[int, typer.Option("--n", min=1, max=MOST_IMAGES, help="Depth maps.")] = 256,
    depth: Annotated[Path | None, typer.Option("--depth", help="Score a folder of depth maps instead.")] = None,
    near: Annotated[float, typer.Option("--near", help="With --depth: smallest value.")] = 0.0,
    far: Annotated[float, typer.Option("--far", help="With --depth: largest value.")] = 65535.0,
) -> None:
    """Non-flatness score: how many depths the scenes use (1 flat, 64 at most; higher is better)."""
    if depth is None:
        _score(["nfs"], model, work, depth=options, num_depth=number)
    else:
        _score_depth_folder(depth, near, far, options.plot, model.json_output)


@app.command("all")
@takes_options
def all_scores(
    images: ImageOptions,
    model: ModelOptions,
    depth: DepthOptions,
    networks: NetworkOptions,
    work: WorkOptions,
    num_depth: Annotated[int, typer.Option("--n-depth", min=1, help="Depth maps of the non-flatness score.")] = 256,
) -> None:
    """Every score; each image is made once."""
    _score(["fid", "kid", "pr", "is", "nfs"], model, work, images, networks, depth, num_depth)


@app.command("dataset")
@takes_options
def dataset(
    networks: NetworkOptions,
    work: WorkOptions,
    real: Annotated[Path, typer.Argument(help="Folder or zip to compare with.")],
    scored: Annotated[Path, typer.Argument(help="Folder or zip to be scored.")],
    scores: Annotated[str, typer.Option("--scores", help="Any of fid, kid, pr, is, with commas.")] = "fid,kid,pr",
    extractor: Annotated[Extractor, typer.Option("--extractor", help="Feature network.")] = "inception",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed makes other random choices.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Compare two image folders, without any model."""
    from threedgp.data.pictures import Pictures
    from threedgp.errors import UsageError
    from threedgp.metrics.real_set import RealSet, compare_sizes

    known: list[Family] = ["fid", "kid", "pr", "is"]
    names = [name.strip() for name in scores.split(",") if name.strip()]
    if not names or not set(names) <= set(known):
        raise UsageError(f"--scores knows {', '.join(known)}, not '{scores}'.")
    listener, images = work.listener(), Pictures(scored)
    compare_sizes(real, scored, listener)
    offline = extractor == OFFLINE
    specs = _specs([family for family in known if family in names], len(images), offline)
    with work.world() as world:
        evaluator, specs = networks.evaluator(specs, world, offline=offline, batch=64, seed=seed, listener=listener)
        results = evaluator.score_images(specs, lambda count: images, RealSet(real))
    if is_first():
        where = {"real": str(real), "scored": str(scored)}
        lines = [{**result.line(None), **where} for result in computed(results)]
        if json_output:
            print_json({**where, "results": lines, "problems": problems(results)})
        else:
            show_results(f"{scored} against {real}", computed(results))
        finish(results, lines, work.out)


@app.command("classes")
@takes_options
def classes(
    model: ModelOptions,
    number: Annotated[int, typer.Option("--n", min=8, help="Generated images.")] = 512,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="own|FOLDER",
            help="Where the judge learns: from three quarters of the real images, or another set of these classes.",
        ),
    ] = "own",
) -> None:
    """Is the class recognised, straight and turned, by a small network that learned shapes; depth by class."""
    from threedgp.config.workspace import Workspace
    from threedgp.data.dataset import TrainingSet, open_training_set
    from threedgp.files import best_effort
    from threedgp.metrics.class_scores import score_classes
    from threedgp.metrics.scored_samples import Sampler
    from threedgp.processes import choose_device
    from threedgp.runs.run import find_checkpoint, load_generator
    from threedgp.runs.training_set import training_data

    place, listener = Workspace.find(model.workspace), progress()
    run, path = find_checkpoint(place, model.target, model.checkpoint, listener)
    device = choose_device()
    given = str(model.data) if model.data else None
    training_set = open_training_set(run.profile, training_data(place, run.profile, run, given))
    sampler = Sampler(load_generator(path, device), run.profile, training_set, model.seed)
    other = None
    if judge != "own":
        data = run.profile.data
        other = TrainingSet(
            judge, resolution=data.resolution, num_classes=data.num_classes, use_depth=False, mirror=False
        )
    result = score_classes(sampler, training_set, learn_from=other, count=number, progress=listener)
    line = result.line(path.name) | {"judge": judge}
    with best_effort(f"The line in {run.metrics_file}", listener):
        run.append_metrics(line)
    if model.json_output:
        print_json({"run": run.name, "checkpoint": path.name, "results": [line], "problems": {}})
        return
    rows = [(CLASS_SCORES[name], f"{value:.3f}") for name, value in result.results.items()]
    rows.append(("chance", f"{result.settings['chance']:.3f}"))
    show(table(f"{number} images of run {run.name}, checkpoint {path.name}", ["", "value"], rows, right=(1,)))
    say(f"Scores of {run.name}: {run.metrics_file}")


def _score_depth_folder(depth: Path, near: float, far: float, plot: Path | None, json_output: bool) -> None:
    from threedgp.metrics.nfs import score_depth_folder
    from threedgp.metrics.plot import plot_depth_scores

    scores = score_depth_folder(depth, near=near, far=far, progress=progress())
    value, entropy, clamped = scores.values
    rows = scores.by_class()
    if json_output:
        result = {"nfs": value, "entropy": entropy, "clamped": clamped, "images": len(scores.entropy)}
        per_class = [dict(zip(("class", "score", "images"), row, strict=True)) for row in rows]
        print_json({"depth": str(depth), **result, "near": near, "far": far, "per_class": per_class})
    else:
        cells = [("Non-flatness score", f"{value:.4g}"), ("mean entropy (nats)", f"{entropy:.4g}")]
        cells += [("pixels outside [near, far]", f"{clamped:.2%}"), ("depth maps", str(len(scores.entropy)))]
        show(table(str(depth), ["", "value"], cells, right=(1,)))
        show_classes("nfs", rows)
    if plot is not None:
        plot_depth_scores(scores, f"non-flatness of {depth}", plot)
