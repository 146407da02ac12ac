"""From profiles to networks: sizes, switches, determinism, and the description of both."""

import pytest
import torch
from torch import nn

from threedgp.camera.priors import CameraPrior
from threedgp.config.profile import load_profile, profile_names
from threedgp.errors import ConfigError
from threedgp.models.build import build_discriminator, build_generator, render_options
from threedgp.models.describe import count_parameters, describe_model
from threedgp.models.generator import Generator
from threedgp.models.stylegan2 import StyleGAN2Generator
from threedgp.runs.checkpoint import network_values


def build(name, *overrides):
    profile = load_profile(name, overrides)
    torch.manual_seed(0)
    return profile, build_generator(profile), build_discriminator(profile)


def sizes(name, *overrides):
    with torch.device("meta"):
        _, G, D = build(name, *overrides)
    return count_parameters(G), count_parameters(D)


def test_imagenet_networks_have_the_published_sizes():
    # 105.7 M and 143.1 M were published; the latter with 23,040 numbers of image layers that no block uses.
    unused_image_layers = sum((4 + 1) * channels for channels in (512, 1024, 1024, 1024, 1024))
    assert sizes("imagenet256") == (105_721_805, 143_055_360 - unused_image_layers)


DIFFERENT = {str(network_values(load_profile(name))): name for name in profile_names()}  # networks -> a profile


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_every_profile_can_be_described(name):
    rows = describe_model(load_profile(name))
    totals = {row.module: row for row in rows if "." not in row.module}
    assert set(totals) == {"G", "D"}
    for network, total in totals.items():
        parts = [row for row in rows if row.module.startswith(f"{network}.")]
        assert sum(row.parameters for row in parts) == total.parameters
        assert sum(row.gflops for row in parts) == pytest.approx(total.gflops)


def test_description_counts_operations_of_a_patch():
    rows = {row.module: row for row in describe_model(load_profile("tiny-cpu"))}
    points = 16 * 16 * (8 + 8)
    assert rows["G.tri_plane_mlp"].output == f"{points} × 4"
    assert rows["G.tri_plane_mlp"].gflops == pytest.approx(2 * points * (8 * 16 + 16 * 4) / 1e9)
    assert rows["G.tri_plane_decoder.b32"].output == "32 × 32 × 32"
    assert rows["G"].output == "4 × 16 × 16"
    assert rows["D.b4"].gflops == pytest.approx(
        2 * (16 * 33 * 32 * 9 + 16 * 32 * 32 + 32 * 32 + 16 * 32 * 32 + 32 * 1280) / 1e9
    )


def test_description_allocates_nothing_and_leaves_the_random_state():
    before = torch.get_rng_state()
    describe_model(load_profile("tiny-cpu"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["tiny-cpu", "demo64"])
def test_networks_fit_together(name):
    profile, G, D = build(name)
    batch, patch = 4, profile.training.patch.resolution
    z = torch.randn(batch, G.z_dim)
    c = torch.eye(max(G.c_dim, 4))[:batch, : G.c_dim]
    camera = G.adapt_camera(CameraPrior(profile.camera).sample(batch), z, c)
    scales, offsets = torch.full((batch, 2), 0.5), torch.full((batch, 2), 0.25)
    fake = G.synthesize(G.mapping(z, c), camera, patch_scales=scales, patch_offsets=offsets, concat_depth=True)
    assert fake.img.shape == (batch, 4, patch, patch)
    output = D(fake.img, c, scales, offsets, camera.angles, predict_features=True)
    assert output.logits.shape == (batch,)
    assert output.features.shape == (batch, profile.data.embedding_dim)
    output.logits.sum().backward()
    # The depth adaptor's convolutions only matter to samples that drew a deeper candidate.
    idle = [name for name, p in G.named_parameters() if p.grad is None and "depth_adaptor" not in name]
    assert not idle


def small_stylegan2(*overrides):
    sizes = ["data.resolution=32"]
    sizes += [f"model.{net}.{key}" for net in ("generator", "discriminator") for key in ("cbase=512", "cmax=16")]
    return build("stylegan2-256", *sizes, *overrides)


def test_the_2d_baseline():
    _, G, D = small_stylegan2()
    assert isinstance(G, StyleGAN2Generator)
    assert D.scalar_enc is None
    assert D.hyper_mod_mapping is None
    assert D.b4.feat_out is None
    assert G.synthesis.block(32).conv1.conv_clamp == 256
    img = G.synthesize(G.mapping(torch.randn(4, G.z_dim)))
    assert img.shape == (4, 3, 32, 32)
    assert D(img).logits.shape == (4,)


def test_adaptors_follow_the_training_switches():
    _, G, D = build("tiny-cpu")
    assert isinstance(G, Generator)
    assert G.depth_adaptor is not None
    assert G.camera_adaptor is not None
    assert D.img_channels == 4
    _, G, D = build("tiny-cpu", "training.use_depth=false", "training.learn_camera=false")
    assert G.depth_adaptor is None
    assert G.camera_adaptor is None
    assert D.img_channels == 3


def test_a_learned_camera_needs_bounds():
    profile = load_profile("tiny-cpu")
    origin = profile.camera.origin.model_copy(update={"dist": "normal", "yaw": profile.camera.fov.model_copy()})
    unbounded = origin.yaw.model_copy(update={"min": None, "max": None})
    camera = profile.camera.model_copy(update={"origin": origin.model_copy(update={"yaw": unbounded})})
    with pytest.raises(ConfigError, match="bounds"):
        build_generator(profile.model_copy(update={"camera": camera}))


def test_without_distillation_there_is_no_feature_head():
    _, _, D = build("tiny-cpu", "loss.distillation.weight=0.0")
    assert D.feature_dim == 0
    assert D.b4.feat_out is None


def test_camera_conditioning_of_both_networks():
    switches = [f"model.{net}.camera_conditioning.enabled=true" for net in ("generator", "discriminator")]
    profile, G, D = build("tiny-cpu", *switches)
    assert G.mapping.mean_camera_params.tolist() == pytest.approx([0, torch.pi / 2, 0, 27.5, 1.0], abs=1e-5)
    assert G.mapping.embed.weight.shape[1] == profile.data.num_classes + 2
    assert D.head_mapping.embed.weight.shape[1] == profile.data.num_classes + 828 + 24
    _, G, _ = small_stylegan2(*switches)
    assert G.mapping.embed.weight.shape[1] == 24


def test_precision_follows_the_profile():
    _, G, D = build("tiny-cpu", "precision=bf16")
    backbone = G.synthesis["tri_plane_decoder"]
    assert backbone.block(4).low_precision is None
    assert all(backbone.block(r).low_precision is torch.bfloat16 for r in (8, 16, 32))
    assert D.b32.low_precision is torch.bfloat16
    _, G, D = build("tiny-cpu")
    assert G.synthesis["tri_plane_decoder"].block(32).low_precision is None
    assert D.b32.low_precision is None
    assert G.synthesis["tri_plane_decoder"].block(32).conv1.conv_clamp is None
    assert D.b32.conv0.conv_clamp == 256


def test_render_options_follow_the_profile():
    profile = load_profile("tiny-cpu", ["model.generator.use_full_box=true", "camera.far=1.5"])
    options = render_options(profile)
    assert (options.near, options.far, options.num_steps, options.full_box) == (0.75, 1.5, 8, 0.5)
    assert options.chunk_rays == 128**2


def test_same_seed_same_networks():
    first, second = (build("tiny-cpu")[1:] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        states = one.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_freezing_reaches_the_discriminator():
    _, _, D = build("tiny-cpu", "training.freeze_discriminator_layers=4")
    assert not list(D.b32.parameters())
    assert isinstance(D.b16.conv0.weight, nn.Parameter)
