"""Synthesis layers, blocks and networks, and the 2D generator: reference values, noise, precision."""

import pytest
import torch

from tests.models.reference import load_reference
from tests.tools import relative_error
from threedgp.config.schema import GeneratorConfig
from threedgp.models.mapping import MappingNetwork
from threedgp.models.stylegan2 import (
    StyleGAN2Generator,
    SynthesisBlock,
    SynthesisLayer,
    SynthesisNetwork,
    ToRGB,
)
from threedgp.ops import native

DTYPES = [(torch.float32, 2e-6), (torch.float64, 1e-6)]


@pytest.fixture
def data(golden):
    return golden("layers")


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("key", "up"), [("synlayer_same", 1), ("synlayer_up", 2)])
def test_synthesis_layer_matches_reference(data, key, up, dtype, tolerance):
    layer = SynthesisLayer(4, 6, 9, 6 * up, up=up, conv_clamp=1.5)
    load_reference(layer, data, f"{key}/param/", dtype)
    x, w = torch.tensor(data["conv/x"], dtype=dtype), torch.tensor(data[f"{key}/w"], dtype=dtype)
    assert relative_error(layer(x, w, layer.noise_const).detach(), data[f"{key}/y_const"]) < tolerance
    assert relative_error(layer(x, w, gain=0.5).detach(), data[f"{key}/y_none_gain"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_image_layer_matches_reference(data, dtype, tolerance):
    layer = load_reference(ToRGB(4, 7, 9), data, "torgb/param/", dtype)
    x, w = torch.tensor(data["conv/x"], dtype=dtype), torch.tensor(data["torgb/w"], dtype=dtype)
    assert relative_error(layer(x, w).detach(), data["torgb/y"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_block_matches_reference(data, architecture, dtype, tolerance):
    key = f"block_{architecture}/"
    block = SynthesisBlock(GeneratorConfig(w_dim=9, architecture=architecture), 4, 5, 8, 3, is_last=True)
    load_reference(block, data, f"{key}param/", dtype)
    x, img, ws = (torch.tensor(data[key + name], dtype=dtype) for name in ("x", "img", "ws"))
    y, y_img = block(x, img, ws, {f"b8.{name}": getattr(block, name).noise_const for name in ("conv0", "conv1")})
    assert relative_error(y.detach(), data[f"{key}y"]) < tolerance
    assert relative_error(y_img.detach(), data[f"{key}y_img"]) < tolerance


def reference_generator(data, architecture, dtype):
    res, c_dim, cbase, cmax, map_depth = (int(v) for v in data[f"{architecture}/cfg"])
    sizes = {"w_dim": 13, "cbase": cbase, "cmax": cmax}
    config = GeneratorConfig(**sizes, architecture=architecture, clamp_activations=True)
    synthesis = SynthesisNetwork(config, res, 3)
    mapping = MappingNetwork(11, c_dim, 13, synthesis.num_ws, num_layers=map_depth)
    net = StyleGAN2Generator(synthesis, mapping, patch_resolution=res // 2)
    load_reference(net, data, f"{architecture}/param/", dtype)
    return net, *(torch.tensor(data[f"{architecture}/{name}"], dtype=dtype) for name in "zc")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 2e-6)])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_generator_matches_reference(golden, architecture, dtype, tolerance):
    data = golden("stylegan2_generator")
    net, z, c = reference_generator(data, architecture, dtype)
    ws = net.mapping(z, c)
    assert relative_error(ws.detach(), data[f"{architecture}/ws"]) < tolerance
    assert relative_error(net.synthesize(ws, noise_mode="const").detach(), data[f"{architecture}/img"]) < tolerance
    truncated = net.synthesize(net.mapping(z, c, truncation_psi=0.7), noise_mode="none")
    assert relative_error(truncated.detach(), data[f"{architecture}/img_trunc07_nonoise"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 2e-6)])
def test_generator_gradients_and_patches_match_reference(golden, dtype, tolerance):
    data = golden("stylegan2_generator")
    net, z, c = reference_generator(data, "skip", dtype)
    ws = net.mapping(z, c).detach().requires_grad_()
    net.synthesize(ws, noise_mode="const").square().sum().backward()
    assert relative_error(ws.grad, data["skip/grad_ws"]) < tolerance
    for key in data:
        if key.startswith("skip/grad/"):
            gradient = net.get_parameter(key.removeprefix("skip/grad/")).grad
            assert relative_error(gradient, data[key]) < tolerance, key
    scales, offsets = (torch.tensor(data[f"skip/patch_{name}"], dtype=dtype) for name in ("scales", "offsets"))
    patches = net.synthesize(ws, patch_scales=scales, patch_offsets=offsets, noise_mode="const")
    assert relative_error(patches.detach(), data["skip/img_train_patch"]) < tolerance


def small_network(low_precision=None, **options):
    torch.manual_seed(0)
    net = SynthesisNetwork(GeneratorConfig(w_dim=6, cbase=64, cmax=8, **options), 16, 3, low_precision=low_precision)
    for name, parameter in net.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    return net, torch.randn(2, net.num_ws, 6)


def test_number_of_styles_and_initial_values():
    assert SynthesisNetwork(GeneratorConfig(w_dim=4, cbase=512, cmax=4), 512, 96).num_ws == 16
    net = SynthesisNetwork(GeneratorConfig(w_dim=4, cbase=64, cmax=8), 16, 3)
    assert net.num_ws == 6
    state = net.state_dict()
    assert torch.equal(state["b8.conv0.affine.bias"], torch.ones(8))
    assert state["b8.conv1.noise_strength"] == 0
    assert not state["b16.torgb.bias"].any()


def test_same_seed_same_network():
    first, second = (small_network()[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_noise_modes():
    net, ws = small_network()
    none, const, again = (net(ws, net.noise_maps(2, mode)) for mode in ("none", "const", "const"))
    assert torch.equal(none, net(ws))
    assert torch.equal(const, again)
    assert not torch.equal(const, none)
    assert not torch.equal(*(net(ws, net.noise_maps(2, "random")) for _ in range(2)))
    draws = [net(ws, net.noise_maps(2, "random", torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_noise_has_a_map_for_every_layer_of_one_image_or_of_each():
    net, ws = small_network()
    maps = net.noise_maps(2, "const")
    assert list(maps) == ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"]
    assert all(maps[name] is net.get_buffer(f"{name}.noise_const") for name in maps)
    repeated = {name: noise.expand(2, 1, -1, -1) for name, noise in maps.items()}
    assert torch.equal(net(ws, repeated), net(ws, maps))


def test_without_noise_there_is_nothing_to_draw():
    net, _ = small_network(use_noise=False)
    assert not any("noise" in key for key in net.state_dict())
    assert net.noise_maps(2, "random") == {}


def test_bfloat16_is_close_and_returns_full_precision(monkeypatch):
    monkeypatch.setattr(native, "CPU_COMPUTES_BFLOAT16", True)
    net, ws = small_network(clamp_activations=True)
    exact = net(ws, net.noise_maps(2, "const"))
    low, _ = small_network(torch.bfloat16, clamp_activations=True)
    img = low(ws, low.noise_maps(2, "const"))
    assert img.dtype == torch.float32
    assert 0 < relative_error(img.detach(), exact.detach()) < 0.05


def test_path_length_needs_second_derivatives():
    net, ws = small_network()
    net.double()
    ws = ws.double().requires_grad_()
    torch.manual_seed(0)
    direction = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def jacobian_norm(ws):
        img = net(ws, net.noise_maps(2, "const"))
        return torch.autograd.grad((img * direction).sum(), ws, create_graph=True)[0].square().sum()

    gradient = torch.autograd.grad(jacobian_norm(ws), ws)[0]
    step = torch.randn_like(ws)
    with torch.enable_grad():
        numeric = (jacobian_norm(ws + 1e-6 * step) - jacobian_norm(ws - 1e-6 * step)) / 2e-6
    assert numeric.item() == pytest.approx((gradient * step).sum().item(), rel=1e-5)
