"""What all commands share: options, progress bars, tables, `--json`, and errors without tracebacks."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from threedgp.progress import Progress

DATA_PANEL = "Data: photos to a training set"
TRAIN_PANEL = "Training"
RESULT_PANEL = "Scores and pictures"
HELP_PANEL = "Finding your way"

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        help="Folder with data/, runs/ and renders/ in it.",
        show_default="$THREEDGP_WORKSPACE or the current directory",
    ),
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Folder under data/; not needed while there is only one.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, everything else on standard error.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting: key.path=value. Can be repeated.")
]
JobsOption = Annotated[
    int | None, typer.Option("-j", "--jobs", help="Worker processes.", min=1, show_default="one a core")
]

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters written out, `\\x1b` for an escape.

    Names of files, classes and records come from others. As they are, they could clear the screen, rename the window,
    turn the reading direction, or stand for bytes that no output can encode.
    """
    return _INVISIBLE.sub(lambda match: ascii(match[0])[1:-1], text)


class VisibleConsole(Console):
    """A console whose every text passes through `visible`, wherever it comes from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


stderr = VisibleConsole(stderr=True, highlight=False)
stdout = VisibleConsole(highlight=False)


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take the fields of a dataclass as options: `def resize(..., stage: StageOptions)`.

    Each field of an annotated dataclass becomes an option of its own, written once for all commands of a family; the
    command gets them as one object.
    """
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    families = {name: hints[name] for name in own if dataclasses.is_dataclass(hints[name])}
    options = [(name, hints[name], own[name].default) for name in own if name not in families]
    for family in families.values():  # below the command's own in --help
        types = get_type_hints(family, include_extras=True)
        options += [(field.name, types[field.name], field.default) for field in dataclasses.fields(family)]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, kind, default in options
    ]

    def run(**values: Any) -> None:
        for name, kind in families.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def say(text: str, *, json_output: bool = False) -> None:
    """Print a line for people: on standard output, or on standard error when that is kept for JSON."""
    (stderr if json_output else stdout).print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print the one machine-readable object of `--json`."""
    text = json.dumps(value, ensure_ascii=False, default=str)  # escapes ASCII's control characters, but no others
    sys.stdout.write(_INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def show_error(message: str) -> None:
    """Print an error for people."""
    stderr.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def show_note(message: str, console: Console = stderr) -> None:
    """Print a sentence worth reading on standard error."""
    console.print(f"[yellow]Note:[/] {escape(message)}", soft_wrap=True)


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[int] = ()
) -> Table:
    """A table in the one style all commands share; `right` lists right-aligned columns (numbers)."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*[escape(str(cell)) for cell in row])
    return made


def show(renderable: Any, *, json_output: bool = False) -> None:
    """Print a table or other Rich object where people look for it."""
    (stderr if json_output else stdout).print(renderable)


def progress() -> ConsoleProgress:
    """A progress listener on standard error."""
    return ConsoleProgress(stderr)


class ConsoleProgress(Progress):
    """Draws a bar with rate and time left on a terminal, plain lines in a pipe."""

    PLAIN_SECONDS = 10.0  # between two lines in a pipe

    def __init__(self, console: Console):
        self.console = console
        self.bar: Any = None
        self.task: Any = None
        self.label: str | None = None

    def start(self, label: str, total: int | None = None, unit: str = "images", done: int = 0) -> None:
        self.finish()
        self.label, self.total, self.unit, self.text = label, total, unit, ""
        self.done = self.before = done
        self.began, self.last = time.monotonic(), time.monotonic()
        if self.console.is_terminal:
            from rich import progress as rich_progress

            self.bar = rich_progress.Progress(
                "{task.description}",
                rich_progress.BarColumn(bar_width=30),
                rich_progress.MofNCompleteColumn(),
                "{task.fields[rate]}",
                rich_progress.TimeRemainingColumn(),
                "[dim]{task.fields[status]}",
                console=self.console,
            )
            self.task = self.bar.add_task(label, total=total, completed=done, rate="", status="")
            self.bar.start()
        else:
            later = f", {done} of them done" if done else ""
            self._line(f"{label}: {'' if total is None else f'{total} '}{unit}{later}")

    def advance(self, count: int = 1) -> None:
        self.done += count
        elapsed = max(time.monotonic() - self.began, 1e-9)
        fresh = self.done - self.before
        rate = f"{fresh / elapsed:.1f} {self.unit}/s"
        if self.bar is not None:
            self.bar.update(self.task, advance=count, rate=rate)
        elif self.label is not None and time.monotonic() - self.last >= self.PLAIN_SECONDS:
            self.last = time.monotonic()
            left = "" if not self.total else f", {_duration((self.total - self.done) * elapsed / max(fresh, 1))} left"
            seen = f"{self.done}{'' if self.total is None else f'/{self.total}'}"
            self._line(f"{self.label}: {seen} ({rate}{left}) {self.text}".rstrip())

    def status(self, text: str) -> None:
        self.text = text
        if self.bar is not None:
            self.bar.update(self.task, status=escape(text))

    def note(self, text: str) -> None:
        show_note(text, self.console)

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.label is not None:
            elapsed = time.monotonic() - self.began
            self._line(f"{self.label}: {self.done - self.before} {self.unit} in {_duration(elapsed)}")
        self.bar = None
        self.label = None

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


class _Notes(logging.Handler):
    """Shows warnings of `threedgp` as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        show_note(record.getMessage())


def run_app(app: typer.Typer) -> None:
    """Run the command line; expected errors become a sentence and an exit code, never a traceback.

    `--debug` anywhere on the line (or THREEDGP_DEBUG=1) shows the traceback instead.
    """
    from threedgp.errors import ThreeDGPError

    debug = "--debug" in sys.argv or bool(os.environ.get("THREEDGP_DEBUG"))
    if debug:
        os.environ["THREEDGP_DEBUG"] = "1"  # for the processes it starts
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.getLogger("threedgp").addHandler(_Notes(logging.WARNING))
    try:
        code = app(args=arguments, prog_name="3dgp", standalone_mode=False)
        if code == 130:  # how Typer reports Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        show_error("Interrupted. Finished work is kept; run the same command again to go on.")
        sys.exit(130)
    except ThreeDGPError as error:
        if debug:
            raise
        show_error(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if debug:
            raise
        show_error(_describe_os_error(error))
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of whichever Click Typer carries
            vars(error)["message"] = visible(getattr(error, "message", None) or "")
            error.show()
            sys.exit(error.exit_code)
        if debug:
            raise
        show_error(f"Unexpected {type(error).__name__}: {error}. This is a bug: run again with --debug for details.")
        sys.exit(1)


def _describe_os_error(error: OSError) -> str:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    advice = {
        errno.ENOSPC: "The disk is full. Free some space and run the same command again; finished work is kept.",
        errno.EDQUOT: "The disk quota is used up. Free some space and run the same command again.",
        errno.EACCES: "Permission denied. Choose a folder you can write to.",
        errno.EROFS: "The file system is read-only. Choose another folder.",
    }.get(error.errno or 0)
    return f"{advice}{where}" if advice else f"{error.strerror or error}{where}."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
