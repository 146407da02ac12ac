"""`3dgp demo`: the whole way from nothing to a video and a report, through the same commands everybody uses."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threedgp_cli.console import say, show, show_note, stdout, table

if TYPE_CHECKING:
    from threedgp.runs.run import Run

EXTRACTOR = "tf_efficientnet_lite0"
QUICK_PROFILE, LONG_PROFILE = "demo32", "demo64"
LONG_MINUTES = 30.0  # from here on it trains at 64x64
RUN = "demo"
SCORED = 512  # generated images of the Frechet distance, as many as while training
AFTER_TRAINING = 60.0  # seconds on two cores for the last scores, pictures and the report
SHORTEST_TRAINING = 20.0  # seconds

ADVICE = """\
mkdir -p data/mine/images          # put your photos there: flat, or one folder a class
3dgp data select --dataset mine --extractor tf_efficientnet_lite0
3dgp data depth --dataset mine --weights res101.pth
3dgp data merge --dataset mine
3dgp data resize --dataset mine -s 256
3dgp data embed --dataset mine --model tf_efficientnet_lite0
3dgp train --profile imagenet256 --dataset mine --gpus 4 \\
    --set data.num_classes=10 --set data.embedder=tf_efficientnet_lite0 --set data.embedding_dim=1280
3dgp eval fid --n 50000
3dgp render video --trajectory front_circle"""


@dataclass
class Steps:
    """Runs `3dgp` commands in this process and remembers how long each took."""

    app: Any
    taken: list[tuple[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def __call__(self, *arguments: str) -> None:
        command = shlex.join(["3dgp", *arguments])
        stdout.print(f"\n[bold]$ {command}[/]", highlight=False, soft_wrap=True)
        start = time.monotonic()
        code = self.app(args=list(arguments), prog_name="3dgp", standalone_mode=False)
        self.taken.append((command, time.monotonic() - start))
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    def optional(self, *arguments: str) -> None:
        """A command after the training: what it cannot do is said, and costs none of the rest."""
        from threedgp.errors import ThreeDGPError

        try:
            self(*arguments)
        except ThreeDGPError as error:
            show_note(str(error))
        except typer.Exit:  # it has said why
            pass

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def demo(
    minutes: Annotated[float, typer.Option("--minutes", min=0.5, help="Time for everything; more looks better.")] = 9.5,
    out: Annotated[Path, typer.Option("--out", help="Workspace to make.")] = Path("3dgp-demo"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change the demo's profile: key.path=value. Can be repeated.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=64, help="Images of the demo set.")] = 2048,
) -> None:
    """Go the whole way on a small embedded set: data, training, scores, video, mesh, report.

    Needs no network and no GPU. Killed or interrupted, the same command goes on where it stopped.
    """
    import torch

    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import ENVIRONMENT_VARIABLE, Workspace
    from threedgp.launch.plan import cpu_processes
    from threedgp.ops import native
    from threedgp.runs.run import Run

    settings = [text for override in overrides or [] for text in ("--set", override)]
    name = LONG_PROFILE if minutes >= LONG_MINUTES else QUICK_PROFILE
    profile = load_profile(name, overrides or [])
    out.mkdir(parents=True, exist_ok=True)
    os.environ[ENVIRONMENT_VARIABLE] = str(out.resolve())
    place = Workspace(out)
    step = Steps(_root_app())
    if not torch.cuda.is_available():
        native.available()  # compiled before the time for training is worked out

    step("data", "demo", "-n", str(images), "-s", str(max(64, profile.data.resolution)))
    step("data", "select", "--extractor", EXTRACTOR, "--keep-ratio", "0.9")
    step("data", "merge")
    step("data", "resize", "-s", str(profile.data.resolution))
    if profile.loss.distillation.weight > 0:
        step("data", "embed", "--model", profile.data.embedder)
    step("data", "check")
    left = max(60 * minutes - step.seconds - AFTER_TRAINING, SHORTEST_TRAINING) / 60
    machine = () if torch.cuda.is_available() else ("--procs", str(cpu_processes(profile)))
    if (out / "runs" / RUN / "config.yaml").is_file():
        step("resume", RUN, *machine)
    else:
        step("train", "--profile", name, "--run", RUN, *machine, *settings, "--set", f"training.max_minutes={left:.2f}")
    run = Run.open(place, RUN)
    step.optional("eval", "fid", RUN, "--n", str(SCORED), "--extractor", EXTRACTOR)
    step.optional("eval", "nfs", RUN, "--n", "64")
    step.optional("eval", "classes", RUN, "--n", "512")
    renders = _render(step, place)
    page = _report(run, place, renders, step)
    _summary(run, renders, page, step.seconds)


def _root_app() -> Any:
    from threedgp_cli.main import app

    return app


def _render(step: Steps, place: Any) -> dict[str, Path]:
    folder = place.renders
    paths = {
        "video": folder / "demo.mp4",
        "turned": folder / "demo-grid.png",
        "mesh": folder / "demo-mesh.glb",
    }
    classes = ("--classes", "0-7")
    step.optional(
        "render", "video", RUN, "--trajectory", "front_circle", "--seeds", "0", *classes, "--show", "both",
        "--size", "96", "--set", "num_frames=48", "--fps", "18", "--out", str(paths["video"]),
    )  # fmt: skip
    step.optional(
        "render", "grid", RUN, "--trajectory", "points", "--seeds", "0-1", *classes, "--size", "96",
        "--out", str(paths["turned"]),
    )  # fmt: skip
    step.optional(
        "render", "mesh", RUN, "--seeds", "0", "--classes", "0", "--resolution", "96", "--out", str(paths["mesh"])
    )
    return {name: path for name, path in paths.items() if path.is_file()}


def _values(run: Run) -> dict[str, float]:
    """The newest value of every result of the run's newest scored checkpoint, and the untrained distance."""
    values: dict[str, float] = {}
    for line in run.metrics():
        if line.get("checkpoint") == "000000000":
            values |= {f"untrained {name}": value for name, value in line["results"].items()}
        else:
            values |= line["results"]
    return {name: value for name, value in values.items() if value is not None}


def _facts(run: Run) -> list[Any]:
    from threedgp.runs.report import Fact

    values = _values(run)

    def percent(name: str) -> str:
        return f"{100 * values[name]:.0f} %" if name in values else "-"

    distance = next((value for name, value in values.items() if name.startswith("fd_efflite0_")), None)
    before = next((value for name, value in values.items() if name.startswith("untrained fd_")), None)
    flat = next((value for name, value in values.items() if name == "nfs64"), None)
    chance = 100 / max(run.profile.data.num_classes, 1)
    return [
        Fact(
            percent("class_accuracy"), "generated images recognised", f"chance {chance:.1f} %, as the class asked for"
        ),
        Fact(percent("class_accuracy_turned"), "recognised after a turn", "of 0.4 radians to either side"),
        Fact(
            "-" if distance is None else f"{distance:.0f}",
            "Frechet distance (efficientnet_lite0)",
            "" if before is None else f"untrained: {before:.0f}",
        ),
        Fact("-" if flat is None else f"{flat:.1f}", "non-flatness score", "flat would be 1.0, all depths equal 64"),
        Fact(
            f"{values['class_depth']:.2f}" if "class_depth" in values else "-",
            "depth correlation with the class",
            f"one depth for all: {values['class_depth_flat']:.2f}" if "class_depth_flat" in values else "",
        ),
    ]


def _report(run: Run, place: Any, renders: dict[str, Path], step: Steps) -> Path:
    from threedgp.runs.catalog import checkpoint_nimg
    from threedgp.runs.report import Picture, Report, write_report

    seen = checkpoint_nimg(run.checkpoints()[-1])
    captions = {
        "video": "a sample of each class, colour beside depth, turning",
        "turned": "two samples of each class, from three sides",
        "mesh": "a mesh taken out of the density",
    }
    shown = {name: path.with_suffix(".png") if name == "mesh" else path for name, path in renders.items()}
    pictures = [Picture(path, captions[name]) for name, path in shown.items() if path.is_file()]
    report = Report(
        title="3DGP: learning 3D from flat pictures",
        summary=f"A 3D generator, trained on this machine from nothing in {step.seconds / 60:.0f} minutes. It saw "
        f"{seen:,} pictures with unknown cameras and imperfect depth maps, and never a 3D shape.",
        facts=_facts(run),
        renders=pictures,
        data=[Picture(place.data / "demo" / "contact_sheet.png", "images, and their depth as an estimator gives it")],
        steps=step.taken,
        advice=ADVICE,
    )
    return write_report(run, report, place.root / "report.html")


def _summary(run: Run, renders: dict[str, Path], page: Path, seconds: float) -> None:
    stdout.print()
    show(
        table(
            "What was learned", ["", "", ""], [(fact.name, fact.value, fact.note) for fact in _facts(run)], right=(1,)
        )
    )
    say(f"\nIt took {seconds / 60:.1f} minutes. Open {page} in a browser.")
    for name, path in renders.items():
        say(f"  {name}: {path}")


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the executable."""
    app.command(rich_help_panel=panel)(demo)
