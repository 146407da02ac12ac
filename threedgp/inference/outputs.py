"""Names of results: what a file is called when nobody says so, and what an ending asks for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from threedgp.errors import UsageError
from threedgp.inference.settings import KINDS, SubjectSettings

ENDINGS = {
    "video": ("mp4", "gif", "webp"),
    "grid": ("png", "jpg", "jpeg"),
    "mesh": ("ply", "obj", "glb", "mrc"),
}
LONGEST_NAME = 120

_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,3}")


def wanted_format(kind: str, out: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the format that the ending of `out` asks for.

    Raises:
        UsageError: an ending that this kind of render cannot have, or another format is asked for as well.
    """
    ending = _ending(out)
    if not ending:
        return dict(given)
    if ending not in ENDINGS[kind]:
        known = ", ".join(f".{name}" for name in ENDINGS[kind])
        frames = " Single frames go to a folder: use --format png and a name without ending." if kind == "video" else ""
        raise UsageError(f"--out {out}: a {kind} is written as {known}.{frames}")
    key, value = ("formats", [ending]) if kind == "mesh" else ("format", ending)
    if key in given and ending not in given[key] and given[key] != value:
        raise UsageError(f"--out {out} and --format contradict each other. Leave one of them out.")
    return {**given, key: given.get(key, value)}


def output_base(kind: str, out: Path | None, renders: Path, model_name: str, settings: SubjectSettings) -> Path:
    """Where results go, without ending.

    Args:
        kind: of the render.
        out: what the user said: a file, a folder (that exists or ends in a slash), or None.
        renders: the folder for the default.
        model_name: run and checkpoint, beginning of a default name.
        settings: tell the rest of it.
    """
    name = f"{model_name}-{default_name(kind, settings)}"
    if out is None:
        return renders / name
    if out.is_dir() and not (kind == "video" and getattr(settings, "format", "") == "png"):
        return out / name
    return out.with_name(out.name[: -len(_ending(out)) - 1]) if _ending(out) else out


def default_name(kind: str, settings: SubjectSettings) -> str:
    """A name that tells what is in a render: trajectory, seeds, classes, and whatever is not as usual."""
    values, defaults = settings.model_dump(), KINDS[kind].model_fields
    parts = ["mesh" if kind == "mesh" else values["trajectory"] or "images", "seeds" + list_ranges(settings.seeds)]
    if settings.classes is not None:
        parts.append("classes" + list_ranges(settings.classes))
    for name, value in values.items():
        if name in ("seeds", "classes", "trajectory", "motion", "batch", "format", "formats", "preview_size"):
            continue
        if name == "show":
            parts += [] if value == ["rgb"] else value
        elif value != defaults[name].get_default():
            parts.append(name.replace("_", "") if value is True else f"{name.replace('_', '')}{value}")
    parts += [f"{key}{value}" for key, value in values.get("motion", {}).items()]
    text = re.sub(r"[^\w.+-]+", "_", "-".join(parts))
    if len(text) > LONGEST_NAME:
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        text = f"{text[: LONGEST_NAME - 9]}-{digest}"
    return text


def list_ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 7] -> "0-2_7"; many ranges are cut to their ends and the number of entries."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    if len(texts) > 4:
        return f"{runs[0][0]}..{runs[-1][1]}x{sum(last - first + 1 for first, last in runs)}"
    return "_".join(texts)


def _ending(out: Path | None) -> str:
    if out is None or out.is_dir() or not _ENDING.fullmatch(out.suffix):
        return ""
    return out.suffix[1:].lower()
