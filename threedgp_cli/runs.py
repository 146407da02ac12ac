"""`3dgp runs` and `3dgp import`: what was trained so far, and weights brought from elsewhere."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from threedgp_cli.console import (
    JsonOption,
    SetOption,
    WorkspaceOption,
    print_json,
    progress,
    say,
    show,
    show_note,
    table,
)

app = typer.Typer(help="List and show training runs.", no_args_is_help=True)


@app.command("list")
def list_runs(workspace: WorkspaceOption = None, json_output: JsonOption = False) -> None:
    """List the runs of the workspace, newest first: how far, how good, how large."""
    from threedgp.config.workspace import Workspace
    from threedgp.runs.summary import summarize_all

    place = Workspace.find(workspace)
    summaries = summarize_all(place)
    if json_output:
        print_json([asdict(summary) for summary in summaries])
        return
    if not summaries:
        say(f"No runs in {place.runs} yet. Start one with: 3dgp train --profile NAME")
        return
    rows = [
        (
            summary.name,
            summary.profile or "-",
            _progress(summary),
            _score(summary.metric, summary.best),
            _state(summary),
            _size(summary.bytes),
        )
        for summary in summaries
    ]
    show(table(None, ["run", "profile", "kimg", "best", "state", "size"], rows, right=(2, 5)))
    for summary in summaries:
        if summary.problem:
            show_note(f"{summary.name}: {summary.problem}")


@app.command("show")
def show_run(
    name: Annotated[str | None, typer.Argument(help="A run's name or folder. [default: the newest]")] = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show one run: its state, its checkpoints and their scores."""
    from threedgp.config.workspace import Workspace
    from threedgp.runs.run import Run
    from threedgp.runs.summary import summarize, summarize_checkpoints

    place = Workspace.find(workspace)
    run = Run.newest(place) if name is None else Run.open(place, name)
    summary = summarize(run)
    checkpoints = [] if summary.problem else summarize_checkpoints(run)
    if json_output:
        described = [asdict(checkpoint) for checkpoint in checkpoints]
        print_json(asdict(summary) | {"folder": str(run.folder), "checkpoints": described})
        return
    rows = [
        ("folder", run.folder),
        ("profile", summary.profile or "-"),
        ("state", _state(summary)),
        ("thousand images", _progress(summary)),
        ("best", _score(summary.metric, summary.best) + (f" at {summary.best_kimg:g}" if summary.best else "")),
        ("size", _size(summary.bytes)),
        ("started", _date(summary.created)),
    ]
    show(table(summary.name, ["", ""], rows))
    if summary.problem:
        show_note(summary.problem)
    if checkpoints:
        metrics = list(dict.fromkeys(key for checkpoint in checkpoints for key in checkpoint.scores))
        lines = [
            (
                f"{checkpoint.kimg:g}",
                _date(checkpoint.written),
                _size(checkpoint.bytes),
                *(_number(checkpoint.scores.get(metric)) for metric in metrics),
                "best" if checkpoint.best else "",
            )
            for checkpoint in checkpoints
        ]
        say("")
        columns = ["kimg", "written", "size", *metrics, ""]
        show(table("Checkpoints", columns, lines, right=(0, 2, *range(3, 3 + len(metrics)))))


def import_weights(
    snapshot: Annotated[Path, typer.Argument(help="The file: .pkl, .safetensors, .npz, .pt or .pth.")],
    name: Annotated[
        str | None, typer.Option("--run", help="Name of the new run. [default: the profile's name and a number]")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Takes what the file does not tell (cameras, ray steps) from this profile."),
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Bring a snapshot of the published 3DGP, EpiGRAF or StyleGAN2 code into a run that eval and render can use.

    Nothing inside the file is executed: a pickle that asks for more than tensors and settings is refused.
    """
    from threedgp.config.workspace import Workspace
    from threedgp.legacy.importing import import_snapshot

    imported = import_snapshot(
        snapshot,
        Workspace.find(workspace),
        name=name,
        profile=profile,
        overrides=overrides or [],
        progress=progress(),
    )
    run = imported.run
    result: dict[str, Any] = {
        "run": run.name,
        "folder": str(run.folder),
        "checkpoint": imported.checkpoint.name,
        "networks": list(imported.networks),
        "kind": run.profile.model.kind,
    }
    if json_output:
        print_json(result)
        return
    say(f"Imported {', '.join(imported.networks)} of {snapshot} into the run {run.name} ({run.profile.model.kind}).")
    say(f"Render it with: 3dgp render video {run.name}")


def _progress(summary: Any) -> str:
    done = "-" if summary.kimg is None else f"{summary.kimg:g}"
    return done if summary.total_kimg is None or summary.state == "imported" else f"{done} / {summary.total_kimg:g}"


def _score(metric: str | None, value: float | None) -> str:
    return "-" if metric is None else f"{metric} {_number(value)}"


def _state(summary: Any) -> str:
    if summary.holder and "pid" in summary.holder:
        return f"running (process {summary.holder['pid']} on {summary.holder['host']})"
    return summary.state


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
