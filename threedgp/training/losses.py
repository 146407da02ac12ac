"""Losses of the generator and the discriminator. All return one value per sample; the caller averages and weights.

Sources: GANs' non-saturating loss (arXiv 1406.2661), hinge (arXiv 1705.02894), R1 (arXiv 1801.04406), the relativistic
pairing loss with R1 and R2 (arXiv 2501.05441), path length (arXiv 1912.04958, Sec. 3.2), distillation (3DGP, arXiv
2303.01416, Sec. 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PATH_LENGTH_DECAY = 0.01  # share of the newest batch in the running mean of path lengths


Adversarial = Literal["non_saturating", "hinge", "relativistic"]


def generator_loss(kind: Adversarial, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimises, [B]: softplus(−f), for the hinge −f, for `relativistic` softplus(r − f).

    Args:
        kind: which loss.
        fake: logits f [B].
        real: logits r [B] of the reals that the fakes are compared with, for `relativistic` only.
    """
    if kind == "hinge":
        return -fake
    return F.softplus(-fake if real is None else real - fake)


def discriminator_loss(kind: Adversarial, fake: Tensor, real: Tensor, clamp: float = math.inf) -> Tensor:
    """What the discriminator minimises, [B].

    `non_saturating`: softplus(max(f, −clamp)) + softplus(−min(r, clamp)). `hinge`: relu(1 + f) + relu(1 − r).
    `relativistic`: softplus(f − r) per pair (arXiv 2501.05441, Eq. 2 with f(t) = −log(1 + e^−t)): every fake is judged
    against a real, so no mode can be dropped without a penalty. It converges only with R1 and R2 alike.
    """
    if kind == "hinge":
        return F.relu(1.0 + fake) + F.relu(1.0 - real)
    if kind == "relativistic":
        return F.softplus(fake - real)
    return F.softplus(fake.clamp(min=-clamp)) + F.softplus(-real.clamp(max=clamp))


def gradient_penalties(logits: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Squared norm of d logits / d images per sample, [B] for each pair, itself differentiable.

    On reals this is R1, on fakes R2; the loss is gamma/2 times it. `images` must require gradients and have led to
    the `logits` [B] of the same place only, each row of which may depend on other rows (minibatch statistics).
    """
    gradients = torch.autograd.grad([values.sum() for values in logits], images, create_graph=True)
    return [gradient.square().flatten(1).sum(dim=1) for gradient in gradients]


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """How far images move with the styles: |J^T y| per sample, [b], differentiable.

    Args:
        images: [b, C, H, W] made from `ws`.
        ws: [b, num_ws, w_dim], requiring gradients.
        noise: standard normal, shaped like `images`; scaled here by 1/sqrt(H·W).
    """
    noise = noise / math.sqrt(images.shape[2] * images.shape[3])
    (jacobian,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
    return jacobian.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(l − a)² per sample [b] and the new running mean a, a scalar.

    The gradient flows through the new mean too; store it detached.
    """
    new_mean = mean + PATH_LENGTH_DECAY * (lengths.mean() - mean)
    return (lengths - new_mean).square(), new_mean


def distillation_distance(kind: Literal["l2", "kl"], predicted: Tensor, teacher: Tensor) -> Tensor:
    """Distance [B] between predicted and true embedding [B, E].

    `l2`: Euclidean, not squared; `kl`: divergence of softmax(predicted) from softmax(teacher).
    """
    if kind == "l2":
        return torch.linalg.vector_norm(predicted - teacher, dim=1)
    target = F.log_softmax(teacher, dim=1)
    return (target.exp() * (target - F.log_softmax(predicted, dim=1))).sum(dim=1)


def patch_weights(scales: Tensor) -> Tensor:
    """Weights [B] of the distillation loss, proportional to the patch scales [B, 2] with mean 1.

    The embedding describes the whole image: a small patch can be asked less about it.
    """
    side = scales.mean(dim=1)
    return side / (side.mean() + 1e-8)
