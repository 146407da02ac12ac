"""`3dgp demo`: the whole way from nothing to a video and a report, through the same commands everybody uses."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threedgp_cli.console import SetOption, say, show, show_note, stdout, table

if TYPE_CHECKING:
    from threedgp.config.workspace import Workspace
    from threedgp.runs.report import Fact
    from threedgp.runs.run import Run

EXTRACTOR = "tf_efficientnet_lite0"
QUICK_PROFILE, LONG_PROFILE = "demo32", "demo64"
LONG_MINUTES = 30.0  # from here on it trains at 64x64
RUN = "demo"
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
    context: typer.Context,
    minutes: Annotated[float, typer.Option("--minutes", min=0.5, help="Time for everything; more looks better.")] = 9.5,
    out: Annotated[Path, typer.Option("--out", help="Workspace to make.")] = Path("3dgp-demo"),
    overrides: SetOption = None,
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
    step = Steps(context.find_root().command)
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
    step.optional("eval", "nfs", RUN, "--n", "64")
    step.optional("eval", "classes", RUN, "--n", "512")
    renders = _render(step, place.renders)
    facts = _facts(run)
    page = _report(run, place, facts, renders, step)
    stdout.print()
    show(table("What was learned", ["", "", ""], [(fact.name, fact.value, fact.note) for fact in facts], right=(1,)))
    say(f"\nIt took {step.seconds / 60:.1f} minutes. Open {page} in a browser.")
    for path, caption in renders.items():
        say(f"  {caption}: {path}")


def _render(step: Steps, folder: Path) -> dict[Path, str]:
    """Make the pictures; returns what became of it, with captions."""
    video, grid, mesh = folder / "demo.mp4", folder / "demo-grid.png", folder / "demo-mesh.glb"
    classes = ("--classes", "0-7")
    step.optional(
        "render", "video", RUN, "--trajectory", "front_circle", "--seeds", "0", *classes, "--show", "both",
        "--size", "96", "--set", "num_frames=48", "--fps", "18", "--out", str(video),
    )  # fmt: skip
    step.optional(
        "render", "grid", RUN, "--trajectory", "points", "--seeds", "0-1", *classes, "--size", "96", "--out", str(grid)
    )
    step.optional("render", "mesh", RUN, "--seeds", "0", "--classes", "0", "--resolution", "96", "--out", str(mesh))
    captions = {
        video: "a sample of each class, colour beside depth, turning",
        grid: "two samples of each class, from three sides",
        mesh: "a mesh taken out of the density",
    }
    return {path: caption for path, caption in captions.items() if path.is_file()}


def _facts(run: Run) -> list[Fact]:
    """The newest value of every score, beside what real images or a flat model would get."""
    from threedgp.runs.report import Fact

    values: dict[str, float] = {}
    for line in run.metrics():
        values |= {name: value for name, value in line["results"].items() if value is not None}

    def fact(label: str, name: str, form: str, note: str, beside: str | None = None) -> Fact:
        if beside is not None:
            note = f"{note}{values[beside]:{form}}" if beside in values else ""
        return Fact(f"{values[name]:{form}}" if name in values else "-", label, note)

    chance = 1 / max(run.profile.data.num_classes, 1)
    return [
        fact("generated images recognised", "class_accuracy", ".0%", f"chance {chance:.1%}, as the class asked for"),
        fact("recognised after a turn", "class_accuracy_turned", ".0%", "of 0.4 radians to either side"),
        fact("Frechet distance by shapes", "own_distance", ".2f", "two halves of real images: ", "own_distance_real"),
        fact("non-flatness score", "nfs64", ".1f", "flat would be 1.0, all depths equal 64"),
        fact("depth correlation with the class", "class_depth", ".2f", "one depth for all: ", "class_depth_flat"),
    ]


def _report(run: Run, place: Workspace, facts: list[Fact], renders: dict[Path, str], step: Steps) -> Path:
    from threedgp.runs.catalog import checkpoint_nimg
    from threedgp.runs.report import Picture, Report, write_report

    shown = {path.with_suffix(".png") if path.suffix == ".glb" else path: text for path, text in renders.items()}
    report = Report(
        title="3DGP: learning 3D from flat pictures",
        summary=f"A 3D generator, trained on this machine from nothing in {step.seconds / 60:.0f} minutes. It saw "
        f"{checkpoint_nimg(run.checkpoints()[-1]):,} pictures with unknown cameras and imperfect depth maps, and never "
        "a 3D shape.",
        facts=facts,
        renders=[Picture(path, caption) for path, caption in shown.items() if path.is_file()],
        data=[Picture(place.data / "demo" / "contact_sheet.png", "images, and their depth as an estimator gives it")],
        steps=step.taken,
        advice=ADVICE,
    )
    return write_report(run, report, place.root / "report.html")
