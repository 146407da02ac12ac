"""The canonical camera of each sample, around which trajectories move.

Source: 3DGP (arXiv 2303.01416), Sec. 3.3: the camera adaptor turns cameras of the prior into those of the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.config.schema import Profile
from threedgp.errors import UsageError
from threedgp.inference.latents import Sample, latents
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator

AnyGenerator = Generator | StyleGAN2Generator

MEAN_CAMERA_SAMPLES = 1024
MEAN_CAMERA_SEED = 20230302
POSTERIOR_SEED = 20230303


@torch.no_grad()
def mean_camera(generator: AnyGenerator, profile: Profile, data_angles: Tensor | None = None) -> Camera:
    """One camera in the middle of all: the mean of each number over 1024 posterior cameras of random samples.

    It is the same on every call: its random numbers have a seed of their own. For a prior of dist `custom` it is the
    mean of the data's angles, looking at the world's centre.

    Args:
        generator: in evaluation mode; of a 2D model, whose mapping network may see a camera, the prior's cameras stand.
        profile: of its run.
        data_angles: [N, 3] yaw, pitch, roll of the training set, needed by dist `custom`.

    Returns:
        A batch of one camera, on the generator's device.

    Raises:
        UsageError: dist `custom` without data_angles, and the profile has no `camera.data_mean`.
    """
    device = next(generator.parameters()).device
    prior = CameraPrior(profile.camera)
    if profile.camera.origin.dist == "custom":
        if data_angles is None and prior.has_mean:  # of an imported model
            return prior.mean().to(device)
        angles = _require(data_angles).double().mean(dim=0).tolist()
        vector = prior.mean(data_angles=tuple(angles)).to_vector()
        vector[:, 5:] = 0.0
        return Camera.from_vector(vector.to(device))
    random = torch.Generator().manual_seed(MEAN_CAMERA_SEED)
    camera = prior.sample(MEAN_CAMERA_SAMPLES, generator=random)
    z = torch.randn(MEAN_CAMERA_SAMPLES, generator.z_dim, generator=random)
    c = torch.zeros(MEAN_CAMERA_SAMPLES, generator.c_dim)
    if generator.c_dim:
        classes = torch.randint(generator.c_dim, (MEAN_CAMERA_SAMPLES,), generator=random)
        c[torch.arange(MEAN_CAMERA_SAMPLES), classes] = 1.0
    return mean_posterior(generator, camera.to(device), z.to(device), c.to(device))


def mean_posterior(generator: Generator | StyleGAN2Generator, prior: Camera, z: Tensor, c: Tensor) -> Camera:
    """The plain mean of each of the 8 numbers over the posterior cameras of B samples: a batch of one camera."""
    return Camera.from_vector(_adapt(generator, prior, z, c).to_vector().mean(dim=0, keepdim=True))


@torch.no_grad()
def posterior_cameras(
    generator: AnyGenerator,
    profile: Profile,
    samples: Sequence[Sample],
    data_angles: Tensor | None = None,
) -> Camera:
    """A camera of its own for each sample: drawn from the prior by the sample's seed, then moved by the adaptor.

    Arguments and errors as for `mean_camera`; a prior of dist `custom` draws one of the data's angles.
    """
    prior, rows = CameraPrior(profile.camera), []
    for sample in samples:
        key = np.random.SeedSequence([POSTERIOR_SEED, sample.seed]).generate_state(1, np.uint64)[0]
        random = torch.Generator().manual_seed(int(key >> np.uint64(1)))
        angles = None
        if profile.camera.origin.dist == "custom":
            known = _require(data_angles)
            angles = known[torch.randint(len(known), (1,), generator=random)].float()
        rows.append(prior.sample(1, generator=random, angles=angles))
    device = next(generator.parameters()).device
    z, c = latents(samples, generator.z_dim, generator.c_dim)
    return _adapt(generator, Camera.cat(rows).to(device), z.to(device), c.to(device))


def _adapt(generator: AnyGenerator, prior: Camera, z: Tensor, c: Tensor) -> Camera:
    return prior if isinstance(generator, StyleGAN2Generator) else generator.adapt_camera(prior, z, c)


def _require(data_angles: Tensor | None) -> Tensor:
    if data_angles is None or not len(data_angles):
        raise UsageError(
            "This model's cameras come from its training set (camera.origin.dist=custom), which is not here or has no "
            "camera_angles: name it with --data."
        )
    return data_angles
