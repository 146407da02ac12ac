"""What is worth telling about a run at a glance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from threedgp.config.workspace import Workspace
from threedgp.errors import ThreeDGPError
from threedgp.runs.catalog import checkpoint_name, checkpoint_nimg
from threedgp.runs.run import Run


@dataclass(frozen=True)
class RunSummary:
    """One run in a list.

    Attributes:
        name: of the folder.
        profile: the profile's name; None if config.yaml cannot be read.
        kimg: thousands of real images seen by the newest checkpoint; None without one.
        total_kimg: length of the whole run.
        metric: name of the value that chooses the best checkpoint.
        best: that value; None if nothing was scored.
        best_kimg: where it was reached.
        state: `running`, `imported`, `done`, `stopped`, `empty`, or `broken`.
        holder: who works on it: {"pid", "host", "since"}.
        created: when config.yaml was written, seconds since 1970.
        bytes: size on disk.
        problem: why it is broken.
    """

    name: str
    profile: str | None = None
    kimg: float | None = None
    total_kimg: float | None = None
    metric: str | None = None
    best: float | None = None
    best_kimg: float | None = None
    state: str = "broken"
    holder: dict[str, Any] | None = None
    created: float = 0.0
    bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class CheckpointSummary:
    """One checkpoint in a list: where, how far, its scores, and whether it is the best or the latest."""

    name: str
    kimg: float
    bytes: int
    written: float
    scores: dict[str, float | None] = field(default_factory=dict)
    best: bool = False


def summarize(run: Run) -> RunSummary:
    """A run at a glance; a run that cannot be read is `broken` and says why, instead of an error."""
    summary = RunSummary(run.name)
    try:
        summary = replace(summary, created=run.config.stat().st_mtime, bytes=run.size())
        profile = run.profile
        checkpoints = run.checkpoints()
        best = run.best()
        return replace(
            summary,
            profile=profile.name,
            kimg=checkpoint_nimg(checkpoints[-1]) / 1000 if checkpoints else None,
            total_kimg=profile.training.kimg,
            metric=None if best is None else best.metric,
            best=None if best is None else best.value,
            best_kimg=None if best is None else checkpoint_nimg(best.path) / 1000,
            state=run.state(),
            holder=run.holder(),
        )
    except (ThreeDGPError, OSError) as error:
        return replace(summary, problem=str(error))


def summarize_all(workspace: Workspace) -> list[RunSummary]:
    """Every run of the workspace, newest first."""
    return [summarize(run) for run in reversed(Run.all(workspace))]


def summarize_checkpoints(run: Run) -> list[CheckpointSummary]:
    """Every checkpoint of a run, newest first, with its newest scores."""
    scores: dict[str, dict[str, float | None]] = {}
    for line in run.metrics():
        if line["checkpoint"] is not None:
            scores.setdefault(line["checkpoint"], {}).update(line["results"])
    best = run.best()
    return [
        CheckpointSummary(
            name=path.name,
            kimg=checkpoint_nimg(path) / 1000,
            bytes=sum(file.stat().st_size for file in path.iterdir()),
            written=path.stat().st_mtime,
            scores=scores.get(checkpoint_name(checkpoint_nimg(path)), {}),
            best=best is not None and path == best.path,
        )
        for path in reversed(run.checkpoints())
    ]
