"""Learns where photographs are really taken from: moves cameras of the prior to cameras of the data.

Source: 3DGP (arXiv 2303.01416), Sec. 3.3 and App. B.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threedgp.camera.camera import PITCH_MARGIN, Camera
from threedgp.camera.priors import CameraBounds
from threedgp.config.schema import CameraAdaptorConfig
from threedgp.models.layers import FullyConnected, normalize_2nd_moment


class ParameterNetwork(nn.Module):
    """Some camera numbers, with latent and class, to four: [B, in] -> [B, 4]. All activations are softplus."""

    def __init__(self, in_features: int, z_dim: int, c_dim: int, config: CameraAdaptorConfig):
        super().__init__()

        def layer(inputs: int, outputs: int, activation: str = "softplus") -> FullyConnected:
            return FullyConnected(inputs, outputs, activation=activation, lr_multiplier=config.lr_multiplier)

        hidden, embed = config.hidden_dim, config.embed_dim
        self.project_params = layer(in_features, hidden)
        self.project_z = layer(z_dim, embed) if z_dim else None
        self.project_c = layer(c_dim, embed) if c_dim else None
        width = hidden + embed * ((z_dim > 0) + (c_dim > 0))
        self.main = nn.Sequential(layer(width, hidden), layer(hidden, 4, "linear"))

    def forward(self, params: Tensor, z: Tensor | None, c: Tensor | None) -> Tensor:
        parts = [self.project_params(params)]
        if self.project_z is not None:
            parts.append(normalize_2nd_moment(self.project_z(z)))
        if self.project_c is not None:
            parts.append(normalize_2nd_moment(self.project_c(c)))
        return self.main(torch.cat(parts, dim=1))


class CameraAdaptor(nn.Module):
    """Prior cameras, latents and classes to posterior cameras, inside the prior's bounds.

    The position depends on the class only; field of view and look-at point also on the latent and the new position.

    Args:
        z_dim, c_dim: sizes of latent and class vector (0: unconditional).
        bounds: interval of each camera number. Without one for the radius, an adjusted radius is not bounded.
        config: `model.camera_adaptor` of the profile.
    """

    low: Tensor
    span: Tensor
    posterior_low: Tensor
    posterior_span: Tensor

    def __init__(self, z_dim: int, c_dim: int, bounds: CameraBounds, config: CameraAdaptorConfig):
        super().__init__()
        self.config = config
        self.bounded_radius = bounds.radius is not None
        self.origin_adaptor = ParameterNetwork(4, 0, c_dim, config)
        self.look_at_adaptor = ParameterNetwork(8, z_dim, c_dim, config)
        # Columns as in Camera.to_vector. Roll and radius enter the networks as they are.
        free = (0.0, 1.0)
        columns = [bounds.yaw, bounds.pitch, free, bounds.fov, free, bounds.la_yaw, bounds.la_pitch, bounds.la_radius]
        self._interval("", columns)
        columns[1] = (bounds.pitch[0] + PITCH_MARGIN, bounds.pitch[1] - PITCH_MARGIN)
        columns[4] = bounds.radius or free
        self._interval("posterior_", columns)

    def _interval(self, prefix: str, columns: list[tuple[float, float]]) -> None:
        low, high = torch.tensor(columns).T.contiguous()
        self.register_buffer(f"{prefix}low", low, persistent=False)
        self.register_buffer(f"{prefix}span", high - low, persistent=False)

    def forward(self, camera: Camera, z: Tensor, c: Tensor | None = None) -> Camera:
        """B cameras of the prior, z [B, z_dim] and c [B, c_dim] as for the mapping network -> B posterior cameras.

        Differentiable in everything.
        """
        vector = camera.to_vector()
        moved = Camera.from_vector(self.denormalize(self.predict(self.normalize(vector), z, c)))
        kept, adjust = Camera.from_vector(vector), self.config.adjust
        return Camera(
            angles=moved.angles if adjust.angles else kept.angles,
            fov=moved.fov if adjust.fov else kept.fov,
            radius=moved.radius if adjust.radius else kept.radius,
            look_at=moved.look_at if adjust.look_at else kept.look_at,
        )

    def normalize(self, vector: Tensor) -> Tensor:
        """[B, 8] camera numbers to about [0, 1]; roll and radius unchanged."""
        return (vector - self.low) / (self.span + 1e-8)

    def predict(self, normalized: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
        """[B, 8] normalised numbers to raw ones, before the sigmoid that bounds them."""
        origin = self.origin_adaptor(normalized[:, [0, 1, 2, 4]], None, c)  # [B, 4] yaw, pitch, roll, radius
        seen = torch.cat([origin[:, :3], normalized[:, 3:4], origin[:, 3:], normalized[:, 5:]], dim=1)
        view = self.look_at_adaptor(seen, z, c)  # [B, 4] fov, look-at
        raw = torch.cat([origin[:, :3], view[:, :1], origin[:, 3:], view[:, 1:]], dim=1)
        return raw + normalized if self.config.residual else raw

    def denormalize(self, raw: Tensor) -> Tensor:
        """[B, 8] raw numbers to camera numbers inside the bounds; roll 0; a radius without bounds stays raw."""
        vector = raw.sigmoid() * self.posterior_span + self.posterior_low
        radius = vector[:, 4:5] if self.bounded_radius else raw[:, 4:5]
        return torch.cat([vector[:, :2], torch.zeros_like(radius), vector[:, 3:4], radius, vector[:, 5:]], dim=1)
