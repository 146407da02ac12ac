"""`3dgp train` and `3dgp resume`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
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
    show_note,
    stderr,
    stdout,
    table,
)

MACHINES = "Machines"
CLUSTER = "Cluster (Slurm)"

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a YAML file of your own.")]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        rich_help_panel=MACHINES,
        help="GPUs on each machine, one process each.",
        show_default="1 if there is any",
    ),
]
ProcsOption = Annotated[
    int | None,
    typer.Option("--procs", min=1, rich_help_panel=MACHINES, help="CPU processes on each machine, instead of GPUs."),
]
NodesOption = Annotated[
    int, typer.Option("--nodes", min=1, rich_help_panel=MACHINES, help="Machines; give the same command on each.")
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        metavar="HOST:PORT",
        rich_help_panel=MACHINES,
        help="Where several machines meet: one of them and a free port. Not needed with --slurm.",
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Training set folder or zip.", show_default="the workspace's")
]
WandbOption = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log to Weights & Biases, if it is installed.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the plan (or the sbatch script), but do not train.")
]
SlurmOption = Annotated[
    bool, typer.Option("--slurm", rich_help_panel=CLUSTER, help="Train as a cluster job, requeued when pre-empted.")
]
PartitionOption = Annotated[str | None, typer.Option("--partition", rich_help_panel=CLUSTER, help="Slurm partition.")]
AccountOption = Annotated[str | None, typer.Option("--account", rich_help_panel=CLUSTER, help="Slurm account.")]
TimeOption = Annotated[
    str | None,
    typer.Option("--time", rich_help_panel=CLUSTER, help="Time of one job.", show_default="1-00:00:00, a day"),
]
ChainOption = Annotated[
    int | None,
    typer.Option("--chain", min=1, rich_help_panel=CLUSTER, help="Jobs in a row, each going on where the last ended."),
]
MemOption = Annotated[
    str | None,
    typer.Option("--mem", rich_help_panel=CLUSTER, help="Memory of each node.", show_default="64G a process"),
]
CpusOption = Annotated[
    int | None,
    typer.Option("--cpus", min=1, rich_help_panel=CLUSTER, help="CPUs of each node.", show_default="5 a process"),
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sbatch", metavar="NAME=VALUE", rich_help_panel=CLUSTER, help="Any other sbatch option. Can be repeated."
    ),
]


def train(
    profile: ProfileOption,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run.", show_default="PROFILE-NUMBER")] = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    overrides: SetOption = None,
    wandb: WandbOption = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    gpus: GpusOption = None,
    procs: ProcsOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    slurm: SlurmOption = False,
    partition: PartitionOption = None,
    account: AccountOption = None,
    time: TimeOption = None,
    chain: ChainOption = None,
    mem: MemOption = None,
    cpus: CpusOption = None,
    sbatch: SbatchOption = None,
) -> None:
    """Train a model: on this machine's CPU or GPUs, on several machines, or on a cluster.

    Ctrl-C writes a checkpoint first. With --run NAME the same command can be repeated: it goes on where it stopped.
    """
    cluster = _cluster(slurm, partition, account, time, chain, mem, cpus, sbatch)
    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import Workspace
    from threedgp.errors import UsageError
    from threedgp.launch.plan import choose_launch, open_run, plan_run

    place = Workspace.find(workspace)
    resolved = load_profile(profile, overrides or [], dataset=dataset)
    launch = choose_launch(
        gpus=gpus, procs=procs, nodes=nodes, rendezvous=rendezvous, data=_text(data), wandb=wandb, elsewhere=slurm
    )
    if nodes > 1 and run is None and not slurm:
        raise UsageError("Several machines must agree on the run: choose its name with --run.")
    plan = plan_run(place, resolved, launch, name=run)
    if dry_run:
        _dry_run(plan, cluster, json_output)
        return
    _require_services(wandb, cluster)
    opened = open_run(place, resolved, launch, name=run)
    with _alone(opened, nodes):
        _start(opened, replace(plan, run=opened.name, folder=opened.folder), cluster, json_output)


def resume(
    run: Annotated[str | None, typer.Argument(help="A run's name.", show_default="the newest")] = None,
    data: DataOption = None,
    overrides: SetOption = None,
    wandb: WandbOption = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    gpus: GpusOption = None,
    procs: ProcsOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    slurm: SlurmOption = False,
    partition: PartitionOption = None,
    account: AccountOption = None,
    time: TimeOption = None,
    chain: ChainOption = None,
    mem: MemOption = None,
    cpus: CpusOption = None,
    sbatch: SbatchOption = None,
) -> None:
    """Continue a run from its newest checkpoint, with as many processes as you like.

    --set changes the run's profile for good: --set training.kimg=50.0 makes it longer.
    """
    cluster = _cluster(slurm, partition, account, time, chain, mem, cpus, sbatch)
    from threedgp.config.workspace import Workspace
    from threedgp.launch.here import require_free
    from threedgp.launch.plan import change_profile, choose_launch, keep_profile, outcome, plan_run
    from threedgp.runs.run import Run

    place = Workspace.find(workspace)
    chosen = Run.open(place, run) if run else Run.newest(place)
    if nodes == 1 and not dry_run:  # another machine of the same start may already hold it
        require_free(chosen)
    launch = choose_launch(
        gpus=gpus, procs=procs, nodes=nodes, rendezvous=rendezvous, data=_text(data), wandb=wandb, elsewhere=slurm
    )
    resolved = change_profile(chosen, overrides or [])
    plan = plan_run(place, resolved, launch, run=chosen)
    if dry_run:
        _dry_run(plan, cluster, json_output)
        return
    if outcome(chosen, resolved)["finished"]:
        _finish(chosen, json_output, resolved, longer=True)
        return
    _require_services(wandb, cluster)
    with _alone(chosen, nodes):
        _start(keep_profile(chosen, resolved), plan, cluster, json_output)


@contextmanager
def _alone(run: Any, nodes: int) -> Iterator[None]:
    """Keep other starts of the run away from its folder, from before its settings are changed to the end.

    Several machines of one start share the folder: among them the one that trains holds the run.
    """
    from threedgp.launch.here import require_free

    if nodes > 1:
        yield
        return
    require_free(run)
    with run.starting():
        yield


def _require_services(wandb: str | None, cluster: Any) -> None:
    """Check what the run needs besides this program, before anything is written."""
    if wandb is not None:
        from threedgp.training.log import require_wandb

        require_wandb()
    if cluster is not None:
        from threedgp.launch.slurm import require_slurm

        require_slurm()


def _start(run: Any, plan: Any, cluster: Any, json_output: bool) -> None:
    """Show the plan, train or submit, and say how it ended."""
    from threedgp.launch.provenance import record_start

    _show_plan(plan, json_output)
    record_start(run, ["3dgp", *sys.argv[1:]], asdict(plan.options))
    if cluster is not None:
        _submit(run, plan.options, cluster, json_output)
        return
    stopped_by = _train(run, plan.options)
    _finish(run, json_output)
    if stopped_by == signal.SIGINT:
        sys.exit(130)


def _train(run: Any, options: Any) -> int | None:
    """Train until the end or until asked to stop; returns the signal that asked, if one did."""
    from threedgp.launch.here import StopRequest, stop_on_signals, train_here
    from threedgp.launch.several import run_workers
    from threedgp.runs.run import STOP_FILE

    def announce() -> None:
        if stderr.is_terminal and options.world_size > 1:  # below the line that another process draws
            stderr.print()
        show_note("Stopping with a checkpoint after this iteration. Ctrl-C again stops at once, without one.")

    request = StopRequest(run.folder / STOP_FILE)
    try:
        with stop_on_signals(request, announce):
            if options.world_size > 1:
                run_workers(run, options, request)
            else:
                train_here(run, options, request, progress())
    except KeyboardInterrupt:
        show_note(f"Stopped at once. Go on from the last checkpoint with: 3dgp resume {run.name}")
        sys.exit(130)
    finally:
        stderr.show_cursor()  # a killed process leaves it hidden
    return request.signal


def _submit(run: Any, launch: Any, cluster: Any, json_output: bool) -> None:
    from threedgp.launch.slurm import FOLDER, submit

    jobs = submit(run, launch, cluster)
    logs = run.folder / FOLDER
    if json_output:
        print_json({"run": run.name, "folder": str(run.folder), "jobs": jobs, "logs": str(logs)})
        return
    what = f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {', '.join(jobs)}, one after the other"
    say(f"Run {run.name} is in the queue as {what}. Logs: {logs}. Watch with: 3dgp runs list")


def _dry_run(plan: Any, cluster: Any, json_output: bool) -> None:
    script = None
    if cluster is not None:
        from threedgp.launch.slurm import sbatch_script

        script = sbatch_script(plan.folder, plan.folder.name, plan.options, cluster)
    if json_output:
        print_json(plan.as_dict() | ({"sbatch": script} if script else {}))
        return
    _show_plan(plan, json_output=script is not None)  # standard output is the script's then
    if script:
        sys.stdout.write(script)


def _show_plan(plan: Any, json_output: bool) -> None:
    shown = table(None, ["", ""], plan.rows())
    shown.show_header = False
    shown.columns[0].style = "bold"
    show(shown, json_output=json_output)
    for note in plan.notes:
        show_note(note)
    (stderr if json_output else stdout).file.flush()  # before the first line of progress


def _finish(run: Any, json_output: bool, profile: Any = None, *, longer: bool = False) -> None:
    from threedgp.launch.plan import outcome

    result = outcome(run, profile)
    if json_output:
        print_json(result)
    elif result["finished"]:
        more = f" To train longer: 3dgp resume {run.name} --set {result['ended_by']}=NUMBER" if longer else ""
        say(f"Run {run.name} is complete: {result['kimg']:g} thousand images, in {result['folder']}.{more}")
    else:
        say(f"Run {run.name} stopped at {result['kimg']:g} thousand images. Go on with: 3dgp resume {run.name}")


def _cluster(
    slurm: bool,
    partition: str | None,
    account: str | None,
    time: str | None,
    chain: int | None,
    mem: str | None,
    cpus: int | None,
    sbatch: list[str] | None,
) -> Any:
    """Options of a cluster job; None without --slurm."""
    from threedgp.errors import UsageError

    given = {"partition": partition, "account": account, "time": time, "chain": chain, "mem": mem, "cpus": cpus}
    given["sbatch"] = sbatch or None
    if not slurm:
        unused = [f"--{name}" for name, value in given.items() if value is not None]
        if unused:
            raise UsageError(f"{', '.join(unused)}: only with --slurm.")
        return None
    from threedgp.launch.slurm import SlurmOptions, parse_memory, parse_time, require_submitit

    require_submitit()
    extra = {}
    for entry in sbatch or []:
        name, separator, value = entry.partition("=")
        if not separator or not name.strip("-"):
            raise UsageError(f"--sbatch {entry}: write it as NAME=VALUE, for example qos=high.")
        extra[name.lstrip("-")] = value
    return SlurmOptions(
        partition=partition,
        account=account,
        minutes=parse_time(time or "1-00:00:00"),
        memory_gb=None if mem is None else parse_memory(mem),
        cpus=cpus,
        chain=chain or 1,
        extra=extra,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def register(app: typer.Typer) -> None:
    """Add the commands to the executable."""
    app.command(rich_help_panel=TRAIN_PANEL)(train)
    app.command(rich_help_panel=TRAIN_PANEL)(resume)
