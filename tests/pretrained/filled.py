"""Deterministic weights for networks whose real weights are too large to keep beside the tests."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np
import torch


def filled(make: Callable[[], torch.nn.Module], seed: int, gain: float) -> torch.nn.Module:
    """Make a network whose every parameter and buffer is a function of its full name, its shape, `seed` and `gain`."""
    with torch.device("meta"):
        module = make()
    state = {n: filled_tensor(n, tuple(t.shape), seed, gain) for n, t in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


def filled_tensor(name: str, shape: tuple[int, ...], seed: int, gain: float) -> torch.Tensor:
    random = np.random.RandomState((crc32(name.encode()) + 7919 * seed) % 2**32)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = 0.5 + random.random_sample(shape)
    else:
        normal = random.standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * normal
        elif name.endswith("bias"):
            value = 0.05 * normal
        elif len(shape) == 1:
            value = 1 + 0.1 * normal
        else:
            value = normal * np.sqrt(gain / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))
