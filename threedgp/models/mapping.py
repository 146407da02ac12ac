"""The mapping network: latent, class and camera to style vector.

Source: StyleGAN2 (arXiv 1912.04958); class embedding as in StyleGAN2-ADA (arXiv 2006.06676), App. C. Without z it also
serves the discriminator as a network that embeds conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from threedgp.models.layers import (
    CAMERA_ANGLE_SCALE,
    FullyConnected,
    ScalarEncoder,
    normalize_2nd_moment,
    normalize_camera_angles,
)

W_AVG_BETA = 0.998  # share of the old running mean of w that survives a batch
CameraEncoding = Literal["raw", "fourier"]


class MappingNetwork(nn.Module):
    """(z, c, camera angles) -> w, or ws when `num_ws` is given.

    `x = N2(z)`; with any condition, `x = [x, N2(FC(condition))]`; then `num_layers` lrelu layers with a small learning
    rate. N2 is `normalize_2nd_moment`.

    Args:
        z_dim: latent size; 0: the network only sees the condition.
        c_dim: size of the class vector (or any other condition); 0 for none.
        w_dim: width and output size.
        num_ws: repeat the output for so many layers, and keep the running mean of w that truncation needs; None returns
            [B, w_dim].
        num_layers: layers after the embedding.
        lr_multiplier: λ of these layers.
        camera_encoding: also condition on the camera's yaw and pitch: as two numbers in turns, or as 24 Fourier
            features; None for neither.
        camera_dropout: probability with which single numbers of the camera encoding are dropped in training.
        mean_camera: yaw, pitch, roll, fov, radius of the prior's mean, used in evaluation when no angles are given.
    """

    w_avg: Tensor
    mean_camera_params: Tensor | None

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None = None,
        *,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        camera_encoding: CameraEncoding | None = None,
        camera_dropout: float = 0.0,
        mean_camera: Sequence[float] | None = None,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers = num_layers
        self.camera_encoding, self.camera_dropout = camera_encoding, camera_dropout
        self.camera_scalar_enc = ScalarEncoder(2, CAMERA_ANGLE_SCALE) if camera_encoding == "fourier" else None
        known = camera_encoding is not None and mean_camera is not None
        self.register_buffer("mean_camera_params", torch.tensor(mean_camera) if known else None)

        camera_dim = {None: 0, "raw": 2, "fourier": self.camera_scalar_enc.dim if self.camera_scalar_enc else 0}
        condition_dim = c_dim + camera_dim[camera_encoding]
        self.embed = FullyConnected(condition_dim, w_dim) if condition_dim else None
        in_features = z_dim + (w_dim if condition_dim else 0)
        for i in range(num_layers):
            layer = FullyConnected(in_features, w_dim, activation="lrelu", lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
            in_features = w_dim
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    @torch.no_grad()
    def update_w_avg(self, mean: Tensor) -> None:
        """Let a batch enter the running mean of w by its own mean [w_dim]."""
        self.w_avg.lerp_(mean.to(self.w_avg), 1 - W_AVG_BETA)

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        camera_angles: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Map to [B, num_ws, w_dim], or to [B, w_dim] when the network was built without `num_ws`.

        Args:
            z: [B, z_dim] standard normal; None when z_dim is 0.
            c: [B, c_dim], one-hot classes; ignored when c_dim is 0.
            camera_angles: [B, ≥2] yaw and pitch in radians; only used with a camera encoding.
            truncation_psi: pull w towards its running mean: 1 leaves it, 0 gives the mean.
            truncation_cutoff: truncate only so many first layers; None truncates all.
        """
        parts = [] if z is None else [normalize_2nd_moment(z)]
        if self.embed is not None:
            condition = [c] if self.c_dim and c is not None else []
            if self.camera_encoding is not None:
                condition.append(self._encode_camera(camera_angles))
            # The mean camera is one row for all samples.
            rows = max(len(part) for part in [*condition, *parts])
            joined = torch.cat([part.expand(rows, -1) for part in condition], dim=1)
            parts.append(normalize_2nd_moment(self.embed(joined.to(self.embed.weight.dtype))))
        x = torch.cat(parts, dim=1)  # [B, z_dim (+ w_dim)]
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.num_ws is None:
            return x
        ws = x[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)

    def _encode_camera(self, angles: Tensor | None) -> Tensor:
        """[B, 2 or 24]; one row when the prior's mean camera stands in."""
        if angles is None:
            if self.training or self.mean_camera_params is None:
                raise ValueError("a network conditioned on the camera needs camera angles")
            angles = self.mean_camera_params[None]
        assert self.embed is not None
        encoded = normalize_camera_angles(angles.to(self.embed.weight.dtype))
        if self.camera_scalar_enc is not None:
            encoded = self.camera_scalar_enc(encoded)
        return nn.functional.dropout(encoded, self.camera_dropout, training=self.training)
