"""A run folder: everything one training run knows, enough to resume, evaluate or render it.

runs/<profile>-<number>/
    config.yaml       the resolved profile
    checkpoints/      see `threedgp.runs.checkpoint`
    metrics.jsonl     one line for each evaluation
    log.jsonl         one line for each tick of training
    tensorboard/      the same for TensorBoard
    samples/          pictures made while training
    data.json         which training set it uses
    clock.json        seconds of training so far
    recovery.jsonl    one line for each return to a healthy checkpoint after a divergence
    starts.jsonl      one line for each start: command, versions, machine; code/ holds the code of each
    slurm/            scripts and logs of cluster jobs
    lock              held by the process that trains
    starting          held by the command that started it
    stop              made by anyone to ask for a checkpoint and the end of training
    DONE              made when the run has reached its end
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from threedgp.config.metric_names import larger_is_better, main_value, parse_metric
from threedgp.config.profile import load_profile_file, save_profile
from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.errors import CheckpointError, UsageError
from threedgp.files import TEMPORARY_MARK, append_json_line, read_json_lines
from threedgp.progress import NULL_PROGRESS, Progress
from threedgp.runs.catalog import checkpoint_name, checkpoint_nimg, find_latest, list_checkpoints
from threedgp.runs.lock import hold, holder

if TYPE_CHECKING:
    import torch

    from threedgp.models.generator import Generator
    from threedgp.models.stylegan2 import StyleGAN2Generator

CONFIG = "config.yaml"
STOP_FILE = "stop"
DONE_FILE = "DONE"
DATA_FILE = "data.json"
CLOCK_FILE = "clock.json"
IMPORTED = "import.json"  # beside config.yaml: where an imported run's weights came from

_CHECKPOINT = re.compile(r"\d{9,18}")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Best(NamedTuple):
    """The best checkpoint, its value, and the name of the metric that decided."""

    path: Path
    value: float
    metric: str


@dataclass(frozen=True)
class Run:
    """One run folder. Make it with `Run.create`, `Run.open`, `Run.newest` or `Run.all`."""

    folder: Path

    # ----------------------------------------------------------------------------------------------- making and finding

    @classmethod
    def create(cls, workspace: Workspace, profile: Profile, name: str | None = None) -> Run:
        """Make a new run folder with the profile in it, whole or not at all.

        Args:
            workspace: where `runs/` is.
            profile: the resolved profile, written to config.yaml.
            name: the folder's name; by default `<profile>-<number>`, the next free number, also when several
                processes ask at once.

        Raises:
            UsageError: the name is taken or cannot be a folder's name.
        """
        if name is not None:
            check_run_name(name)
        work = workspace.runs / f".{name or 'run'}{TEMPORARY_MARK}{secrets.token_hex(4)}"
        try:
            (work / "checkpoints").mkdir(parents=True)
            (work / "samples").mkdir()
            save_profile(profile, work / CONFIG)
            while True:
                folder = workspace.runs / (name or _next_name(workspace.runs, profile.name))
                try:
                    os.rename(work, folder)  # fails if the folder exists, unless it is empty
                except OSError:
                    if not folder.exists():
                        raise
                    if name is not None:
                        raise UsageError(
                            f"There is already a run '{name}'. Continue it with `3dgp resume {name}`, or choose "
                            "another name with --run."
                        ) from None
                else:
                    return cls(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @classmethod
    def open(cls, workspace: Workspace, name: str | Path) -> Run:
        """The run of this name, or in this folder.

        Raises:
            UsageError: no such run; names the nearest one.
        """
        for folder in (workspace.runs / name, Path(name)):
            if (folder / CONFIG).is_file():
                return cls(folder)
        names = [run.name for run in cls.all(workspace)]
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"There is no run '{name}' in {workspace.runs}.{hint} See them all with: 3dgp runs list")

    @classmethod
    def all(cls, workspace: Workspace) -> list[Run]:
        """Every run of the workspace, oldest first."""
        try:
            entries = list(workspace.runs.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        runs = [cls(path) for path in entries if not path.name.startswith(".") and (path / CONFIG).is_file()]
        return sorted(runs, key=lambda run: (run.config.stat().st_mtime_ns, run.name))

    @classmethod
    def newest(cls, workspace: Workspace, *, with_checkpoint: bool = False) -> Run:
        """The run created last; `with_checkpoint` passes over those that have none yet.

        Raises:
            UsageError: there is none.
        """
        runs = cls.all(workspace)
        for run in reversed(runs):
            if not with_checkpoint or run.checkpoints():
                return run
        if runs:
            raise UsageError(f"No run in {workspace.runs} has a checkpoint yet. Train on with: 3dgp resume")
        raise UsageError(
            f"There is no run in {workspace.runs}. Start one with `3dgp train --profile NAME`, or bring weights with "
            "`3dgp import SNAPSHOT`."
        )

    # ------------------------------------------------------------------------------------------------------------ parts

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @cached_property
    def profile(self) -> Profile:
        """The run's profile, from config.yaml.

        Raises:
            ConfigError: config.yaml is missing or broken.
        """
        return load_profile_file(self.config)

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        return list_checkpoints(self.checkpoints_folder)

    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(parent, name)).st_size
                except FileNotFoundError:  # pruned meanwhile
                    continue
        return total

    # ------------------------------------------------------------------------------------------------------------- lock

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run while training it; see `threedgp.runs.lock.hold`."""
        return hold(self.folder / "lock", f"Run '{self.name}'")

    def starting(self) -> AbstractContextManager[None]:
        """Hold what a start changes before it trains, such as config.yaml, so that two starts cannot mix."""
        return hold(self.folder / "starting", f"Run '{self.name}'")

    def holder(self) -> dict[str, Any] | None:
        """Who trains this run right now: {"pid", "host", "since"} (empty if unknown), or None if nobody does."""
        return holder(self.folder / "lock")

    def state(self) -> str:
        """`running` (a process holds it), `imported`, `done` (trained to its end), `stopped`, or `empty`."""
        if self.holder() is not None:
            return "running"
        if (self.folder / IMPORTED).is_file():
            return "imported"
        paths = self.checkpoints()
        if not paths:
            return "empty"
        ended = (self.folder / DONE_FILE).exists() or checkpoint_nimg(paths[-1]) >= 1000 * self.profile.training.kimg
        return "done" if ended else "stopped"

    # ---------------------------------------------------------------------------------------------------------- metrics

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one evaluation to metrics.jsonl.

        Args:
            line: at least `metric` (its name, such as "fid50k_full"), `results` (value name -> number) and
                `checkpoint` (path or folder name of what was scored, or None). Anything else is kept as it is;
                non-finite numbers become null, `timestamp` is added.
        """
        checkpoint = line["checkpoint"]
        entry = {
            **line,
            "metric": line["metric"],
            "results": {name: _finite(value) for name, value in line["results"].items()},
            "checkpoint": None if checkpoint is None else checkpoint_name(checkpoint_nimg(checkpoint)),
        }
        append_json_line(self.metrics_file, {"timestamp": time.time(), **entry})

    def metrics(self) -> list[dict[str, Any]]:
        """All well-formed lines of metrics.jsonl, oldest first; values that are no finite numbers are None."""
        return [found for line in read_json_lines(self.metrics_file) if (found := _metric_line(line)) is not None]

    def best(self, metric: str | None = None) -> Best | None:
        """The checkpoint with the best value of a metric; None if none was scored.

        Only checkpoints that still exist and finite values count; the last line of a checkpoint replaces earlier
        ones; of equals the earliest checkpoint wins.

        Args:
            metric: a metric's or a value's name; by default the first of the profile's `training.metrics`, or what
                stands in for it offline.

        Raises:
            UsageError: unknown metric, so that it is not known whether larger or smaller is better.
        """
        if metric is not None:
            return self._best(metric)
        if not self.profile.training.metrics:
            return None
        main = self.profile.training.metrics[0]
        return self._best(main) or self._best(parse_metric(main).offline().name)

    def _best(self, metric: str) -> Best | None:
        sign = -1 if larger_is_better(metric) else 1
        try:
            names = {metric, main_value(metric)}
        except UsageError:  # the name of one value of a metric that has several
            names = {metric}
        values: dict[str, float | None] = {}
        for line in self.metrics():
            for name in names:
                if name in line["results"] and line["checkpoint"]:
                    values[line["checkpoint"]] = line["results"][name]
        scored = [
            (sign * value, checkpoint_nimg(path), path)
            for path in self.checkpoints()
            if (value := values.get(checkpoint_name(checkpoint_nimg(path)))) is not None
        ]
        if not scored:
            return None
        value, _, path = min(scored)
        return Best(path, sign * value, metric)

    # --------------------------------------------------------------------------------------------- choosing checkpoints

    def checkpoint(self, which: str | float | Path = "best", progress: Progress = NULL_PROGRESS) -> Path:
        """Path of one checkpoint of this run.

        Args:
            which: "best" (by the profile's first metric, the latest if nothing was scored), "latest" (the newest
                intact one), a number of thousand images, a folder name, or a path.
            progress: told when damaged checkpoints are passed over.

        Raises:
            CheckpointError: there is no such checkpoint; lists those there are.
        """
        if which == "best":
            best = self.best()
            if best is not None:
                return best.path
            which = "latest"
        paths = self.checkpoints()
        if which == "latest":
            path = find_latest(self.checkpoints_folder, progress)
            if path is None and paths:
                raise CheckpointError(f"All {len(paths)} checkpoints of run '{self.name}' are damaged.")
            if path is None:
                raise CheckpointError(
                    f"Run '{self.name}' has no checkpoint yet. Train on with: 3dgp resume {self.name}"
                )
            return path
        if (isinstance(which, Path) or os.sep in str(which)) and os.path.isdir(str(which)):
            return Path(str(which))
        named = [path for path in paths if path.name == str(which)]
        nimg = round(1000 * _number(str(which)), 3)
        for path in named or [path for path in paths if checkpoint_nimg(path) == nimg]:
            return path
        there = ", ".join(f"{checkpoint_nimg(path) / 1000:.12g}" for path in paths[-20:]) or "none"
        raise CheckpointError(f"Run '{self.name}' has no checkpoint '{which}'. It has, in thousand images: {there}.")


def find_checkpoint(
    workspace: Workspace,
    run: str | Path | None = None,
    which: str | float | Path = "best",
    progress: Progress = NULL_PROGRESS,
) -> tuple[Run, Path]:
    """What evaluation and rendering work on: a run and one checkpoint of it.

    Args:
        workspace: where `runs/` is.
        run: a run's name or folder; by default the newest run that has a checkpoint. The path of a checkpoint inside
            a run chooses both.
        which: as for `Run.checkpoint`; a path chooses its own run.
        progress: told when damaged checkpoints are passed over.

    Raises:
        UsageError, CheckpointError: there is no such run or checkpoint.
    """
    for path in (which, run):
        if isinstance(path, (str, Path)) and (Path(path) / "manifest.json").is_file():
            found = run_of(path)
            if path is which and run is not None and Run.open(workspace, run).folder.resolve() != found.folder:
                raise UsageError(f"Checkpoint {which} belongs to run '{found.name}', not to '{run}'.")
            if path is run and which != "best":
                raise UsageError(f"{run} is a checkpoint already: leave --checkpoint {which} out.")
            return found, Path(path)
    chosen = Run.newest(workspace, with_checkpoint=True) if run is None else Run.open(workspace, run)
    return chosen, chosen.checkpoint(which, progress)


def run_of(checkpoint: Path | str) -> Run:
    """The run that a checkpoint lies in.

    Raises:
        CheckpointError: it is not inside a run folder.
    """
    folder = Path(checkpoint).resolve().parent.parent
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{checkpoint} does not lie in a run folder: there is no {folder / CONFIG}. Keep checkpoints inside "
            "runs/NAME/checkpoints/."
        )
    return Run(folder)


def load_generator(checkpoint: Path | str, device: torch.device | str = "cpu") -> Generator | StyleGAN2Generator:
    """The averaged generator of a checkpoint, in evaluation mode, without gradients.

    Args:
        checkpoint: a checkpoint's folder inside a run, as `Run.checkpoint` returns; the run's config.yaml says how
            the network is built.
        device: where it goes.

    Raises:
        CheckpointError: damaged, of another profile, or not inside a run.
    """
    from threedgp.models.build import build_generator  # torch: not needed to list runs
    from threedgp.runs.checkpoint import load_checkpoint, load_weights

    profile = run_of(checkpoint).profile
    loaded = load_checkpoint(checkpoint, groups=["G_ema"], profile=profile)
    generator = build_generator(profile)
    load_weights(generator, loaded.tensors["G_ema"], f"Checkpoint {checkpoint}, G_ema")
    return generator.eval().requires_grad_(False).to(device)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _metric_line(line: Any) -> dict[str, Any] | None:
    """A line of metrics.jsonl with values that can be relied on; None if it is no such line."""
    if (
        not isinstance(line, dict)
        or not isinstance(line.get("metric"), str)
        or not isinstance(line.get("results"), dict)
    ):
        return None
    checkpoint = line.get("checkpoint")
    known = isinstance(checkpoint, str) and _CHECKPOINT.fullmatch(checkpoint)
    results = {name: _finite(value) for name, value in line["results"].items()}
    return {**line, "results": results, "checkpoint": checkpoint if known else None}


def _finite(value: Any) -> float | None:
    """A number from a record; None for anything else, and for numbers that no float holds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and abs(value) <= sys.float_info.max else None


def check_run_name(name: str) -> None:
    """Raise `UsageError` for a name that cannot be a run's."""
    if not _RUN_NAME.fullmatch(name):
        raise UsageError(
            f"A run cannot be called '{name[:100]}'. Use up to 100 letters, digits, '.', '_' and '-', starting with a "
            "letter or digit."
        )


def _next_name(runs: Path, profile_name: str) -> str:
    profile_name = re.sub(r"[^A-Za-z0-9._-]+", "-", profile_name)[:80].lstrip("._-") or "run"
    numbered = re.compile(re.escape(profile_name) + r"-(\d{1,9})")
    numbers = [int(match[1]) for path in runs.iterdir() if (match := numbered.fullmatch(path.name))]
    return f"{profile_name}-{max(numbers, default=0) + 1:03d}"
