"""Every random number of training, as a function of where it is needed and of nothing else.

The generator behind the draws is seeded with (seed, stream, iteration, phase, micro-batch). So the numbers of iteration
k do not depend on what ran before it (a resumed run repeats nothing and skips nothing), nor on how many processes share
the micro-batches. A new `stream` gives fresh numbers after a rollback.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.config.schema import Profile
from threedgp.metrics.scored_samples import Labels
from threedgp.training.patches import PatchParams, sample_patches
from threedgp.training.schedules import ScheduleValues


def derive_seed(*key: int | str) -> int:
    """A well-mixed 63-bit seed of any key, the same on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Fakes(NamedTuple):
    """What the generator starts from: latents [B, z_dim], classes [B, c_dim], prior cameras, and the camera angles
    [B, 3] it is told when it is conditioned on them.
    """

    z: Tensor
    c: Tensor
    camera: Camera
    conditioning_angles: Tensor


class Draws:
    """The random numbers of one phase and micro-batch; the names say what a number is for.

    Args:
        profile: resolved.
        labels: the training set.
        key: (seed, stream, iteration, phase, micro-batch over all processes).
        values: scheduled values of this iteration.
        device: where the numbers are made and used.
    """

    def __init__(
        self,
        profile: Profile,
        labels: Labels,
        key: tuple[int | str, ...],
        values: ScheduleValues,
        *,
        device: torch.device | str = "cpu",
    ):
        self.profile, self.labels, self.values = profile, labels, values
        self.device = torch.device(device)
        self.prior = CameraPrior(profile.camera)
        self.seed = derive_seed(*key)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        # Numbers that decide shapes or look up items are made on the host, so that nothing waits for the device.
        self.host = torch.Generator().manual_seed(derive_seed(self.seed, "host"))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform in [0, 1) on the host."""
        return torch.rand(shape, generator=self.host)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal on the host."""
        return torch.randn(shape, generator=self.host)

    def field(self, name: str, *shape: int) -> Tensor:
        """Standard normal on the device: for whole images."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def latents(self, name: str, count: int) -> Tensor:
        """z [count, z_dim]."""
        return self.field(name, count, self.profile.model.generator.z_dim)

    def classes(self, name: str, count: int) -> Tensor:
        """One-hot classes [count, c_dim], every class equally likely."""
        c_dim = self.profile.data.num_classes
        if c_dim == 0:
            return torch.zeros(count, 0, device=self.device)
        index = torch.randint(c_dim, (count,), generator=self.generator, device=self.device)
        return F.one_hot(index, c_dim).float()

    def cameras(self, name: str, count: int, angles: Tensor | None = None) -> Camera:
        """Cameras of the prior; `angles` [count, 3] are those of data items, for a prior made of them."""
        return self.prior.sample(count, generator=self.host, device=self.device, angles=angles)

    def patches(self, name: str, count: int) -> PatchParams | None:
        """Patches of a micro-batch; None when patches are off."""
        if not self.profile.training.patch.enabled:
            return None
        group = self.profile.model.discriminator.mbstd_group_size or count
        return sample_patches(count, self.profile.patch_law, self.values, self.generator, group)

    def fakes(self, count: int, labels: Tensor | None = None) -> Fakes:
        """Inputs of the generator, of classes [count, c_dim] or those of random items: as frequent as in the data."""
        items = torch.randint(len(self.labels), (count,), generator=self.host).tolist()
        c = torch.stack([self.labels.label(i) for i in items]).to(self.device) if labels is None else labels
        angles = None
        if self.profile.camera.origin.dist == "custom":
            angles = torch.stack([self.labels.camera_angles(i) for i in items]).to(self.device)
        camera = self.cameras("fakes", count, angles)
        return Fakes(self.latents("fakes", count), c, camera, self._conditioning_angles(camera.angles))

    def synthesis(self, count: int) -> dict[str, Any]:
        """Keyword arguments of the generator's synthesis that fix its layer noise and the places of its ray samples."""
        return {"generator": self.generator}

    def style_cutoff(self, num_ws: int) -> int:
        """The first layer whose style comes from a second latent; num_ws: none does (StyleGAN, Sec. 3.1)."""
        probability = self.profile.loss.style_mixing_probability
        chance, place = self.uniform("style_mixing", 2).tolist()
        return 1 + int(place * (num_ws - 1)) if chance < probability else num_ws

    def _conditioning_angles(self, angles: Tensor) -> Tensor:
        """Swap the angles of some samples among themselves, so that they say little about the image."""
        if not self.profile.model.generator.camera_conditioning.enabled:
            return angles
        spoofed = (self.uniform("spoof", len(angles)) < self.values.spoof_probability).nonzero()[:, 0]
        conditioning = angles.clone()
        conditioning[spoofed] = angles[spoofed.roll(1)]
        return conditioning
