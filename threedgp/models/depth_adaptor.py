"""Turns rendered depth into what a monocular depth estimator would say about the same picture.

Source: 3DGP (arXiv 2303.01416), Sec. 3.2 and App. B: estimators are right only up to their own distortions, so the
generator is compared with them through a small network that may produce, but is not forced to use, such distortions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threedgp.config.schema import DepthAdaptorConfig
from threedgp.models.layers import Conv2dLayer


class DepthAdaptor(nn.Module):
    """Ray distances [B, 1, h, w] to estimator-like depth [B, 1, h, w], nominally in [−1, 1].

    Candidate 0 is the depth scaled from [near + learned offset, far] to [−1, 1]; candidate i is read off the i-th
    hidden convolution by one shared 1×1 head. In training `random` picks one candidate per sample, at first all
    equally often, later the deeper ones more often; in evaluation it takes the last.

    Args:
        near, far: ray interval of training, in world units. Rendering with another far plane does not change it.
        config: `model.depth_adaptor` of the profile.
    """

    progress_coef: Tensor

    def __init__(self, near: float, far: float, config: DepthAdaptorConfig):
        super().__init__()
        self.near, self.far, self.config = near, far, config
        self.near_plane_offset_raw = nn.Parameter(torch.tensor([config.near_plane_offset_bias]))
        self.register_buffer("progress_coef", torch.zeros(1))
        width, kernel = config.hidden_dim, config.kernel_size
        self.layers = nn.ModuleList(
            Conv2dLayer(1 if i == 0 else width, width, kernel, activation="lrelu") for i in range(config.layers)
        )
        self.head = Conv2dLayer(width, 1, 1) if config.layers else nn.Identity()

    def set_progress(self, progress: float) -> None:
        """Anneal the selection probabilities from equal ones, 0, to preferring the deepest candidates, 1."""
        self.progress_coef.fill_(progress)

    def near_plane_offset(self) -> Tensor:
        """[1] how far the near plane has moved towards the far plane, world units."""
        reach = self.config.near_plane_offset_max_fraction * (self.far - self.near)
        return self.near_plane_offset_raw.sigmoid() * reach

    def selection_probabilities(self) -> Tensor:
        """[n+1] p_i = p_0 + i·m with p_0 annealed from 1/(n+1) to its last value, and m such that they add up to 1."""
        count = len(self.layers) + 1
        first = (1 - self.progress_coef) / count + self.config.selection_start_p * self.progress_coef
        slope = 2 * (1 - count * first) / (count * max(count - 1, 1))
        return first + torch.arange(count, device=first.device) * slope

    def candidates(self, depth: Tensor) -> Tensor:
        """All candidates [B, n+1, 1, h, w] of ray distances [B, 1, h, w]."""
        x = self._normalize(depth)
        found = [x]
        for layer in self.layers:
            x = layer(x)
            found.append(self.head(x))
        return torch.stack(found, dim=1)

    def forward(
        self, depth: Tensor, *, index: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adapt.

        Args:
            depth: [B, 1, h, w] ray distances in world units.
            index: [B] candidate per sample, instead of a random one; only used by `random` in training.
            generator: source of the random choice.
        """
        strategy = self.config.out_strategy
        if strategy == "mean":
            return self.candidates(depth).mean(dim=1)
        if not self.training or strategy == "last" or not self.layers:
            x = self._normalize(depth)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)
        if index is None:
            index = self.draw_index(len(depth), generator)
        return self.candidates(depth)[torch.arange(len(depth), device=depth.device), index.to(depth.device)]

    def draw_index(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """[batch] random candidate indices."""
        probabilities = self.selection_probabilities()
        if generator is not None:
            probabilities = probabilities.to(generator.device)
        return torch.multinomial(probabilities, batch, replacement=True, generator=generator)

    def _normalize(self, depth: Tensor) -> Tensor:
        near = self.near + self.near_plane_offset()
        return 2 * (depth - (self.far + near) / 2) / (self.far - near + 1e-12)
