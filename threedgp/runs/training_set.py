"""Which pictures a run is trained on, and whether they are still the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from threedgp.config.schema import Profile
from threedgp.config.workspace import Workspace
from threedgp.data.dataset import TrainingSet
from threedgp.errors import DataError
from threedgp.files import read_json, write_json
from threedgp.runs.run import DATA_FILE, Run


def training_data(workspace: Workspace, profile: Profile, run: Run | None, given: str | None = None) -> Path:
    """The training set to use: as given, else the one the run has used so far, else the workspace's of that size.

    Raises:
        DataError: there is none; says which command makes it.
    """
    if given is not None:
        return Path(given)
    if run is not None and (run.folder / DATA_FILE).is_file():
        record = read_json(run.folder / DATA_FILE)
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            raise DataError(f"{run.folder / DATA_FILE} is damaged. Delete it and name the training set with --data.")
        path = Path(record["path"])
        if not path.exists():
            raise DataError(f"Run '{run.name}' was trained on {path}, which is gone. Name its new place with --data.")
        return path
    dataset = workspace.dataset(profile.data.dataset)
    path = dataset.resized(profile.data.resolution)
    packed = path.with_name(f"{path.name}.zip")
    if not path.is_dir() and not packed.is_file():
        chosen = f" --dataset {dataset.name}" if len(workspace.datasets()) > 1 else ""
        raise DataError(
            f"There is no training set {path}. Make it with: 3dgp data resize -s {profile.data.resolution}{chosen}"
        )
    return path if path.is_dir() else packed


def record_data(run: Run, path: Path, identity: dict[str, Any] | None = None) -> None:
    """Remember a run's training set: where it is, and its `TrainingSet.identity` once it has been opened."""
    write_json(run.folder / DATA_FILE, {"path": str(path.resolve()), **(identity or {})})


def require_same_data(run: Run, dataset: TrainingSet, given: str | None) -> None:
    """Refuse to go on silently with a set that has changed since the run last used it.

    Args:
        given: what --data names: then other pictures are meant, but other classes would still mix up what was learned.

    Raises:
        DataError: says what differs and what to do.
    """
    file = run.folder / DATA_FILE
    record, now = read_json(file) if file.is_file() else {}, dataset.identity()
    before = record if isinstance(record, dict) else {}
    if before.get("fingerprint") in (None, now["fingerprint"]):  # earlier versions kept the path only
        return
    was = f"Run '{run.name}' was trained on other data than {dataset.source.root} holds now: "
    if dataset.num_classes and before.get("classes") != now["classes"]:
        kept = before.get("classes")
        old, new = set(map(str, kept)) if isinstance(kept, list) else set(), set(now["classes"] or [])
        gone, added = ", ".join(sorted(old - new)[:5]) or "none", ", ".join(sorted(new - old)[:5]) or "none"
        raise DataError(
            f"{was}its classes have changed (gone: {gone}; new: {added}). Bring them back, or start a new run."
        )
    if given is None:
        raise DataError(
            f"{was}{before.get('images')} images then, {now['images']} now, or other names and labels. Bring it back, "
            f"or go on with the changed set by naming it: --data {dataset.source.root}"
        )
