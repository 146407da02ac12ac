"""A batch of cameras: where they stand, what they look at, how wide they see.

The parametrisation is the ball-in-sphere camera of 3DGP (arXiv 2303.01416, Sec. 3.2): the camera stands on an outer
sphere about the world origin and looks at a point inside an inner ball. The world is right-handed with +y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PITCH_MARGIN = 1e-5  # how close (in radians) a sampled pitch may come to a pole, where the up vector is undefined


def spherical_to_cartesian(yaw: Tensor, pitch: Tensor, radius: Tensor) -> Tensor:
    """Point on a sphere about the origin: (−r·sinθ·sinφ, r·cosθ, r·sinθ·cosφ) for yaw φ and pitch θ.

    The pitch is measured from +y, so (φ, θ) = (0, π/2) lies on +z and a positive yaw moves towards −x.

    Args:
        yaw, pitch: [...] radians.
        radius: [...] world units.

    Returns:
        [..., 3] world coordinates.

    Example:
        >>> spherical_to_cartesian(torch.tensor(0.0), torch.tensor(torch.pi / 2), torch.tensor(2.0)).round()
        tensor([-0., -0., 2.])
    """
    ring = radius * pitch.sin()
    return torch.stack([-ring * yaw.sin(), radius * pitch.cos(), ring * yaw.cos()], dim=-1)


@dataclass(frozen=True, eq=False)
class Camera:
    """B cameras as plain tensors.

    Attributes:
        angles: [B, 3] yaw, pitch, roll of the camera's position, in radians. The roll is carried along but ignored.
        fov: [B] full opening angle in degrees, the same horizontally and vertically.
        radius: [B] distance of the camera from the world origin.
        look_at: [B, 3] yaw, pitch (radians) and radius (world units) of the point looked at.

    Raises:
        ValueError: the shapes do not describe one batch.
    """

    angles: Tensor
    fov: Tensor
    radius: Tensor
    look_at: Tensor

    def __post_init__(self):
        batch = self.fov.shape[0] if self.fov.ndim == 1 else -1
        shapes = [tuple(part.shape) for part in (self.angles, self.fov, self.radius, self.look_at)]
        if shapes != [(batch, 3), (batch,), (batch,), (batch, 3)]:
            raise ValueError(f"a camera batch needs angles [B,3], fov [B], radius [B], look_at [B,3], not {shapes}")

    @classmethod
    def from_vector(cls, vector: Tensor) -> Camera:
        """From [B, 8] rows (yaw, pitch, roll, fov, radius, look-at yaw, look-at pitch, look-at radius)."""
        if vector.ndim != 2 or vector.shape[1] != 8:
            raise ValueError(f"camera vectors have the shape [B, 8], not {list(vector.shape)}")
        return cls(angles=vector[:, :3], fov=vector[:, 3], radius=vector[:, 4], look_at=vector[:, 5:])

    @classmethod
    def cat(cls, cameras: Sequence[Camera]) -> Camera:
        """Join batches, in order."""
        return cls.from_vector(torch.cat([camera.to_vector() for camera in cameras]))

    def to_vector(self) -> Tensor:
        """[B, 8]: the order of `from_vector`."""
        return torch.cat([self.angles, self.fov[:, None], self.radius[:, None], self.look_at], dim=1)

    def __len__(self) -> int:
        return self.fov.shape[0]

    def __getitem__(self, index) -> Camera:
        """A sub-batch by integer (keeps the batch axis), slice, index list, index tensor or mask."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of {len(self)}")  # also what ends iteration over a batch
            index = [index]
        return Camera(self.angles[index], self.fov[index], self.radius[index], self.look_at[index])

    def repeat_interleave(self, repeats: int) -> Camera:
        """Each camera `repeats` times in a row: [B] -> [B·repeats]."""
        return Camera.from_vector(self.to_vector().repeat_interleave(repeats, dim=0))

    def to(self, *args, **kwargs) -> Camera:
        """Move or convert every tensor, with the arguments of `torch.Tensor.to`."""
        return Camera(*(part.to(*args, **kwargs) for part in (self.angles, self.fov, self.radius, self.look_at)))

    def detach(self) -> Camera:
        """The same values, cut from the autograd graph."""
        return Camera(self.angles.detach(), self.fov.detach(), self.radius.detach(), self.look_at.detach())

    @property
    def device(self) -> torch.device:
        return self.fov.device

    @property
    def dtype(self) -> torch.dtype:
        return self.fov.dtype

    def position(self) -> Tensor:
        """[B, 3] world coordinates of the camera centres."""
        return spherical_to_cartesian(self.angles[:, 0], self.angles[:, 1], self.radius)

    def target(self) -> Tensor:
        """[B, 3] world coordinates of the points looked at."""
        return spherical_to_cartesian(self.look_at[:, 0], self.look_at[:, 1], self.look_at[:, 2])

    def cam2world(self) -> Tensor:
        """Camera-to-world matrices [B, 4, 4] with OpenGL axes: camera x right, y up, looking along −z.

        Not defined (NaN) for a camera that looks straight up or down or stands on its target.
        """
        origin = self.position()  # [B, 3]
        forward = torch.nn.functional.normalize(self.target() - origin, dim=-1, eps=0.0)
        up = torch.zeros_like(forward)
        up[:, 1] = 1.0
        left = torch.nn.functional.normalize(torch.linalg.cross(up, forward), dim=-1, eps=0.0)
        true_up = torch.nn.functional.normalize(torch.linalg.cross(forward, left), dim=-1, eps=0.0)
        rows = torch.stack([-left, true_up, -forward, origin], dim=-1)  # [B, 3, 4]
        bottom = torch.zeros_like(rows[:, :1])
        bottom[..., 3] = 1.0
        return torch.cat([rows, bottom], dim=1)
