"""Loading reference parameters into networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CONSTANTS = ("resample_filter", "fourier_coefs")
"""Buffers of the reference that follow from the architecture; ours are not part of the state."""


def load_reference(module: nn.Module, data: dict[str, np.ndarray], prefix: str, dtype: torch.dtype) -> nn.Module:
    """Copy the arrays under `prefix` into `module`, name by name; every name must exist on both sides."""
    state = {
        key.removeprefix(prefix): torch.tensor(value)
        for key, value in data.items()
        if key.startswith(prefix) and not key.endswith(CONSTANTS)
    }
    # The reference owns an image layer in every block but uses only the first block's.
    unused = [key for key in state if ".fromrgb." in key and key not in module.state_dict()]
    for key in unused:
        del state[key]
    module.load_state_dict(state, strict=True)
    return module.to(dtype)
