"""The second discriminator: fixed eyes, normalised heads, and nothing in checkpoints that does not learn."""

import pytest
import timm
import torch

from tests.tools import relative_error
from threedgp.config.schema import FeatureDiscriminatorConfig
from threedgp.errors import UsageError
from threedgp.models.feature_discriminator import FeatureDiscriminator, SpectralConv
from threedgp.pretrained.embedder import build_backbone


def build(c_dim=4, seed=0):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    torch.manual_seed(seed)
    config = FeatureDiscriminatorConfig(stages=[1, 3], input_size=32, channels=8, width=8)
    return FeatureDiscriminator(config, network, mean=(0.5,) * 3, std=(0.25,) * 3, c_dim=c_dim)


def images(count=3, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shape", [(5, 3, 3), (1, 8, 1), (64, 64, 3)])
def test_kernels_have_spectral_norm_one(shape):
    torch.manual_seed(3)
    conv = SpectralConv(shape[1], shape[0], shape[2])
    seen = conv(torch.eye(shape[1] * shape[2] ** 2).unflatten(1, (shape[1], shape[2], shape[2])))
    middle = seen[:, :, shape[2] // 2, shape[2] // 2].t()  # the kernel as a matrix, applied to every unit vector
    assert abs(torch.linalg.matrix_norm(middle.double(), 2) - 1) < 1e-3


def test_the_norm_takes_part_in_the_gradient():
    conv = SpectralConv(3, 4, 3).double()
    weight = conv.weight.detach().clone().requires_grad_(True)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    conv(x).square().sum().backward()
    norm = torch.linalg.matrix_norm(weight.flatten(1), 2)
    torch.nn.functional.conv2d(x, weight / norm, conv.bias, padding=1).square().sum().backward()
    assert relative_error(conv.weight.grad, weight.grad) < 1e-4


def test_each_stage_gives_a_logit_and_all_of_them_reach_the_image():
    network = build()
    x = images().requires_grad_(True)
    logits = network(x, torch.eye(4)[:3])
    assert logits.shape == (3, 2)
    for stage in range(2):
        (gradient,) = torch.autograd.grad(logits[:, stage].sum(), x, retain_graph=True)
        assert gradient.flatten(1).abs().amax(dim=1).min() > 0


def test_only_heads_learn_and_enter_checkpoints():
    network = build()
    names = {name.split(".")[0] for name in network.state_dict()}
    assert names == {name.split(".")[0] for name, _ in network.named_parameters()} == {"heads"}
    assert not any(p.requires_grad for p in network.network.parameters())
    assert not network.train().network.training


def test_the_mixing_is_the_same_in_every_process_and_the_heads_follow_from_the_seed():
    first, second, other = build(seed=1), build(seed=1), build(seed=2)
    for name, buffer in first.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name])
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_classes_enter_by_projection_and_are_optional():
    network = build()
    x = images(1)
    assert not torch.equal(network(x, torch.eye(4)[:1]), network(x, torch.eye(4)[1:2]))
    assert build(c_dim=0)(x, torch.zeros(1, 0)).shape == (1, 2)


def test_images_of_any_size_are_resized_and_normalised():
    network = build()
    seen = []
    network.network.conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.full((1, 3, 64, 64), 0.5), torch.eye(4)[:1])
    assert seen[0].shape == (1, 3, 32, 32)
    assert torch.equal(seen[0], torch.full((1, 3, 32, 32), 1.0))  # 0.5 is 0.75 in [0, 1]: (0.75 − 0.5) / 0.25


def test_the_offline_network_comes_with_its_weights_and_without_them_where_only_shapes_count():
    network, mean, std = build_backbone("tf_efficientnet_lite0")
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    eyes = FeatureDiscriminator(FeatureDiscriminatorConfig(), network, mean=mean, std=std)
    assert eyes(images(), torch.zeros(3, 0)).shape == (3, 4)
    with torch.device("meta"):
        network, mean, std = build_backbone("resnet50")  # whose weights nobody has here
        shapes = FeatureDiscriminator(FeatureDiscriminatorConfig(stages=[1, 2]), network, mean=mean, std=std)
    assert next(shapes.parameters()).is_meta


def test_an_unknown_network_is_refused():
    with pytest.raises(UsageError, match="no feature extractor 'efficientnet_b99'"):
        build_backbone("efficientnet_b99")
