"""Native CPU operations: compiled from the C++ sources beside this file on first use, and kept.

Every operation has a plain PyTorch twin that defines it; callers ask `library(...)` and take the plain way when it
returns None: no compiler, other devices and types, a traced graph, or THREEDGP_NATIVE=0 in the environment.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from ninja import BIN_DIR
from torch import Tensor

from threedgp.files import cache_folder, sha256_of
from threedgp.launcher import end_with

ENVIRONMENT_VARIABLE = "THREEDGP_NATIVE"
SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"]
BUILD, CHECKSUM = "build-", ".sha256"  # names in the cache: folders of compilations, what a library's bytes add up to
TYPES = (torch.float32, torch.bfloat16)

log = logging.getLogger("threedgp")
_disabled = 0


def library(*tensors: Tensor | None) -> Any:
    """The native operations, if they exist here and can work on these tensors; else None."""
    if _disabled or torch.compiler.is_compiling():
        return None
    fit = all(tensor is None or (tensor.device.type == "cpu" and tensor.dtype in TYPES) for tensor in tensors)
    return _load() if fit else None


def allowed() -> bool:
    """Whether fast forms may be used here at all: not inside `plain`, a traced graph, or with THREEDGP_NATIVE=0."""
    return not _disabled and not torch.compiler.is_compiling() and not _switched_off()


def _switched_off() -> bool:
    return os.environ.get(ENVIRONMENT_VARIABLE, "1").lower() in ("0", "off", "false", "no")


class plain:
    """While this context lasts, every operation takes its plain PyTorch form.

    Example:
        >>> with plain():
        ...     library() is None
        True
    """

    def __enter__(self) -> None:
        global _disabled
        _disabled += 1

    def __exit__(self, *_) -> None:
        global _disabled
        _disabled -= 1


def gradients(
    twin: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Any],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """An operation's backward pass by its plain twin: gradients that can be differentiated again.

    A native backward pass calls it where gradients are on (`create_graph`), so no caller has to know which operations
    have a native second derivative.

    Args:
        twin: makes the operation's outputs from its inputs.
        inputs: as they were saved, so that they are part of the graph that led to them.
        grads: of each output.
        wanted: which inputs need a gradient; the others get None.
    """
    with plain(), torch.enable_grad():
        outputs = twin(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        chosen = [value for value, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if want else None for want in wanted)


def available() -> bool:
    """Whether native operations are used on this machine; builds them when that has not happened yet."""
    return _load() is not None


@functools.cache
def _load() -> Any:
    if _switched_off():
        return None
    try:
        torch.ops.load_library(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        log.warning("Training and rendering use plain PyTorch, which is slower: %s", reason[0])
        return None
    return torch.ops.threedgp


def _built() -> Path:
    """The compiled library for this source, PyTorch, compiler and processor."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise OSError("no C++ compiler was found (install g++)")
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    key = hashlib.sha256()
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=True).stdout
    for part in (torch.__version__, platform.machine(), _processor(), version, *FLAGS):
        key.update(part.encode() + b"\0")
    for path in sources:
        key.update(path.read_bytes() + b"\0")
    folder = cache_folder("native")
    target = folder / f"threedgp-{key.hexdigest()[:20]}.so"
    if not _is_whole(target):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # the system opens it when its holder dies
            if not _is_whole(target):  # another process may have been faster
                _compile(compiler, [path for path in sources if path.suffix == ".cpp"], target)
    return target


def _is_whole(library: Path) -> bool:
    """Whether the file is byte for byte what was compiled: loading half of one ends the process."""
    try:
        return sha256_of(library) == library.with_suffix(CHECKSUM).read_text()
    except (OSError, ValueError):
        return False


def _processor() -> str:
    """What decides which instructions the compiler may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


CPU_COMPUTES_BFLOAT16 = not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_processor().split())
"""Whether this processor has instructions for bfloat16, which is up to ten times slower than float32 without them."""


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    log.warning("Compiling fast operations for this processor, which takes a moment the first time")
    flags = list(FLAGS)
    if platform.system() == "Linux":
        flags.append("-fopenmp")  # PyTorch's own OpenMP library is found at load time; linking a second one is not good
    flags.append("-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native")
    if "avx512" in _processor():
        flags.append("-mprefer-vector-width=512")
    for left in target.parent.glob(f"{BUILD}*"):  # by a killed compilation: who holds the lock is the only one
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=BUILD) as work:
        root = Path(torch.__file__).parent
        includes = f"-isystem{root}/include -isystem{root}/include/torch/csrc/api/include"
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        link = f"-L{root}/lib" + (" -undefined dynamic_lookup" if platform.system() == "Darwin" else "")
        lines = [
            "ninja_required_version = 1.5",
            f"cxx = {compiler}",
            f"rule compile\n  command = $cxx -fPIC {abi} {includes} {' '.join(flags)} -c $in -o $out",
            f"rule link\n  command = $cxx -shared $in {link} -lc10 -ltorch_cpu -o $out",
        ]
        objects = [f"{source.stem}.o" for source in sources]
        lines += [f"build {made}: compile {source}" for made, source in zip(objects, sources, strict=True)]
        lines += [f"build library.so: link {' '.join(objects)}", "default library.so", ""]
        (Path(work) / "build.ninja").write_text("\n".join(lines))
        end = functools.partial(end_with, os.getpid(), signal.SIGTERM)  # ninja then ends its compilers
        result = subprocess.run(
            [os.path.join(BIN_DIR, "ninja"), "-C", work], capture_output=True, text=True, preexec_fn=end
        )
        if result.returncode:
            log.debug("%s", result.stdout + result.stderr)
            raise OSError("the native operations do not compile here (set logging to debug for the compiler's output)")
        made = Path(work) / "library.so"
        target.with_suffix(CHECKSUM).write_text(sha256_of(made))  # half of it fits no library either
        os.replace(made, target)
