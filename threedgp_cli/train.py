"""`3dgp train` and `3dgp resume`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threedgp_cli.console import (
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
    takes_options,
)

if TYPE_CHECKING:
    from threedgp.config.schema import Profile
    from threedgp.launch.options import LaunchOptions
    from threedgp.launch.plan import Plan
    from threedgp.launch.slurm import SlurmOptions
    from threedgp.runs.run import Run

WORKER = [sys.executable, "-u", "-m", "threedgp_cli.worker"]
MachineOption = partial(typer.Option, rich_help_panel="Machines")
ClusterOption = partial(typer.Option, rich_help_panel="Cluster (Slurm)")


@dataclass(frozen=True)
class StartOptions:
    """What `train` and `resume` share: the data, and the machines to train on."""

    data: Annotated[
        Path | None, typer.Option("--data", help="Training set folder or zip.", show_default="the workspace's")
    ] = None
    overrides: SetOption = None
    wandb: Annotated[
        str | None, typer.Option("--wandb", metavar="PROJECT", help="Also log to Weights & Biases, if it is installed.")
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and show the plan (or the sbatch script), but do not train."),
    ] = False
    workspace: WorkspaceOption = None
    json_output: JsonOption = False
    gpus: Annotated[
        int | None,
        MachineOption("--gpus", min=1, help="GPUs on each machine, a process each.", show_default="1 if there is any"),
    ] = None
    procs: Annotated[
        int | None, MachineOption("--procs", min=1, help="CPU processes on each machine, instead of GPUs.")
    ] = None
    nodes: Annotated[int, MachineOption("--nodes", min=1, help="Machines; give the same command on each.")] = 1
    rendezvous: Annotated[
        str | None,
        MachineOption(
            "--rendezvous",
            metavar="HOST:PORT",
            help="Where several machines meet: one of them and a free port. Not needed with --slurm.",
        ),
    ] = None
    slurm: Annotated[bool, ClusterOption("--slurm", help="Train as a cluster job, requeued when pre-empted.")] = False
    partition: Annotated[str | None, ClusterOption("--partition", help="Slurm partition.")] = None
    account: Annotated[str | None, ClusterOption("--account", help="Slurm account.")] = None
    time: Annotated[str | None, ClusterOption("--time", help="Time of one job.", show_default="1-00:00:00, a day")] = (
        None
    )
    chain: Annotated[
        int | None, ClusterOption("--chain", min=1, help="Jobs in a row, each going on where the last ended.")
    ] = None
    mem: Annotated[str | None, ClusterOption("--mem", help="Memory of each node.", show_default="64G a process")] = None
    cpus: Annotated[
        int | None, ClusterOption("--cpus", min=1, help="CPUs of each node.", show_default="5 a process")
    ] = None
    sbatch: Annotated[
        list[str] | None,
        ClusterOption("--sbatch", metavar="NAME=VALUE", help="Any other sbatch option. Can be repeated."),
    ] = None

    def launch(self) -> LaunchOptions:
        """Where to train."""
        from threedgp.launch.options import choose_launch

        return choose_launch(
            gpus=self.gpus,
            procs=self.procs,
            nodes=self.nodes,
            rendezvous=self.rendezvous,
            data=None if self.data is None else str(self.data),
            wandb=self.wandb,
            elsewhere=self.slurm,
        )

    def cluster(self) -> SlurmOptions | None:
        """What to ask the cluster for; None without --slurm."""
        from threedgp.errors import UsageError

        if not self.slurm:
            names = ("partition", "account", "time", "chain", "mem", "cpus", "sbatch")
            unused = [f"--{name}" for name in names if getattr(self, name) not in (None, [])]
            if unused:
                raise UsageError(f"{', '.join(unused)}: only with --slurm.")
            return None
        from threedgp.launch.slurm import SlurmOptions, parse_memory, parse_time, require_submitit

        require_submitit()
        extra = {}
        for entry in self.sbatch or []:
            name, separator, value = entry.partition("=")
            if not separator or not name.strip("-"):
                raise UsageError(f"--sbatch {entry}: write it as NAME=VALUE, for example qos=high.")
            extra[name.lstrip("-")] = value
        return SlurmOptions(
            partition=self.partition,
            account=self.account,
            minutes=parse_time(self.time or "1-00:00:00"),
            memory_gb=None if self.mem is None else parse_memory(self.mem),
            cpus=self.cpus,
            chain=self.chain or 1,
            extra=extra,
        )


@takes_options
def train(
    profile: Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a YAML file of your own.")],
    start: StartOptions,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run.", show_default="PROFILE-NUMBER")] = None,
    dataset: DatasetOption = None,
) -> None:
    """Train a model: on this machine's CPU or GPUs, on several machines, or on a cluster.

    Ctrl-C writes a checkpoint first. With --run NAME the same command can be repeated: it goes on where it stopped.
    """
    cluster = start.cluster()
    from threedgp.config.profile import load_profile
    from threedgp.config.workspace import Workspace
    from threedgp.errors import UsageError
    from threedgp.launch.plan import open_run, plan_run

    place = Workspace.find(start.workspace)
    resolved = load_profile(profile, start.overrides or [], dataset=dataset)
    launch = start.launch()
    if start.nodes > 1 and run is None and not start.slurm:
        raise UsageError("Several machines must agree on the run: choose its name with --run.")
    plan = plan_run(place, resolved, launch, name=run)
    if start.dry_run:
        _dry_run(plan, cluster, start.json_output)
        return
    _require_services(start, cluster)
    opened = open_run(place, resolved, launch, name=run)
    with _alone(opened, start.nodes):
        _start(opened, replace(plan, run=opened.name, folder=opened.folder), cluster, start.json_output)


@takes_options
def resume(
    start: StartOptions,
    run: Annotated[str | None, typer.Argument(help="A run's name.", show_default="the newest")] = None,
) -> None:
    """Continue a run from its newest checkpoint, with as many processes as you like.

    --set changes the run's profile for good: --set training.kimg=50.0 makes it longer.
    """
    cluster = start.cluster()
    from threedgp.config.workspace import Workspace
    from threedgp.launch.here import require_free
    from threedgp.launch.plan import change_profile, keep_profile, outcome, plan_run
    from threedgp.runs.run import Run

    place = Workspace.find(start.workspace)
    chosen = Run.open(place, run) if run else Run.newest(place)
    if start.nodes == 1 and not start.dry_run:  # another machine of the same start may already hold it
        require_free(chosen)
    launch = start.launch()
    resolved = change_profile(chosen, start.overrides or [])
    plan = plan_run(place, resolved, launch, run=chosen)
    if start.dry_run:
        _dry_run(plan, cluster, start.json_output)
        return
    if outcome(chosen, resolved)["finished"]:
        _finish(chosen, start.json_output, resolved, longer=True)
        return
    _require_services(start, cluster)
    with _alone(chosen, start.nodes):
        _start(keep_profile(chosen, resolved), plan, cluster, start.json_output)


@contextmanager
def _alone(run: Run, nodes: int) -> Iterator[None]:
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


def _require_services(start: StartOptions, cluster: SlurmOptions | None) -> None:
    """Check what the run needs besides this program, before anything is written."""
    if start.wandb is not None:
        from threedgp.training.log import require_wandb

        require_wandb()
    if cluster is not None:
        from threedgp.launch.slurm import require_slurm

        require_slurm()


def _start(run: Run, plan: Plan, cluster: SlurmOptions | None, json_output: bool) -> None:
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


def _train(run: Run, options: LaunchOptions) -> int | None:
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
                run_workers(run, options, request, WORKER)
            else:
                train_here(run, options, request, progress())
    except KeyboardInterrupt:
        show_note(f"Stopped at once. Go on from the last checkpoint with: 3dgp resume {run.name}")
        sys.exit(130)
    finally:
        stderr.show_cursor()  # a killed process leaves it hidden
    return request.signal


def _submit(run: Run, launch: LaunchOptions, cluster: SlurmOptions, json_output: bool) -> None:
    from threedgp.launch.slurm import FOLDER, submit

    jobs = submit(run, launch, cluster)
    logs = run.folder / FOLDER
    if json_output:
        print_json({"run": run.name, "folder": str(run.folder), "jobs": jobs, "logs": str(logs)})
        return
    what = f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {', '.join(jobs)}, one after the other"
    say(f"Run {run.name} is in the queue as {what}. Logs: {logs}. Watch with: 3dgp runs list")


def _dry_run(plan: Plan, cluster: SlurmOptions | None, json_output: bool) -> None:
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


def _show_plan(plan: Plan, json_output: bool) -> None:
    shown = table(None, ["", ""], plan.rows())
    shown.show_header = False
    shown.columns[0].style = "bold"
    show(shown, json_output=json_output)
    for note in plan.notes:
        show_note(note)
    (stderr if json_output else stdout).file.flush()  # before the first line of progress


def _finish(run: Run, json_output: bool, profile: Profile | None = None, *, longer: bool = False) -> None:
    from threedgp.launch.plan import outcome

    result = outcome(run, profile)
    if json_output:
        print_json(result)
    elif result["finished"]:
        more = f" To train longer: 3dgp resume {run.name} --set {result['ended_by']}=NUMBER" if longer else ""
        say(f"Run {run.name} is complete: {result['kimg']:g} thousand images, in {result['folder']}.{more}")
    else:
        say(f"Run {run.name} stopped at {result['kimg']:g} thousand images. Go on with: 3dgp resume {run.name}")
