"""The `3dgp` executable: puts the commands together. Heavy imports happen inside them."""

from __future__ import annotations

from typing import Annotated

import typer

from threedgp_cli import bench, data, demo, doctor, evaluate, profiles, render, runs, train
from threedgp_cli.console import DATA_PANEL, HELP_PANEL, RESULT_PANEL, TRAIN_PANEL, run_app

app = typer.Typer(
    name="3dgp",
    help="Learn 3D from ordinary photos: make a training set, train a 3D generator, score it, render it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Add --debug to any command for full tracebacks.",
)
app.command(rich_help_panel=HELP_PANEL)(demo.demo)
app.add_typer(data.app, name="data", rich_help_panel=DATA_PANEL)
app.command(rich_help_panel=TRAIN_PANEL)(train.train)
app.command(rich_help_panel=TRAIN_PANEL)(train.resume)
app.command("import", rich_help_panel=TRAIN_PANEL)(runs.import_weights)
app.add_typer(runs.app, name="runs", rich_help_panel=TRAIN_PANEL)
app.add_typer(evaluate.app, name="eval", rich_help_panel=RESULT_PANEL)
app.add_typer(render.app, name="render", rich_help_panel=RESULT_PANEL)
app.add_typer(bench.app, name="bench", rich_help_panel=HELP_PANEL)
app.add_typer(profiles.app, name="profiles", rich_help_panel=HELP_PANEL)
app.command(rich_help_panel=HELP_PANEL)(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from threedgp import __version__

        typer.echo(f"3dgp {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the executable."""
    run_app(app)


if __name__ == "__main__":
    main()
