"""The discriminator: reference outputs, gradients and R1 double backward, grouping, freezing."""

import pytest
import torch
from torch.nn.functional import softplus

from tests.models.reference import load_reference
from threedgp.config.schema import CameraConditioningConfig, DiscriminatorConfig
from threedgp.models.discriminator import Discriminator, minibatch_std
from threedgp.ops import native

CAMERA = CameraConditioningConfig(enabled=True)
NETWORKS = {  # sizes and settings
    "": (
        {
            "img_resolution": 16,
            "img_channels": 4,
            "c_dim": 5,
            "start_blocks": 1,
            "patch_conditioning": True,
            "feature_dim": 12,
        },
        {"cbase": 512, "cmax": 16},
    ),
    "camcond/": (
        {"img_resolution": 16, "img_channels": 3, "patch_conditioning": True},
        {"hyper_mod": False, "camera_conditioning": CAMERA, "cbase": 256, "cmax": 8},
    ),
    "plain2d/": (
        {"img_resolution": 32, "img_channels": 3},
        {"hyper_mod": False, "mbstd_group_size": 3, "cbase": 256, "cmax": 8},
    ),
}
PREFIXES = list(NETWORKS)

# In float64 what remains is the reference's own float32 rounding, mostly of phases up to 1571 in the scalar encoder:
# there our float32 meets it more closely than our float64.
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-4)]
PLAIN_DTYPES = [(torch.float32, 3e-6), (torch.float64, 2e-6)]


@pytest.fixture
def data(golden):
    return golden("discriminator")


def close(actual, expected) -> float:
    """max|a−b| / max|b|; where the reference is exactly zero, so must we be."""
    expected = torch.tensor(expected).double()
    actual = torch.zeros_like(expected) if actual is None else actual.detach().double()
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def network(data, prefix, dtype, **changes):
    sizes, settings = NETWORKS[prefix]
    config = DiscriminatorConfig(**settings | changes)
    net = load_reference(Discriminator(config, **sizes), data, f"{prefix}param/", dtype)

    def inputs(name):
        return torch.tensor(data[prefix + name], dtype=dtype) if prefix + name in data else None

    return net, inputs("img"), [inputs(name) for name in ("c", "patch_scales", "patch_offsets", "camera_angles")]


def assert_gradients(net, data, prefix, tolerance):
    keys = [key for key in data if key.startswith(prefix) and "const_embed" not in key]
    assert keys
    for key in keys:
        assert close(net.get_parameter(key.removeprefix(prefix)).grad, data[key]) < tolerance, key


CASES = [(p, *case) for p in PREFIXES for case in (PLAIN_DTYPES if p == "plain2d/" else DTYPES)]


@pytest.mark.parametrize(("prefix", "dtype", "tolerance"), CASES)
def test_outputs_match_reference(data, prefix, dtype, tolerance):
    net, img, conditions = network(data, prefix, dtype)
    outputs = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
    logits = net(img, *conditions).logits
    assert close(logits, data[f"{prefix}logits"]) < tolerance
    for key in data:
        if key.startswith(f"{prefix}act/"):
            assert close(outputs[key.removeprefix(f"{prefix}act/")], data[key]) < tolerance, key


@pytest.mark.parametrize(("prefix", "dtype", "tolerance"), CASES)
def test_adversarial_gradients_match_reference(data, prefix, dtype, tolerance):
    net, img, conditions = network(data, prefix, dtype)
    softplus(-net(img, *conditions).logits).mean().backward()
    assert_gradients(net, data, f"{prefix}adv_grad/", tolerance)
    if not prefix:
        gradient = net.scalar_enc.const_embed.weight.grad
        rows = gradient.abs().sum(dim=1).nonzero()[:, 0]
        assert rows.tolist() == data["adv_grad/const_embed_rows"].tolist()
        assert close(gradient[rows], data["adv_grad/const_embed_values"]) < tolerance


@pytest.mark.parametrize(("prefix", "dtype", "tolerance"), CASES)
def test_r1_double_backward_matches_reference(data, prefix, dtype, tolerance):
    net, img, conditions = network(data, prefix, dtype)
    img.requires_grad_()
    (gradient,) = torch.autograd.grad(net(img, *conditions).logits.sum(), img, create_graph=True)
    penalty = gradient.square().sum(dim=[1, 2, 3])
    assert close(gradient, data[f"{prefix}r1/img_grad"]) < tolerance
    assert close(penalty, data[f"{prefix}r1/penalty"]) < tolerance
    penalty.mean().backward()
    assert_gradients(net, data, f"{prefix}r1/param_grad/", tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_feature_head_matches_reference(data, dtype, tolerance):
    net, img, conditions = network(data, "", dtype)
    features = net(img, *conditions, predict_features=True).features
    assert close(features, data["features"]) < tolerance
    distance = (features - torch.tensor(data["feat_target"], dtype=dtype)).norm(dim=1)
    assert close(distance, data["feat_dist"]) < tolerance
    distance.mean().backward()
    assert_gradients(net, data, "feat_grad/", tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_activation_clamp_matches_reference(data, dtype, tolerance):
    for clamp, key in ((True, "clamped/logits"), (False, "clamped/logits_without_clamp")):
        net, img, conditions = network(data, "", dtype, clamp_activations=clamp)
        assert close(net(img * data["clamped/img_gain"].item(), *conditions).logits, data[key]) < tolerance


@pytest.mark.parametrize(
    ("key", "group", "channels"),
    [("group4_f1", 4, 1), ("group3_f2", 3, 2), ("groupNone_f1", None, 1), ("group16_f1", 16, 1)],
)
def test_minibatch_deviation_matches_reference(data, key, group, channels):
    x = torch.tensor(data["mbstd/x"]).double()
    y = minibatch_std(x, group, channels)
    assert torch.equal(y[:, :6], x)
    assert close(y[:, 6:], data[f"mbstd/{key}"]) < 2e-7


def test_minibatch_groups_are_strided():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, 3)
    x[2] = x[0]  # with groups of 2 in a batch of 4, samples 0 and 2 belong together
    deviation = minibatch_std(x, 2)[:, 2, 0, 0]
    assert deviation[[0, 2]].tolist() == pytest.approx([1e-4, 1e-4])
    assert deviation[1] == deviation[3] > 0.1


def test_minibatch_deviation_of_indivisible_batch_is_refused():
    with pytest.raises(ValueError, match="batch of 6 cannot be split into groups of 4"):
        minibatch_std(torch.zeros(6, 1, 4, 4), 4)


def test_minibatch_deviation_derivatives():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: minibatch_std(x, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: minibatch_std(x, 2), x)


def small(resolution=8, settings=None, **options):
    config = DiscriminatorConfig(**{"cbase": 64, "cmax": 8, "hyper_mod": False} | (settings or {}))
    return Discriminator(config, resolution, 3, **options)


def test_only_the_first_block_sees_the_image():
    net = small(16, start_blocks=1)
    assert [name for name, _ in net.named_modules() if "fromrgb" in name] == ["b32.fromrgb"]
    assert all(parameter.requires_grad for parameter in net.parameters())
    net(torch.randn(4, 3, 16, 16)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("layers", [0, 1, 3, 6, 8])
def test_first_layers_can_be_frozen(layers):
    net = small(16, freeze_layers=layers)
    order = [f"b16.{name}" for name in ("fromrgb", "conv0", "conv1", "skip")]
    order += [f"b8.{name}" for name in ("fromrgb", "conv0", "conv1", "skip")]
    trained = {name.rsplit(".", 1)[0] for name, _ in net.named_parameters()}
    assert not trained & set(order[:layers])
    assert set(order[layers:]) - {"b8.fromrgb"} <= trained
    assert net.state_dict().keys() == small(16).state_dict().keys()


def test_camera_conditioning_works_alone():
    net = small(settings={"camera_conditioning": CAMERA}).eval()
    img = torch.randn(4, 3, 8, 8)
    logits = [net(img, camera_angles=torch.full((4, 3), angle)).logits for angle in (0.1, 1.0)]
    assert not torch.allclose(*logits)


def test_same_seed_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(small(patch_conditioning=True, settings={"hyper_mod": True}).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_bfloat16_is_close_and_logits_are_full_precision(monkeypatch):
    monkeypatch.setattr(native, "CPU_COMPUTES_BFLOAT16", True)  # slow where the processor has no instructions for it
    outputs = []
    for low_precision in (None, torch.bfloat16):
        torch.manual_seed(0)
        net = small(32, low_precision=low_precision)
        outputs.append(net(torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)).logits)
    assert outputs[1].dtype == torch.float32
    assert 0 < (outputs[0] - outputs[1]).abs().max() < 0.03


def test_missing_conditions_are_named():
    with pytest.raises(ValueError, match="needs patch scales and offsets"):
        small(patch_conditioning=True)(torch.zeros(4, 3, 8, 8))
    with pytest.raises(ValueError, match="without a feature head"):
        small()(torch.zeros(4, 3, 8, 8), predict_features=True)
    with pytest.raises(ValueError, match="needs camera angles"):
        small(settings={"camera_conditioning": CAMERA})(torch.zeros(4, 3, 8, 8))


def test_r1_agrees_with_finite_differences():
    torch.manual_seed(0)
    net = small(settings={"hyper_mod": True, "mbstd_group_size": 2}, patch_conditioning=True, c_dim=2).double()
    scales, offsets = torch.full((2, 2), 0.5).double(), torch.full((2, 2), 0.25).double()
    img, c = torch.randn(2, 3, 8, 8).double(), torch.eye(2).double()

    def penalty():
        x = img.clone().requires_grad_()
        logits = net(x, c, scales, offsets).logits
        return torch.autograd.grad(logits.sum(), x, create_graph=True)[0].square().sum()

    for name in ("b8.conv1.weight", "b8.conv1.affine.weight", "b4.conv.weight", "b4.out.weight"):
        parameter = net.get_parameter(name)
        (gradient,) = torch.autograd.grad(penalty(), parameter)
        step = 1e-6 * torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            parameter.data.add_(sign * step)
            values.append(penalty().item())
            parameter.data.sub_(sign * step)
        expected = (gradient * step).sum().item()
        assert (values[0] - values[1]) / 2 == pytest.approx(expected, rel=1e-4), name
