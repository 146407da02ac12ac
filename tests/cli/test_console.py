"""What is shown: names from outside cannot steer the terminal, and JSON stays JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from threedgp_cli.console import ConsoleProgress, VisibleConsole, print_json, table, visible

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b31mb\r\u202ec\udcff\x7f[bold]"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07\x9b31mb\r\u202ec\udcff\x7f[bold]"


def test_control_characters_are_written_out():
    assert visible(HOSTILE) == SHOWN
    assert visible("Übung\n\t日本 [x]") == "Übung\n\t日本 [x]"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_reaches_the_terminal_as_a_command(terminal):
    console = VisibleConsole(file=io.StringIO(), force_terminal=terminal, width=300, highlight=False, color_system=None)
    console.print(HOSTILE, markup=False, soft_wrap=True)
    console.print(table(HOSTILE.replace("[bold]", ""), ["name"], [(HOSTILE,)]))
    progress = ConsoleProgress(console)
    progress.note(HOSTILE)
    progress.start("reading", 2)
    progress.status(HOSTILE)
    progress.finish()
    text = console.file.getvalue()
    assert text.count(SHOWN.replace(r"\x07", "").replace(r"\r", "")) >= 2  # Rich leaves some out on its own
    for command in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\udcff"):
        assert command not in text


def test_json_reads_back_what_was_written(capsys):
    print_json({"name": HOSTILE})
    line = capsys.readouterr().out
    assert line.strip().isprintable()
    assert json.loads(line) == {"name": HOSTILE}


def test_errors_and_usage_errors_show_names_as_text(tmp_path):
    """A profile that does not exist, a subcommand that does not, and a key of a profile file."""
    path = tmp_path / "mine.yaml"
    path.write_text('extends: tiny-cpu\n"\\e[31mkey": 1\n')
    for arguments in (["profiles", "show", "a\x1b[2J"], ["no\x1b[2J"], ["profiles", "show", str(path)]):
        command = [sys.executable, "-m", "threedgp_cli.main", *arguments]
        result = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "TERM": "dumb"})
        assert result.returncode == 2
        assert b"\x1b" not in result.stderr
        assert rb"\x1b[" in result.stderr
