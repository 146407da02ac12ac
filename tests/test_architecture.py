"""The house stands as designed: imports point down its floors, and only the command line talks to people."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # the ground floor first; members of one floor may import each other
    ["threedgp.ops", "threedgp.config", "threedgp.pretrained"]
    + [
        f"threedgp.{module}" for module in ("colormap", "processes", "launcher", "cores", "files", "progress", "errors")
    ],
    ["threedgp.camera", "threedgp.data", "threedgp.demo_world"],
    ["threedgp.rendering"],
    ["threedgp.models"],
    ["threedgp.runs", "threedgp.legacy"],
    ["threedgp.inference"],
    ["threedgp.metrics"],
    ["threedgp.training"],
    ["threedgp.launch"],
    ["threedgp.api", "threedgp.viewer", "threedgp.benchmarks"],
    ["threedgp_cli"],
]
FLOOR = {member: floor for floor, members in enumerate(FLOORS) for member in members}
SOURCES = sorted([*(ROOT / "threedgp").rglob("*.py"), *(ROOT / "threedgp_cli").rglob("*.py")])
LIBRARY = [path for path in SOURCES if path.is_relative_to(ROOT / "threedgp")]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def member_of(module: str) -> str:
    """The member of the floors that a module belongs to: threedgp.data.merge -> threedgp.data."""
    parts = module.split(".")
    return parts[0] if parts[0] == "threedgp_cli" else ".".join(parts[:2])


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            if node.module == "threedgp":  # from threedgp import errors
                yield from ((node.lineno, f"threedgp.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def test_every_module_has_a_floor():
    homeless = {member_of(module_of(path)) for path in SOURCES} - FLOOR.keys() - {"threedgp"}
    assert not homeless


@pytest.mark.parametrize("member", [member for floor in FLOORS for member in floor])
def test_imports_point_down(member):
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if member_of(module_of(path)) == member
        for line, name in imported(path)
        if FLOOR.get(member_of(name), -1) > FLOOR[member]
    ]
    assert not upward, "\n".join(upward)


def test_the_library_never_talks_to_people():
    found = []
    for path in LIBRARY:
        found += [
            f"{path.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imported(path)
            if name.split(".")[0] in ("typer", "rich", "click", "threedgp_cli")
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "input"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}")
    assert not found, "\n".join(found)
