"""`3dgp train` and `3dgp resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from threedgp_cli.console import (
    TRAIN_PANEL,
    DatasetOption,
    JsonOption,
    SetOption,
    WorkspaceOption,
    print_json,
    progress,
    say,
    show,
    table,
)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a YAML file of your own.")]
GpusOption = Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs on this machine, one process each.")]
ProcsOption = Annotated[int | None, typer.Option("--procs", min=1, help="Processes on CPUs, instead of GPUs.")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Machines; give the same command on each.")]
RendezvousOption = Annotated[
    str | None, typer.Option("--rendezvous", metavar="HOST:PORT", help="Where several machines meet: one of them.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Training set folder or zip. [default: workspace's]")]
WandbOption = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log to Weights & Biases, if it is installed.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything and show the plan, but do not train.")]


def train(
    profile: ProfileOption,
    gpus: GpusOption = None,
    procs: ProcsOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run. [default: PROFILE-NUMBER]")] = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    overrides: SetOption = None,
    wandb: WandbOption = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train a model: on this machine's CPU or GPUs.

    With --run NAME the same command can be repeated: it goes on where the run stopped.
    """
    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import Workspace
    from threedgp.training.plan import open_run, plan_run

    place = Workspace.find(workspace)
    settings = list(overrides or []) + ([f"data.dataset={dataset}"] if dataset else [])
    resolved = load_profile(profile, settings)
    options = _options(gpus, procs, nodes, rendezvous, data, wandb)
    plan = plan_run(place, resolved, options, name=run)
    _show_plan(plan, json_output and not dry_run)
    if dry_run:
        if json_output:
            print_json(plan.as_dict())
        return
    _start(open_run(place, resolved, options, name=run), options, json_output)


def resume(
    run: Annotated[str | None, typer.Argument(help="A run's name. [default: the newest]")] = None,
    gpus: GpusOption = None,
    procs: ProcsOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    wandb: WandbOption = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Continue a run from its newest checkpoint, with as many processes as you like.

    --set changes the run's profile for good: --set training.kimg=50 makes it longer.
    """
    from threedgp.config.workspace import Workspace
    from threedgp.runs.run import Run
    from threedgp.training.plan import change_profile, plan_run

    place = Workspace.find(workspace)
    chosen = Run.open(place, run) if run else Run.newest(place)
    options = _options(gpus, procs, nodes, rendezvous, data, wandb)
    resolved = change_profile(chosen, overrides or [], save=not dry_run)
    plan = plan_run(place, resolved, options, name=chosen.name)
    _show_plan(plan, json_output and not dry_run)
    if dry_run:
        if json_output:
            print_json(plan.as_dict())
        return
    _start(Run(chosen.folder), options, json_output)


def _options(
    gpus: int | None, procs: int | None, nodes: int, rendezvous: str | None, data: Path | None, wandb: str | None
) -> Any:
    from threedgp.training.plan import choose_launch

    return choose_launch(
        gpus=gpus, procs=procs, nodes=nodes, rendezvous=rendezvous, data=str(data) if data else None, wandb=wandb
    )


def _show_plan(plan: Any, json_output: bool) -> None:
    show(table(None, ["", "plan"], plan.rows()), json_output=json_output)
    for note in plan.notes:
        say(f"Note: {note}", json_output=json_output)


def _start(run: Any, options: Any, json_output: bool) -> None:
    import signal

    from threedgp.training.launch import STOP_FILE, StopRequest, run_workers, stop_on_signals, train_here
    from threedgp.training.plan import outcome

    with stop_on_signals(StopRequest(run.folder / STOP_FILE if options.world_size > 1 else None)) as request:
        if options.world_size > 1:
            run_workers(run, options, request)
        else:
            train_here(run, options, request, progress())
    result = outcome(run)
    if json_output:
        print_json(result)
    elif result["finished"]:
        say(
            f"Run {run.name} is complete: {result['kimg']:g} thousand images, newest checkpoint {result['checkpoint']}."
        )
    else:
        say(f"Run {run.name} stopped at {result['kimg']:g} thousand images. Go on with: 3dgp resume {run.name}")
    if request.signal == signal.SIGINT:
        raise typer.Exit(130)


def register(app: typer.Typer) -> None:
    """Add the commands to the executable."""
    app.command(rich_help_panel=TRAIN_PANEL)(train)
    app.command(rich_help_panel=TRAIN_PANEL)(resume)
