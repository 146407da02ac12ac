"""What a profile's networks consist of: modules, output shapes, parameters and arithmetic of one image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from threedgp.camera.camera import Camera
from threedgp.config.rules import discriminator_resolution, image_channels
from threedgp.config.schema import Profile
from threedgp.models.build import build_discriminator, build_generator
from threedgp.models.generator import Generator


class ModelRow(NamedTuple):
    """One module: its name, output shape as text, number of parameters, and 10⁹ operations for one image."""

    module: str
    output: str
    parameters: int
    gflops: float


def describe_model(profile: Profile) -> list[ModelRow]:
    """Describe generator and discriminator without allocating their weights.

    A multiplication with an addition counts as two operations, as machines' peak rates do. One image is what a
    training step sees of it: a patch where patches are on, the whole image otherwise.

    Returns:
        Rows in the order of computation; each network ends with its total.
    """
    with torch.device("meta"), torch.no_grad():
        return _generator_rows(profile) + _discriminator_rows(profile)


def _record(network: str, modules: Mapping[str, nn.Module], forward: Callable[[], object]) -> list[ModelRow]:
    """Run `forward` once; a row for each of the modules by name, in the order in which they run."""
    rows, before = [], {}
    with FlopCounterMode(display=False) as counter:
        for name, module in modules.items():

            def start(*_, name: str = name) -> None:
                before[name] = counter.get_total_flops()

            def finish(module: nn.Module, _, output: Any, name: str = name) -> None:
                gflops = (counter.get_total_flops() - before[name]) / 1e9
                rows.append(ModelRow(f"{network}.{name}", _shape(output), count_parameters(module), gflops))

            module.register_forward_pre_hook(start)
            module.register_forward_hook(finish)
        forward()
    return rows


def _with_total(rows: list[ModelRow], name: str, network: nn.Module, output: str) -> list[ModelRow]:
    return [*rows, ModelRow(name, output, count_parameters(network), sum(row.gflops for row in rows))]


def count_parameters(module: nn.Module) -> int:
    """Trained numbers in a module; buffers such as running means and stored noise do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(output: Camera | torch.Tensor | tuple[torch.Tensor, ...]) -> str:
    """Shape of one sample of a module's first output."""
    if isinstance(output, Camera):
        return "camera"
    tensor = output[0] if isinstance(output, tuple) else output
    return " × ".join(str(size) for size in tensor.shape[1:]) or "1"


def _generator_rows(profile: Profile) -> list[ModelRow]:
    """Mapping and backbone, then the parts behind the planes, each on what one image asks of it."""
    G = build_generator(profile).eval().requires_grad_(False)
    z, c, angles = torch.empty(1, G.z_dim), torch.empty(1, G.c_dim), torch.empty(1, 3)
    rows = _record("G", {"mapping": G.mapping}, lambda: G.mapping(z, c, angles))
    prefix = "tri_plane_decoder" if isinstance(G, Generator) else "synthesis"
    blocks = {f"{prefix}.b{r}": G.backbone.block(r) for r in G.backbone.block_resolutions}
    rows += _record("G", blocks, lambda: G.backbone(torch.empty(1, G.num_ws, G.w_dim)))
    side = discriminator_resolution(profile)
    if isinstance(G, Generator):
        samples = side * side * profile.model.generator.ray_steps * 2  # coarse and fine
        arguments: dict[str, tuple] = {
            "tri_plane_mlp": (torch.empty(1, samples, G.plane_features),),
            "depth_adaptor": (torch.empty(1, 1, side, side),),
            "camera_adaptor": (Camera.from_vector(torch.empty(1, 8)), z, c),
        }
        for name, given in arguments.items():
            part = getattr(G.synthesis, name, None)
            if part is not None:
                rows += _record("G", {name: part}, functools.partial(part, *given))
    return _with_total(rows, "G", G, f"{image_channels(profile)} × {side} × {side}")


def _discriminator_rows(profile: Profile) -> list[ModelRow]:
    D = build_discriminator(profile).eval().requires_grad_(False)
    img = torch.empty(1, D.img_channels, D.img_resolution, D.img_resolution)
    conditions = (torch.empty(1, D.c_dim), torch.empty(1, 2), torch.empty(1, 2), torch.empty(1, 3))
    parts = {name: module for name, module in D.named_children() if module is not None}

    def judge() -> None:
        D(img, *conditions, predict_features=D.feature_dim > 0)
        if D.feature_discriminator is not None:
            D.feature_discriminator(img[:, :3], conditions[0])

    rows = _record("D", parts, judge)
    return _with_total(rows, "D", D, "logit" + (f" + {D.feature_dim} features" if D.feature_dim else ""))
