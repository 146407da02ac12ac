"""What a run was made with: the command of every start, the versions of everything, and the code itself.

runs/<run>/
    starts.jsonl          one line for each start: command, versions, machine, launch options, code archive
    code/<digest>.zip     the package as it was then; written once for each state of the code
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import platform
import shlex
import socket
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import threedgp
from threedgp.config.profile import configs_folder
from threedgp.files import append_json_line, atomic_open
from threedgp.runs.run import Run

STARTS_FILE = "starts.jsonl"
CODE_FOLDER = "code"
KEPT = {".py", ".cpp", ".cu", ".h", ".cuh", ".yaml"}
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pydantic")


def record_start(run: Run, command: Sequence[str], launch: dict[str, Any]) -> None:
    """Add a line to the run's starts.jsonl, and an archive of the code if it has changed since the last start.

    Args:
        command: the command line as given, program first.
        launch: how the processes were started.
    """
    append_json_line(
        run.folder / STARTS_FILE,
        {
            "time": time.time(),
            "command": shlex.join(command),
            "folder": os.getcwd(),
            "host": socket.gethostname(),
            "launch": launch,
            "code": save_code(run.folder / CODE_FOLDER).name,
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Versions of this program, of Python and of the libraries that influence the numbers."""
    found = {"threedgp": threedgp.__version__, "python": sys.version.split()[0], "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save_code(folder: Path) -> Path:
    """Archive the package and the shipped profiles as `<digest>.zip`; the same code always gives the same archive."""
    package = Path(threedgp.__file__).resolve().parent
    roots = {"threedgp": package, "threedgp_cli": package.parent / "threedgp_cli", "configs": configs_folder()}
    files = {
        f"{label}/{path.relative_to(root).as_posix()}": path
        for label, root in roots.items()
        for path in root.rglob("*")
        if path.suffix in KEPT and path.is_file()
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    target = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:12]}.zip"
    if not target.exists():
        with atomic_open(target) as file:
            file.write(buffer.getvalue())
    return target
