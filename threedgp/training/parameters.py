"""A network's parameters without walking through its modules, which would take longer than what is done with them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

_found: WeakKeyDictionary[nn.Module, list[torch.Tensor]] = WeakKeyDictionary()


def parameters_of(network: nn.Module) -> list[torch.Tensor]:
    """All parameters of a network that no longer gains or loses any, in the order of `network.parameters()`."""
    found = _found.get(network)
    if found is None:
        found = _found[network] = list(network.parameters())
    return found


def require_gradients(network: nn.Module, wanted: bool) -> None:
    """`network.requires_grad_(wanted)`."""
    for parameter in parameters_of(network):
        parameter.requires_grad_(wanted)
