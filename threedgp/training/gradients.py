"""A network's parameters, found once, and its gradients: averaged over all processes and cleaned."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from threedgp.processes import World

HUGE_GRADIENT = 1e5  # what an infinite element becomes
_found: WeakKeyDictionary[nn.Module, list[torch.Tensor]] = WeakKeyDictionary()


def parameters_of(network: nn.Module) -> list[torch.Tensor]:
    """All parameters of a network that no longer gains or loses any, in the order of `network.parameters()`.

    Walking through its modules every time would take longer than what is done with them.
    """
    found = _found.get(network)
    if found is None:
        found = _found[network] = list(network.parameters())
    return found


def require_gradients(network: nn.Module, wanted: bool) -> None:
    """`network.requires_grad_(wanted)`."""
    for parameter in parameters_of(network):
        parameter.requires_grad_(wanted)


class GradientReport(NamedTuple):
    """Norm of the averaged gradient after cleaning, and number of its elements that were not finite (0-d tensors)."""

    norm: torch.Tensor
    nonfinite: torch.Tensor


@torch.no_grad()
def average_gradients(module: nn.Module, world: World, clip: float | None = None) -> GradientReport:
    """Average a network's gradients over all processes as one flat vector, and clean it.

    NaN becomes 0 and infinities ±1e5; finite values are only changed by `clip`, the largest global norm. Parameters
    without a gradient are left out; which ones those are is the same on every process.
    """
    gradients = [parameter.grad for parameter in parameters_of(module) if parameter.grad is not None]
    if not gradients:
        zero = torch.zeros((), device=world.device)
        return GradientReport(zero, zero)
    if world.size == 1 and clip is None and not gradients[0].is_cuda:
        # Nothing to average, and most likely nothing to clean: the norm is enough.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if torch.isfinite(norm):
            return GradientReport(norm, torch.zeros_like(norm))
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # [elements]
    world.mean(flat)
    norm = torch.linalg.vector_norm(flat)
    nonfinite = torch.zeros_like(norm)
    # On a CPU one look at the norm saves several passes; on a GPU looking would make the host wait.
    if flat.is_cuda or not torch.isfinite(norm):
        nonfinite = (~torch.isfinite(flat)).sum()
        torch.nan_to_num(flat, nan=0.0, posinf=HUGE_GRADIENT, neginf=-HUGE_GRADIENT, out=flat)
        norm = torch.linalg.vector_norm(flat)
    if clip is not None:
        flat.mul_((clip / (norm + 1e-6)).clamp(max=1.0))
    pieces = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])
    return GradientReport(norm, nonfinite)
