"""Every command that a message recommends exists, with the options it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

from threedgp_cli.main import app

ROOT = Path(__file__).parents[2]


def recommended() -> list[str]:
    """Each `3dgp ...` in a text of the program, up to the end of its sentence; values that vary are written X."""
    found = set()
    for path in sorted([*(ROOT / "threedgp").rglob("*.py"), *(ROOT / "threedgp_cli").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            found.update(match.strip() for match in re.findall(r"3dgp ([a-z][^`'\")\n.,;:]*)", text))
    return sorted(found)


def test_there_are_recommendations():
    assert len(recommended()) > 20


@pytest.mark.parametrize("text", recommended())
def test_a_recommended_command_exists(text):
    command, words = typer.main.get_command(app), text.split()
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if "|" in name or "/" in name or name == "X":
            return  # several are named at once
        assert name in command.commands, f"3dgp {text}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts} | {
        "--help",
        "--debug",
        "--workspace",
    }
    for word in words:
        if re.fullmatch(r"--[a-z-]+", word):
            assert word in options, f"3dgp {text}"
