"""The tri-plane generator: reference vectors with gradients, sharing of planes, modes, randomness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.camera.camera import Camera
from threedgp.camera.priors import CameraPrior
from threedgp.camera.trajectories import build_trajectory
from threedgp.config.schema import CameraAdaptorConfig, CameraConfig, DepthAdaptorConfig, GeneratorConfig
from threedgp.models.camera_adaptor import CameraAdaptor
from threedgp.models.depth_adaptor import DepthAdaptor
from threedgp.models.generator import FieldMLP, Generator
from threedgp.models.mapping import MappingNetwork
from threedgp.models.stylegan2 import SynthesisNetwork
from threedgp.rendering.renderer import RenderDraws, RenderOptions

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 2e-6)]


def reference_generator(arrays, dtype=torch.float32) -> Generator:
    sizes = arrays["cfg"].tolist()
    resolution, patch, plane, features, hidden, layers, steps, cbase, cmax = (int(v) for v in sizes[:9])
    fmaps = sizes[9]
    w_dim, z_dim, c_dim, map_depth, camera_hidden, camera_embed, depth_hidden, kernel, depth_layers = map(
        int, sizes[10:19]
    )
    cube_scale, near, far = sizes[19:]
    backbone = SynthesisNetwork(GeneratorConfig(w_dim=w_dim, cbase=cbase, cmax=cmax, fmaps=fmaps), plane, 3 * features)
    depth_config = DepthAdaptorConfig(kernel_size=kernel, hidden_dim=depth_hidden, layers=depth_layers)
    camera_config = CameraAdaptorConfig(hidden_dim=camera_hidden, embed_dim=camera_embed)
    generator = Generator(
        backbone,
        FieldMLP(features, hidden, 4, layers),
        MappingNetwork(z_dim, c_dim, w_dim, backbone.num_ws, num_layers=map_depth),
        RenderOptions(near=near, far=far, num_steps=steps, chunk_rays=100),
        img_resolution=resolution,
        patch_resolution=patch,
        cube_scale=cube_scale,
        depth_adaptor=DepthAdaptor(near, far, depth_config),
        camera_adaptor=CameraAdaptor(z_dim, c_dim, CameraPrior(CameraConfig()).bounds(), camera_config),
    )
    state = {key.removeprefix("param/"): torch.from_numpy(v) for key, v in arrays.items() if key.startswith("param/")}
    unused = ("resample_filter", "mean_camera_params")  # constants of the reference's layers
    generator.load_state_dict({key: v for key, v in state.items() if not key.endswith(unused)}, strict=True)
    return generator.to(dtype).eval()


class Reference:
    """The reference generator with its inputs in one precision."""

    def __init__(self, arrays, dtype):
        self.arrays, self.dtype = arrays, dtype
        self.G = reference_generator(arrays, dtype)
        self.z, self.c, self.ws = (self[key] for key in ("z", "c", "ws"))
        self.camera = Camera(*(self[f"camera/{key}"] for key in ("angles", "fov", "radius", "look_at")))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key]).to(self.dtype)

    def check(self, actual, key: str, tolerance: float):
        assert relative_error(actual.detach(), self.arrays[key]) < tolerance, key

    def draws(self, prefix: str = "") -> RenderDraws:
        u = self[f"{prefix}u_importance"]
        u = u.reshape(2, -1, u.shape[-1])
        key = f"{prefix}jitter"
        jitter = self[key][..., 0] if key in self.arrays else torch.full_like(u, 0.5)
        return RenderDraws(jitter, u)


@pytest.fixture(params=PRECISIONS, ids=["float32", "float64"])
def reference(golden, request):
    return Reference(golden("generator"), request.param[0]), request.param[1]


def test_mapping_matches_the_reference(reference):
    ref, tolerance = reference
    mapping = ref.G.mapping
    assert ref.G.num_ws == ref.arrays["num_ws"][0]
    ref.check(mapping(ref.z, ref.c), "ws", tolerance)
    ref.check(mapping(ref.z, ref.c, truncation_psi=0.7), "ws_trunc07", tolerance)
    ref.check(mapping(ref.z, ref.c, truncation_psi=0.5, truncation_cutoff=3), "ws_trunc05_cutoff3", tolerance)
    mapping.update_w_avg(mapping(ref.z, ref.c)[:, 0].mean(dim=0))
    ref.check(mapping.w_avg, "w_avg_after_update", tolerance)


def test_planes_and_field_match_the_reference(reference):
    ref, tolerance = reference
    planes = ref.G.synthesize_planes(ref.ws, noise_mode="const")
    ref.check(planes.flatten(1, 2), "planes", tolerance)
    ref.check(ref.G.synthesize_planes(ref.ws, noise_mode="none").flatten(1, 2), "planes_noise_none", tolerance)
    points = ref["points"]
    rgb, sigma = ref.G.field(planes)(points)
    ref.check(rgb, "points_rgb", tolerance)
    ref.check(sigma, "points_sigma", tolerance)
    ref.check(ref.G.query_density(planes, points, chunk_points=4), "points_density_query", tolerance)


def test_evaluation_renders_match_the_reference(reference):
    ref, tolerance = reference
    out = ref.G.synthesize(ref.G.mapping(ref.z, ref.c), ref.camera, noise_mode="const", draws=ref.draws())
    for name in ("img", "depth", "depth_adapted"):
        ref.check(getattr(out, name), name, tolerance)
    half = torch.full((2, 256, 6), 0.5, dtype=ref.dtype)
    out = ref.G.synthesize(ref.ws, ref.camera, noise_mode="const", draws=RenderDraws(half, half), concat_depth=True)
    ref.check(out.img, "u05_img4", tolerance)
    ref.check(out.depth, "u05_depth", tolerance)
    ref.check(out.depth_adapted, "u05_depth_adapted", tolerance)


def test_another_resolution_step_count_and_far_plane_match_the_reference(reference):
    ref, tolerance = reference
    resolution, steps, far = ref.arrays["alt/res_steps_far"].tolist()
    options = replace(ref.G.render_options, num_steps=int(steps), far=far)
    planes = ref.G.synthesize_planes(ref.ws, noise_mode="const")
    out = ref.G.render(planes, ref.camera, resolution=int(resolution), options=options, draws=ref.draws("alt/"))
    for name in ("img", "depth", "depth_adapted"):
        ref.check(getattr(out, name), f"alt/{name}", tolerance)


def test_training_patches_match_the_reference(reference):
    ref, tolerance = reference
    ref.G.train()
    ref.G.set_progress(density_noise_std=1 - 0.6, depth_progress=0.6 * 5000 / 10000)
    assert ref.G.density_noise_std == pytest.approx(float(ref.arrays["train/nerf_noise_std"]))
    probability = ref.G.depth_adaptor.selection_probabilities()[0].item()
    assert probability == pytest.approx(float(ref.arrays["train/start_p"]), abs=1e-6)
    noise = [ref[f"train/density_noise_{name}"].reshape(2, 64, 6) for name in ("coarse", "fine")]
    out = ref.G.synthesize(
        ref.ws,
        ref.camera,
        noise_mode="const",
        patch_scales=ref["train/patch_scales"],
        patch_offsets=ref["train/patch_offsets"],
        draws=RenderDraws(*ref.draws("train/")[:2], *noise),
        depth_index=torch.from_numpy(ref.arrays["train/depth_output_index"]),
        concat_depth=True,
    )
    ref.check(out.img, "train/img4", tolerance)
    ref.check(out.depth, "train/depth", tolerance)


@pytest.mark.parametrize("output", ["img", "depth_adapted"])
def test_gradients_match_the_reference(reference, output):
    ref, _ = reference
    ws = ref.G.mapping(ref.z, ref.c)
    ws.retain_grad()
    out = ref.G.synthesize(ws, ref.camera, noise_mode="const", draws=ref.draws())
    getattr(out, output).square().sum().backward()
    parameters = dict(ref.G.named_parameters())
    prefix = f"grad_{output}/"
    keys = [key for key in ref.arrays if key.startswith(prefix)]
    assert keys
    for key in keys:
        name = key.removeprefix(prefix)
        actual = ws.grad if name == "ws" else parameters[name.removeprefix("param/")].grad
        expected = ref.arrays[key]
        # Relative to the largest entry.
        error = np.abs(actual.numpy() - expected).max() / np.abs(expected).max()
        assert error < (1e-4 if ref.dtype == torch.float32 else 1e-5), key


def tiny_generator(adaptors: bool = True, **options) -> Generator:
    torch.manual_seed(0)
    z_dim, c_dim = 6, 2
    extra = {}
    if adaptors:
        extra = {
            "depth_adaptor": DepthAdaptor(0.75, 1.25, DepthAdaptorConfig(kernel_size=3, hidden_dim=3, layers=2)),
            "camera_adaptor": CameraAdaptor(
                z_dim, c_dim, CameraPrior(CameraConfig()).bounds(), CameraAdaptorConfig(hidden_dim=8, embed_dim=4)
            ),
        }
    render_options = RenderOptions(near=0.75, far=1.25, num_steps=4, chunk_rays=7, **options)
    backbone = SynthesisNetwork(GeneratorConfig(w_dim=8, cbase=64, cmax=8), 8, 12)
    mapping = MappingNetwork(z_dim, c_dim, 8, backbone.num_ws)
    mlp = FieldMLP(4, 8, 4, layers=2)
    generator = Generator(backbone, mlp, mapping, render_options, img_resolution=8, patch_resolution=4, **extra)
    return generator.double().eval()


def tiny_inputs(batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    c = torch.nn.functional.one_hot(torch.arange(batch) % 2, 2).double()
    return z, c, CameraPrior(CameraConfig()).sample(batch, generator=generator).to(torch.float64)


def test_planes_serve_all_cameras_of_their_sample():
    G, (z, c, camera) = tiny_generator(jitter="none"), tiny_inputs()
    planes = G.synthesize_planes(G.mapping(z, c), noise_mode="const")
    frames = build_trajectory("front_circle", {"num_frames": 3}).cameras(camera)
    shared = G.render(planes, frames)
    repeated = G.render(planes.repeat_interleave(3, dim=0), frames)
    for one, other in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="5 cameras cannot be shared"):
        G.render(planes, frames[:5])


def test_chunks_change_nothing_even_with_random_samples():
    G, (z, c, camera) = tiny_generator(), tiny_inputs()
    planes = G.synthesize_planes(G.mapping(z, c), noise_mode="const")
    images = [
        G.render(
            planes,
            camera,
            options=replace(G.render_options, chunk_rays=chunk),
            generator=torch.Generator().manual_seed(0),
        ).img
        for chunk in (None, 1, 7, 64)
    ]
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], rtol=0, atol=1e-12)


def test_a_patch_is_a_cut_of_the_image():
    G, (z, c, camera) = tiny_generator(jitter="none"), tiny_inputs()
    planes = G.synthesize_planes(G.mapping(z, c), noise_mode="const")
    full = G.render(planes, camera, resolution=7).img
    scales, offsets = torch.full((2, 2), 0.5, dtype=torch.float64), torch.tensor([[0.5, 0.0]] * 2, dtype=torch.float64)
    patch = G.render(planes, camera, patch_scales=scales, patch_offsets=offsets).img
    torch.testing.assert_close(patch, full[:, :, 3:, 3:], rtol=0, atol=1e-12)


def test_shapes_and_resolutions():
    G, (z, c, camera) = tiny_generator(), tiny_inputs()
    out = G.synthesize(G.mapping(z, c), camera)
    assert [tuple(part.shape) for part in out] == [(2, 3, 8, 8), (2, 1, 8, 8), (2, 1, 8, 8)]
    assert G.synthesize(G.mapping(z, c), camera, resolution=(3, 5)).img.shape == (2, 3, 3, 5)
    assert G.synthesize(G.mapping(z, c), camera, concat_depth=True).img.shape == (2, 4, 8, 8)
    ones = torch.ones(2, 2, dtype=torch.float64)
    patch = G.synthesize(G.mapping(z, c), camera, patch_scales=ones / 2, patch_offsets=ones / 4)
    assert patch.img.shape == (2, 3, 4, 4)


def test_without_adaptors_there_is_no_adapted_depth_and_cameras_stay():
    G, (z, c, camera) = tiny_generator(adaptors=False), tiny_inputs()
    assert G.synthesize(G.mapping(z, c), camera).depth_adapted is None
    assert G.adapt_camera(camera, z, c) is camera
    with pytest.raises(ValueError, match="without a depth adaptor"):
        G.synthesize(G.mapping(z, c), camera, concat_depth=True)
    G.set_progress(0.5, 0.5)


def test_training_adds_density_noise_and_evaluation_does_not():
    G, (z, c, camera) = tiny_generator(jitter="none"), tiny_inputs()

    def render() -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        return G.synthesize(G.mapping(z, c), camera, noise_mode="const", generator=random).img.detach()

    clean = render()
    G.train()
    noisy = render()
    assert not torch.allclose(noisy, clean)
    G.set_progress(0.0, 0.5)
    torch.testing.assert_close(render(), clean, rtol=0, atol=1e-12)
    G.set_progress(1.0, 0.0)
    torch.testing.assert_close(render(), noisy, rtol=0, atol=0)


def test_everything_random_comes_from_the_given_generator():
    G, (z, c, camera) = tiny_generator().train(), tiny_inputs()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.5)
    state = torch.get_rng_state()
    ws = G.mapping(z, c)
    first, again, other = (
        G.synthesize(ws, camera, generator=torch.Generator().manual_seed(seed), concat_depth=True).img
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_gets_a_gradient():
    G, (z, c, camera) = tiny_generator().train(), tiny_inputs(8)
    out = G.synthesize(G.mapping(z, c), G.adapt_camera(camera, z, c), concat_depth=True)
    out.img.square().sum().backward()
    missing = [name for name, parameter in G.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in G.parameters())


def test_mip_colours_lie_in_the_range_the_marcher_expects():
    G, (z, c, camera) = tiny_generator(marcher="mip"), tiny_inputs()
    planes = G.synthesize_planes(G.mapping(z, c))
    rgb, _ = G.field(planes * 1e3)(torch.rand(2, 20, 3, dtype=torch.float64) - 0.5)
    assert rgb.min() >= -0.001 - 1e-12
    assert rgb.max() <= 1.001 + 1e-12
    assert G.render(planes, camera).img.abs().max() <= 1.01


def test_points_outside_the_cube_see_no_features():
    G, (z, c, _) = tiny_generator(), tiny_inputs()
    planes = G.synthesize_planes(G.mapping(z, c))
    far = torch.full((2, 1, 3), 9.0, dtype=torch.float64)
    nothing = G.synthesis["tri_plane_mlp"](torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(G.query_density(planes, far), nothing[-1].expand(2, 1, 1))
