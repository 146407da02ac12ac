"""Fixtures shared by all tests: reference vectors, seeds and a quiet machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does: spinning threads starve busy machines

import numpy as np
import pytest

# Started in the background or by nohup, everything below ignores these signals; the tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

GOLDENS = Path(__file__).resolve().parent / "goldens"


@pytest.fixture
def golden():
    """Load a file of reference inputs and outputs, `tests/goldens/<name>.npz`, as a dict of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDENS / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load
