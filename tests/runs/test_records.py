"""Records of a run that others wrote or damaged: lines that cannot be relied on are passed over, one at a time."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from threedgp.config.workspace import Workspace
from threedgp.errors import DataError
from threedgp.launch.plan import outcome
from threedgp.runs.charts import line_chart, ticks
from threedgp.runs.report import curves
from threedgp.runs.run import Run
from threedgp.runs.summary import summarize_all
from threedgp.runs.training_set import require_same_data, training_data
from threedgp_cli.main import app

OLD_RUN = Path(__file__).parent / "old_run"
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "\x1b[2J",
    [],
    [[]],
    {"a": [1]},
)
SCORE = {"timestamp": 1.0, "metric": "nfs4", "results": {"nfs4": 1.5}, "checkpoint": "000000016"}
DATA = {"path": "data", "images": 3, "classes": ["a", "b"], "fingerprint": "0" * 64}


@pytest.fixture
def run(tmp_path) -> Run:
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "old")
    return Run.open(Workspace(tmp_path), "old")


def odd_copies(value: Any) -> Iterator[Any]:
    """Copies of a JSON value, each with one place removed or replaced by something odd."""
    yield from ODD

    def places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            yield (*path, key)
            yield from places(node[key], (*path, key))

    for path in places(value, ()):
        for odd in (*ODD, ...):
            changed = copy.deepcopy(value)
            owner = changed
            for key in path[:-1]:
                owner = owner[key]
            if odd is ...:
                del owner[path[-1]]
            else:
                owner[path[-1]] = odd
            yield changed


def write_lines(path: Path, values: Iterator[Any], last: Any) -> None:
    lines = [*(json.dumps(value) for value in values), "[" * 100_000, "9" * 5000, "\x00", json.dumps(last)]
    path.write_text("\n".join(lines) + "\n")


def test_odd_lines_of_scores_and_logs_are_passed_over(run, capsys):
    write_lines(run.metrics_file, odd_copies(SCORE), SCORE)
    tick = next(line for line in map(json.loads, run.log_file.read_text().splitlines()) if line["kind"] == "tick")
    small = {**tick, "statistics": {name: tick["statistics"][name] for name in ("Loss/G/loss", "Loss/D/loss")}}
    write_lines(run.log_file, odd_copies(small), {**small, "nimg": 24})
    assert any("nfs4" in chart or "Losses" in chart for chart in curves(run))
    assert run.best("nfs4").value == 1.5
    for command in (["runs", "list"], ["runs", "list", "--json"], ["runs", "show", "old"]):
        app(args=[*command, "--workspace", str(run.folder.parents[1])], standalone_mode=False)
        assert "old" in capsys.readouterr().out


def test_an_odd_note_of_the_training_set_or_clock_is_no_bug(run, tmp_path):
    class Changed:
        num_classes = 2
        source = type("Source", (), {"root": tmp_path})

        def identity(self):
            return {"images": 4, "classes": ["a", "c"], "fingerprint": "1" * 64}

    for value in odd_copies(DATA):
        (run.folder / "data.json").write_text(json.dumps(value))
        (run.folder / "clock.json").write_text(json.dumps({"seconds": value}))
        with suppress(DataError):
            require_same_data(run, Changed(), None)
        with suppress(DataError):
            training_data(Workspace(tmp_path), run.profile, run)
        assert outcome(run)["finished"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "checkpoints", "config.yaml"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_a_run_that_cannot_be_read_hides_no_other(run, name, put):
    other = run.folder.with_name("other")
    shutil.copytree(run.folder, other)
    shutil.rmtree(other / name) if name == "checkpoints" else (other / name).unlink(missing_ok=True)
    put(other / name)
    found = {summary.name: summary.state for summary in summarize_all(Workspace(run.folder.parents[1]))}
    assert found["old"] == "done"


def test_charts_leave_out_what_cannot_be_drawn():
    points = [(0, 1.0), (1, float("nan")), (2, 10**400), (3, -1e308), (4, 1e308), (5, 2.0)]
    assert line_chart("title", {"a": points}) == line_chart("title", {"a": [points[0], points[-1]]})
    assert ticks(0.0, 5e-324) == [0.0]
