"""The moving average of the generator's weights: smoother images than any single iteration's (StyleGAN, App. B)."""

from __future__ import annotations

import torch
from torch import nn

from threedgp.config.schema import EmaConfig
from threedgp.training.gradients import parameters_of


def ema_beta(nimg: int, batch_size: int, config: EmaConfig) -> float:
    """Share of the old average that survives this iteration: 0.5^(batch / half life), and 0 until `start_kimg`.

    The half life, 0.3125 batches in kimg where none is chosen, ramps up as `rampup` times the real images shown before
    this iteration, `nimg`, so early garbage is forgotten quickly. `batch_size` counts all processes.
    """
    if config.start_kimg > nimg / 1000.0:
        return 0.0
    half_life = 1000.0 * config.kimg if config.kimg else 312.5 * batch_size
    if config.rampup is not None:
        half_life = min(half_life, config.rampup * nimg)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, beta: float) -> None:
    """Move every parameter of `average` towards that of `network`: theta + beta·(average − theta); copy buffers.

    Both networks must have been built alike.
    """
    torch._foreach_lerp_(parameters_of(average), parameters_of(network), 1.0 - beta)
    buffers = list(average.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(network.buffers()))
