"""Regularisers that keep the learned camera distribution from collapsing or drifting (3DGP, arXiv 2303.01416).

A camera sample is a row of 8 numbers: yaw, pitch, roll (radians), field of view (degrees), radius, look-at yaw, pitch,
radius. The camera adaptor maps a prior row to a posterior row. Seven of the numbers are regularised; the roll is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from threedgp.config.schema import CameraRegularizerConfig, GradientPenaltyConfig, TransportConfig

PARAMETERS = ("yaw", "pitch", "fov", "radius", "look_at_yaw", "look_at_pitch", "look_at_radius")
COLUMNS = [0, 1, 3, 4, 5, 6, 7]  # of the 8-vector, in the order of PARAMETERS
RECIPROCAL_EPS = 1e-4  # keeps 1/|g| finite for a camera that ignores its prior

Adaptor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(prior [n, 8], z [n, z_dim], c [n, c_dim]) -> posterior [n, 8], each row from its own row only."""


class CameraSamples(NamedTuple):
    """Random inputs of the camera adaptor: prior cameras [n, 8], latents [n, z_dim], one-hot classes [n, c_dim]."""

    prior: Tensor
    z: Tensor
    c: Tensor


def transport_terms(prior: Tensor, posterior: Tensor) -> Tensor:
    """Squared transport distance between the two samples [n, 8] of each parameter, [7].

    In one dimension the optimal plan pairs the sorted values, so no general solver is needed.
    """
    target = prior[:, COLUMNS].sort(dim=0).values
    return (posterior[:, COLUMNS].sort(dim=0).values - target).square().mean(dim=0)


def own_derivatives(prior: Tensor, posterior: Tensor) -> Tensor:
    """g = d posterior_j / d prior_j per sample, [n, 7], differentiable, of posteriors [n, 8] computed row by row from
    priors [n, 8] that require gradients.
    """
    columns = []
    for j in COLUMNS:
        output = posterior[:, j].sum()
        (gradient,) = torch.autograd.grad(output, prior, create_graph=True, materialize_grads=True)
        columns.append(gradient[:, j])
    return torch.stack(columns, dim=1)


def gradient_penalty_terms(derivatives: Tensor) -> Tensor:
    """mean(|g| + 1/|g|) of each parameter's derivatives g [n, 7]: [7], smallest (2) where posterior and prior move
    alike (3DGP Eq. 5).
    """
    size = derivatives.abs()
    return (size + 1.0 / (size + RECIPROCAL_EPS)).mean(dim=0)


def mean_distance(posterior: Tensor, center: Tensor) -> Tensor:
    """Distance of the mean posterior (yaw, pitch, roll) from the prior's centre [3], a scalar."""
    return torch.linalg.vector_norm(posterior[:, :3].mean(dim=0) - center + 1e-8)


def term_weights(config: TransportConfig | GradientPenaltyConfig, like: Tensor) -> Tensor:
    """The weights of the seven terms, [7]."""
    weights = [config.origin] * 2 + [config.fov, config.radius] + [config.look_at] * 3
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def camera_regularization(
    adaptor: Adaptor,
    config: CameraRegularizerConfig,
    transport_multiplier: float,
    center: Tensor,
    draw: Callable[[str, int], CameraSamples],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whatever regularisers are switched on, from one call of the adaptor.

    Args:
        adaptor: the camera network.
        config: `loss.camera` of the profile.
        transport_multiplier: scheduled weight of the transport distance; 0 skips it.
        center: centre of the prior's yaw, pitch and roll, [3].
        draw: makes n fresh samples for the regulariser of that name (emd, gradient_penalty, force_mean).

    Returns:
        Weighted loss terms by name, scalars to be added to the generator's loss; and the unweighted seven terms [7]
        of emd and gradient_penalty, for the log.
    """
    wanted = {
        "emd": config.emd.enabled and transport_multiplier > 0,
        "gradient_penalty": config.gradient_penalty.enabled,
        "force_mean": config.force_mean.weight > 0,
    }
    counts = {name: getattr(config, name).num_samples for name, on in wanted.items() if on}
    if not counts:
        return {}, {}
    samples = {name: draw(name, count) for name, count in counts.items()}
    priors = {name: sample.prior.detach() for name, sample in samples.items()}
    if "gradient_penalty" in priors:
        priors["gradient_penalty"].requires_grad_(True)
    posterior = adaptor(
        torch.cat(list(priors.values())),
        torch.cat([sample.z for sample in samples.values()]),
        torch.cat([sample.c for sample in samples.values()]),
    )
    posteriors = dict(zip(counts, posterior.split(list(counts.values())), strict=True))

    losses, terms = {}, {}
    if "emd" in counts:
        terms["emd"] = transport_terms(priors["emd"], posteriors["emd"])
        losses["emd"] = transport_multiplier * (terms["emd"] * term_weights(config.emd, posterior)).sum()
    if "gradient_penalty" in counts:
        derivatives = own_derivatives(priors["gradient_penalty"], posteriors["gradient_penalty"])
        terms["gradient_penalty"] = gradient_penalty_terms(derivatives)
        weights = term_weights(config.gradient_penalty, posterior)
        losses["gradient_penalty"] = (terms["gradient_penalty"] * weights).sum()
    if "force_mean" in counts:
        losses["force_mean"] = config.force_mean.weight * mean_distance(posteriors["force_mean"], center)
    return losses, {name: value.detach() for name, value in terms.items()}
