"""The tri-plane generator: latents to feature planes, feature planes and a camera to a picture with depth.

Sources: 3DGP (arXiv 2303.01416), Sec. 3; EpiGRAF (arXiv 2206.10535), Sec. 3.1 (backbone and field); EG3D
(arXiv 2112.07945), Sec. 4 (tri-planes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from threedgp.camera.camera import Camera
from threedgp.models.camera_adaptor import CameraAdaptor
from threedgp.models.depth_adaptor import DepthAdaptor
from threedgp.models.layers import FullyConnected
from threedgp.models.mapping import MappingNetwork
from threedgp.models.stylegan2 import NoiseMode, SynthesisNetwork
from threedgp.ops.triplane import sample_field, sample_triplanes
from threedgp.rendering.rays import camera_rays
from threedgp.rendering.renderer import Field, RenderDraws, RenderOptions, render_rays


class GeneratorOutput(NamedTuple):
    """What a rendering returns.

    Attributes:
        img: [B, 3, h, w], nominally in [−1, 1], not clamped; with concat_depth [B, 4, h, w].
        depth: [B, 1, h, w] distance along the ray in world units.
        depth_adapted: [B, 1, h, w] nominally in [−1, 1], larger = farther; None without a depth adaptor.
    """

    img: Tensor
    depth: Tensor
    depth_adapted: Tensor | None


class FieldMLP(nn.Module):
    """Plane features [..., F] to colour and raw density [..., out]: lrelu layers and a linear one."""

    def __init__(self, in_features: int, hidden_dim: int, out_features: int, layers: int):
        super().__init__()
        widths = [in_features, *[hidden_dim] * (layers - 1), out_features]
        activations = ["lrelu"] * (layers - 1) + ["linear"]
        self.model = nn.Sequential(
            *(
                FullyConnected(inputs, outputs, activation=activation)
                for inputs, outputs, activation in zip(widths[:-1], widths[1:], activations, strict=True)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)

    def at(self, planes: Tensor, points: Tensor) -> Tensor:
        """Values [B, M, out] at points [B, M, 3] of the cube [−1, 1]³ with planes [B, 3, F, H, W]."""
        if len(self.model) > 2:
            return self(sample_triplanes(planes, points))
        hidden, last = self.model
        assert isinstance(hidden, FullyConnected)
        assert isinstance(last, FullyConnected)
        return sample_field(planes, points, *hidden.scaled(), *last.scaled())


class Generator(nn.Module):
    """Latent, class and camera to a picture and its depth.

    In training mode densities carry the scheduled noise and the depth adaptor picks random candidates; in evaluation
    mode large images are rendered in chunks. Layer noise and ray samples are random in both, unless told otherwise.

    Args:
        backbone: makes the planes, three times F channels.
        mlp: the field's; F features to colour and density.
        mapping: makes the backbone's styles.
        render_options: how rays are rendered; change single values per call with `dataclasses.replace`.
        img_resolution: side of the pictures in pixels.
        patch_resolution: side of what is rendered when patch parameters are given.
        cube_scale: half side of the scene cube in world units.
        density_noise_std: of raw densities in training, until `set_progress` changes it.
        depth_adaptor, camera_adaptor: None where training does without them.
    """

    def __init__(
        self,
        backbone: SynthesisNetwork,
        mlp: FieldMLP,
        mapping: MappingNetwork,
        render_options: RenderOptions,
        *,
        img_resolution: int,
        patch_resolution: int,
        cube_scale: float = 0.5,
        density_noise_std: float = 1.0,
        depth_adaptor: DepthAdaptor | None = None,
        camera_adaptor: CameraAdaptor | None = None,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = mapping.z_dim, mapping.c_dim, mapping.w_dim
        self.num_ws, self.plane_features = backbone.num_ws, backbone.img_channels // 3
        self.img_resolution, self.patch_resolution = img_resolution, patch_resolution
        self.render_options = render_options
        self.cube_scale = cube_scale
        self.density_noise_std = density_noise_std
        self.synthesis = nn.ModuleDict({"tri_plane_decoder": backbone, "tri_plane_mlp": mlp})
        if depth_adaptor is not None:
            self.synthesis["depth_adaptor"] = depth_adaptor
        if camera_adaptor is not None:
            self.synthesis["camera_adaptor"] = camera_adaptor
        self.mapping = mapping

    @property
    def backbone(self) -> SynthesisNetwork:
        return cast(SynthesisNetwork, self.synthesis["tri_plane_decoder"])

    @property
    def mlp(self) -> FieldMLP:
        return cast(FieldMLP, self.synthesis["tri_plane_mlp"])

    @property
    def depth_adaptor(self) -> DepthAdaptor | None:
        return getattr(self.synthesis, "depth_adaptor", None)

    @property
    def camera_adaptor(self) -> CameraAdaptor | None:
        return getattr(self.synthesis, "camera_adaptor", None)

    def set_progress(self, density_noise_std: float, depth_progress: float) -> None:
        """Set what follows a schedule in training: the noise on densities, and `DepthAdaptor.set_progress`."""
        self.density_noise_std = density_noise_std
        if self.depth_adaptor is not None:
            self.depth_adaptor.set_progress(depth_progress)

    def adapt_camera(self, camera: Camera, z: Tensor, c: Tensor | None = None) -> Camera:
        """Posterior cameras for B prior cameras, latents [B, z_dim] and classes [B, c_dim]; the prior's where the
        cameras are not learned. Rendering never does this by itself.
        """
        return camera if self.camera_adaptor is None else self.camera_adaptor(camera, z, c)

    def synthesize_planes(
        self,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        generator: torch.Generator | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Feature planes (x, y), (x, z), (y, z): [B, num_ws, w_dim] -> [B, 3, F, H, W].

        Args:
            ws: styles.
            noise_mode: `random` (training, metrics), `const` (videos, geometry) or `none`.
            generator: source of the layer noise.
            noise: instead of what mode and generator make, see `SynthesisNetwork.noise_maps`.
        """
        if noise is None:
            noise = self.backbone.noise_maps(len(ws), noise_mode, generator)
        planes = self.backbone(ws, noise)
        return planes.unflatten(1, (3, self.plane_features))

    def field(self, planes: Tensor, marcher: str | None = None) -> Field:
        """The radiance field of planes [S, 3, F, H, W].

        Returns:
            A function of world points [B, M, 3] to colours [B, M, 3] and raw densities [B, M, 1]. B is a multiple of
            S: each sample's planes serve B/S consecutive rows. Colours are nominally in [−1, 1], for the mip marcher
            in [0, 1]. Outside the cube the planes fade to zero features.
        """
        marcher = marcher or self.render_options.marcher
        mlp = self.mlp

        def query(points: Tensor) -> tuple[Tensor, Tensor]:
            batch, count = points.shape[:2]
            folded = points.reshape(len(planes), -1, 3) / self.cube_scale
            values = mlp.at(planes, folded).reshape(batch, count, -1)  # [B, M, 4]
            rgb, sigma = values.split([values.shape[-1] - 1, 1], dim=-1)
            if marcher == "mip":
                rgb = rgb.sigmoid() * 1.002 - 0.001
            return rgb, sigma

        return query

    def query_density(self, planes: Tensor, points: Tensor, chunk_points: int = 32**3) -> Tensor:
        """Raw density, before softplus, of planes [B, 3, F, H, W] at world points [B, M, 3] -> [B, M, 1]."""
        field = self.field(planes)
        return torch.cat([field(part)[1] for part in points.split(chunk_points, dim=1)], dim=1)

    def render(
        self,
        planes: Tensor,
        camera: Camera,
        *,
        patch_scales: Tensor | None = None,
        patch_offsets: Tensor | None = None,
        resolution: int | tuple[int, int] | None = None,
        options: RenderOptions | None = None,
        concat_depth: bool = False,
        adapt_depth: bool = True,
        generator: torch.Generator | None = None,
        draws: RenderDraws | None = None,
        depth_index: Tensor | None = None,
    ) -> GeneratorOutput:
        """Look at planes through cameras.

        Args:
            planes: [S, 3, F, H, W] of S samples.
            camera: B cameras, a multiple of S, sample by sample: one sample's planes serve all its cameras.
            patch_scales, patch_offsets: [B, 2] part of the image to render, see `camera_rays`.
            resolution: pixels of the picture, side or (height, width); None: patch_resolution with patch parameters,
                img_resolution without.
            options: instead of the generator's own, e.g. `replace(G.render_options, far=2.25)`.
            concat_depth: append the adapted depth to the colours, as the discriminator sees it.
            adapt_depth: False saves the depth adaptor's work where nobody looks at its output.
            generator: source of ray samples, density noise and depth candidates.
            draws, depth_index: use these instead of random ones.

        Raises:
            ValueError: concat_depth without a depth adaptor, or B is no multiple of S.
        """
        if concat_depth and self.depth_adaptor is None:
            raise ValueError("this generator was built without a depth adaptor, so it has no adapted depth")
        if len(camera) % len(planes):
            raise ValueError(f"{len(camera)} cameras cannot be shared out among the planes of {len(planes)} samples")
        if resolution is None:
            resolution = self.img_resolution if patch_scales is None else self.patch_resolution
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        options = self.render_options if options is None else options
        if self.training:
            options = replace(options, density_noise_std=self.density_noise_std, chunk_rays=None)
        origins, directions = camera_rays(camera, height, width, patch_scales, patch_offsets)
        field = self.field(planes, options.marcher)
        rays = render_rays(field, origins, directions, options, draws=draws, generator=generator)
        img = rays.color.transpose(1, 2).unflatten(2, (height, width))  # [B, 3, h, w]
        depth = rays.depth.reshape(-1, 1, height, width)
        if self.depth_adaptor is None or not (adapt_depth or concat_depth):
            return GeneratorOutput(img, depth, None)
        depth_adapted = self.depth_adaptor(depth, index=depth_index, generator=generator)
        if concat_depth:
            img = torch.cat([img, depth_adapted], dim=1)
        return GeneratorOutput(img, depth, depth_adapted)

    def synthesize(
        self,
        ws: Tensor,
        camera: Camera,
        *,
        noise_mode: NoiseMode = "random",
        generator: torch.Generator | None = None,
        noise: Mapping[str, Tensor] | None = None,
        **render_arguments,
    ) -> GeneratorOutput:
        """`render(synthesize_planes(ws), camera)`; see both for the arguments."""
        planes = self.synthesize_planes(ws, noise_mode=noise_mode, generator=generator, noise=noise)
        return self.render(planes, camera, generator=generator, **render_arguments)
