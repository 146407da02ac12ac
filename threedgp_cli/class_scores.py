"""`3dgp eval classes`: can a classifier tell what a conditional model drew, from all sides?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from threedgp_cli.console import JsonOption, WorkspaceOption, print_json, progress, say, show, table


def classes(
    target: Annotated[str | None, typer.Argument(help="A run's name. [default: the newest]")] = None,
    number: Annotated[int, typer.Option("--n", min=8, help="Generated images.")] = 512,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, latest, or thousand images.")] = "best",
    data: Annotated[Path | None, typer.Option("--data", help="Training set. [default: the run's]")] = None,
    extractor: Annotated[
        str, typer.Option("--extractor", help="Whose features the classifier sees.")
    ] = "tf_efficientnet_lite0",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed makes other images.")] = 0,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Class accuracy of a linear classifier on generated images, straight and turned, and depth by class."""
    from threedgp.config.workspace import Workspace
    from threedgp.data.dataset import open_training_set
    from threedgp.files import best_effort
    from threedgp.launch.here import training_data
    from threedgp.metrics.class_scores import score_classes
    from threedgp.metrics.samples import Sampler
    from threedgp.pretrained.embedder import build_extractor
    from threedgp.processes import choose_device
    from threedgp.runs.run import find_checkpoint, load_generator

    place = Workspace.find(workspace)
    listener = progress()
    run, path = find_checkpoint(place, target, checkpoint, listener)
    device = choose_device()
    dataset = open_training_set(run.profile, training_data(place, run.profile, run, str(data) if data else None))
    sampler = Sampler(load_generator(path, device), run.profile, dataset, seed)
    network = build_extractor(extractor, device=device, progress=listener)
    scores = score_classes(sampler, dataset, network, count=number, progress=listener)
    with best_effort(f"The line in {run.metrics_file}", listener):
        run.append_metrics(scores.line(path.name, network.name, seed))
    if json_output:
        print_json({"run": run.name, "checkpoint": path.name, **asdict(scores)})
        return
    rows = [
        ("generated images recognised as their class", f"{100 * scores.accuracy:.1f} %"),
        ("the same, turned by 0.4 radians", f"{100 * scores.turned:.1f} %"),
        ("real images recognised (held out)", f"{100 * scores.real_accuracy:.1f} %"),
        ("chance", f"{100 * scores.chance:.1f} %"),
    ]
    if scores.depth is not None:
        rows += [
            ("depth correlation with the class seen", f"{scores.depth:.3f}"),
            ("depth correlation with all classes", f"{scores.flat_depth:.3f}"),
        ]
    show(table(f"{scores.num_gen} images of run {run.name}, checkpoint {path.name}", ["", "value"], rows, right=(1,)))
    say(f"Features: {network.name}. Scores of {run.name}: {run.metrics_file}")


def register(app: typer.Typer) -> None:
    """Add the command to `3dgp eval`."""
    app.command("classes")(classes)
