"""What a profile's networks consist of: modules, output shapes, parameters and arithmetic of one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from threedgp.camera.camera import Camera
from threedgp.config.rules import discriminator_resolution, image_channels
from threedgp.config.schema import Profile
from threedgp.models.build import build_discriminator, build_generator


class ModelRow(NamedTuple):
    """One module: its name, output shape as text, number of parameters, and 10⁹ operations for one image."""

    module: str
    output: str
    parameters: int
    gflops: float | None


def describe_model(profile: Profile) -> list[ModelRow]:
    """Describe generator and discriminator without allocating their weights.

    A multiplication with an addition counts as two operations, as machines' peak rates do. One image is what a
    training step sees of it: a patch where patches are on, the whole image otherwise.

    Returns:
        Rows in the order of computation; each network ends with its total.
    """
    with torch.device("meta"), torch.no_grad():
        return _generator_rows(profile) + _discriminator_rows(profile)


class _Recorder:
    """Collects a row for every watched module that runs."""

    def __init__(self, network: str):
        self.network = network
        self.rows: list[ModelRow] = []

    def watch(self, name: str, module: nn.Module, counter: FlopCounterMode) -> None:
        before = 0

        def start(*_) -> None:
            nonlocal before
            before = counter.get_total_flops()

        def finish(_, __, output) -> None:
            shape = _shape(output)
            gflops = (counter.get_total_flops() - before) / 1e9
            self.rows.append(ModelRow(f"{self.network}.{name}", shape, count_parameters(module), gflops))

        module.register_forward_pre_hook(start)
        module.register_forward_hook(finish)

    def run(self, modules: dict[str, nn.Module], forward: Callable[[], object]) -> None:
        """Run `forward` once and keep a row for each of the modules by name."""
        with FlopCounterMode(display=False) as counter:
            for name, module in modules.items():
                self.watch(name, module, counter)
            forward()

    def finish(self, network: nn.Module, output: str) -> list[ModelRow]:
        total = sum(row.gflops for row in self.rows)
        return [*self.rows, ModelRow(self.network, output, count_parameters(network), total)]


def count_parameters(module: nn.Module) -> int:
    """Trained numbers in a module; buffers such as running means and stored noise do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(output: object) -> str:
    """Shape of one sample of a module's first output."""
    if isinstance(output, Camera):
        return "camera"
    tensor = output[0] if isinstance(output, tuple) else output
    return " × ".join(str(size) for size in tensor.shape[1:]) or "1"


def _generator_rows(profile: Profile) -> list[ModelRow]:
    G = build_generator(profile).eval().requires_grad_(False)
    recorder = _Recorder("G")
    z, c = torch.empty(1, G.z_dim), torch.empty(1, G.c_dim)
    angles = torch.empty(1, 3)
    recorder.run({"mapping": G.mapping}, lambda: G.mapping(z, c, angles))
    ws = torch.empty(1, G.num_ws, G.w_dim)
    if profile.model.kind == "stylegan2":
        backbone, prefix = G.synthesis, "synthesis"
    else:
        backbone, prefix = G.synthesis["tri_plane_decoder"], "tri_plane_decoder"
    blocks = {f"{prefix}.b{r}": backbone.block(r) for r in backbone.block_resolutions}
    recorder.run(blocks, lambda: backbone(ws))
    side = discriminator_resolution(profile)
    if profile.model.kind != "stylegan2":
        _field_rows(recorder, G, profile, side)
    return recorder.finish(G, f"{image_channels(profile)} × {side} × {side}")


def _field_rows(recorder: _Recorder, G: nn.Module, profile: Profile, side: int) -> None:
    """The parts behind the planes, each on what one image asks of it."""
    samples = side * side * profile.model.generator.ray_steps * 2  # coarse and fine
    features = torch.empty(1, samples, profile.model.generator.tri_plane.features)
    mlp = G.synthesis["tri_plane_mlp"]
    recorder.run({"tri_plane_mlp": mlp}, lambda: mlp(features))
    if G.depth_adaptor is not None:
        adaptor = G.depth_adaptor
        recorder.run({"depth_adaptor": adaptor}, lambda: adaptor(torch.empty(1, 1, side, side)))
    if G.camera_adaptor is not None:
        adaptor = G.camera_adaptor
        camera = Camera.from_vector(torch.empty(1, 8))
        z, c = torch.empty(1, G.z_dim), torch.empty(1, G.c_dim)
        recorder.run({"camera_adaptor": adaptor}, lambda: adaptor(camera, z, c))


def _discriminator_rows(profile: Profile) -> list[ModelRow]:
    D = build_discriminator(profile).eval().requires_grad_(False)
    recorder = _Recorder("D")
    img = torch.empty(1, D.img_channels, D.img_resolution, D.img_resolution)
    conditions = (torch.empty(1, D.c_dim), torch.empty(1, 2), torch.empty(1, 2), torch.empty(1, 3))
    parts = {name: module for name, module in D.named_children() if module is not None}
    recorder.run(parts, lambda: D(img, *conditions, predict_features=D.feature_dim > 0))
    return recorder.finish(D, "logit" + (f" + {D.feature_dim} features" if D.feature_dim else ""))
