"""Commands that several processes share: the same command runs in each, with errors shown as usual."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threedgp.launcher import WorkersFailed, launch, place
from threedgp_cli.console import progress

if TYPE_CHECKING:
    from threedgp.processes import World
    from threedgp.progress import Progress


def is_first() -> bool:
    """Whether this process is the one that talks to people."""
    return place().rank == 0


@dataclass(frozen=True)
class WorkOptions:
    """Who does the work, and where the result goes beside its place."""

    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs on this machine, one process each.")] = None
    procs: Annotated[int | None, typer.Option("--procs", min=1, help="Processes on CPUs, instead of GPUs.")] = None
    out: Annotated[Path | None, typer.Option("--out", help="Also append the result lines to this file.")] = None

    def listener(self) -> Progress:
        """Listens in the one process that talks to people: not in one that only starts others."""
        from threedgp.progress import NULL_PROGRESS

        starts_others = (self.gpus or self.procs or 1) > 1 and place().size == 1
        return progress() if is_first() and not starts_others else NULL_PROGRESS

    @contextmanager
    def world(self) -> Iterator[World]:
        """This process's place; if several are asked for it starts them, waits, and ends the command."""
        from threedgp.errors import ThreeDGPError
        from threedgp.launch.options import choose_launch
        from threedgp.processes import join_world

        chosen, worker = choose_launch(gpus=self.gpus, procs=self.procs), place().size > 1
        if chosen.processes > 1 and not worker:
            try:
                for _ in launch([sys.executable, "-m", "threedgp_cli.main", *sys.argv[1:]], chosen.processes):
                    pass
            except WorkersFailed as error:  # a failed worker has already shown its error
                raise typer.Exit(max(error.failures[0].exitcode, 1)) from None
            raise typer.Exit
        try:
            with join_world(chosen.device) as world:
                yield world
        except ThreeDGPError as error:
            if is_first():
                raise
            raise typer.Exit(error.exit_code) from None  # the first process says it
        except KeyboardInterrupt:
            if not worker:
                raise
            raise typer.Exit(130) from None  # the process that started this one says it
