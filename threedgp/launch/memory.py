"""How much memory a training process will need, estimated without allocating any of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from threedgp.camera.camera import Camera
from threedgp.config.schema import Profile
from threedgp.models.build import build_discriminator, build_generator
from threedgp.models.discriminator import Discriminator
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator

STATE_COPIES = {"G": 5, "D": 4}  # weights, gradients, two Adam moments, and for G the weight average; float32


class Memory(NamedTuple):
    """Bytes of one process: weights with gradients and optimisers; what a generator step keeps for its gradients.

    `parameters` counts the trained numbers of each network.
    """

    state: int
    activations: int
    parameters: dict[str, int]


def estimate_memory(profile: Profile, micro_batch: int) -> Memory:
    """Estimate a process's memory from shapes alone.

    Activations are the tensors that the largest part of an iteration, the generator's step through the discriminator,
    keeps for its gradients. Temporary buffers of single operations come on top.
    """
    with torch.device("meta"):
        G, D = build_generator(profile), build_discriminator(profile)
        networks: dict[str, torch.nn.Module] = {"G": G, "D": D}
        parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        own = {p.untyped_storage()._cdata for network in networks.values() for p in network.parameters()}
        if D.feature_discriminator is not None:  # frozen, and registered nowhere
            own |= {p.untyped_storage()._cdata for p in D.feature_discriminator.network.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _generator_step(profile, G, D, micro_batch)
    activations = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    state = sum(4 * STATE_COPIES[name] * count for name, count in parameters.items())
    if D.feature_discriminator is not None:
        state += sum(p.untyped_storage().nbytes() for p in D.feature_discriminator.network.parameters())
    return Memory(state, activations, parameters)


def _generator_step(profile: Profile, G: Generator | StyleGAN2Generator, D: Discriminator, batch: int) -> torch.Tensor:
    """The forward pass of the generator's phase on tensors without contents."""
    z, c, angles, pair = (torch.empty(batch, size) for size in (G.z_dim, G.c_dim, 3, 2))
    ws = G.mapping(z, c, angles)
    if isinstance(G, StyleGAN2Generator):
        images = G.synthesize(ws)
    else:
        camera = G.adapt_camera(Camera.from_vector(torch.empty(batch, 8)), z, c)
        patch = pair if profile.training.patch.enabled else None
        depth = profile.training.use_depth
        images = G.synthesize(ws, camera, concat_depth=depth, patch_scales=patch, patch_offsets=patch).img
    loss = D(images, c, pair, pair, angles, False).logits.sum()
    if D.feature_discriminator is not None:
        loss = loss + D.feature_discriminator(images[:, :3], c).sum()
    return loss
