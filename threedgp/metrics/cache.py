"""Keeps statistics of real images between evaluations, under a name that changes with everything they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from threedgp.data.pictures import Pictures
from threedgp.files import best_effort, cache_folder, write_tensors
from threedgp.metrics.bank import Bank
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.progress import NULL_PROGRESS, Progress

VERSION = 1  # raise when the meaning of stored numbers changes


def _digest(value: Any) -> str:
    """A short name for anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def extractor_key(extractor: FeatureExtractor) -> dict[str, Any]:
    """What decides an extractor's output."""
    return {
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "preprocess": extractor.preprocess,
        "version": VERSION,
    }


def real_key(images: Pictures, extractor: FeatureExtractor) -> str:
    """Name of the statistics of one set under one extractor."""
    return _digest({**extractor_key(extractor), "images": images.identity})


class StatisticsCache:
    """A folder of finished banks, and of unfinished ones.

    Args:
        folder: made when something is stored; None: $THREEDGP_CACHE/metrics, by default ~/.cache/threedgp/metrics.
        progress: told once if nothing can be.
    """

    def __init__(self, folder: Path | None = None, progress: Progress = NULL_PROGRESS):
        self.folder, self.progress = folder or cache_folder("metrics"), progress

    def load(self, key: str, bank: Bank) -> bool:
        """Fill an empty bank; False if nothing (or not enough) is stored or the file is damaged."""
        try:
            state = load_file(self._path(key))
            if not bank.fits(state):
                return False
            bank.absorb(state)
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def save(self, key: str, bank: Bank) -> None:
        """Store a bank that has seen its whole set."""
        with best_effort("Statistics of real images", self.progress):
            write_tensors(self._path(key), bank.state())

    def parts(self, question: Any) -> Path:
        """Folder for the unfinished work on a question."""
        return self.folder / f"unfinished-{_digest(question)}"

    def forget(self, parts: Path | None) -> None:
        """Remove the folder of work that is finished."""
        if parts is not None:
            shutil.rmtree(parts, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
