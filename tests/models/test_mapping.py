"""The mapping network: reference values, running mean, truncation, conditions."""

import pytest
import torch

from tests.models.reference import load_reference
from tests.tools import relative_error
from threedgp.models.mapping import MappingNetwork


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 2e-6)])
@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("encoding", ["raw", "fourier"])
def test_camera_conditioning_matches_reference(golden, encoding, c_dim, dtype, tolerance):
    data, key = golden("layers"), f"mapping_cam_{encoding}_c{c_dim}/"
    net = MappingNetwork(6, c_dim, 8, 4, camera_encoding=encoding, mean_camera=[0.0] * 5).eval()
    load_reference(net, data, f"{key}param/", dtype)
    z, c, angles = (torch.tensor(data[key + name], dtype=dtype) for name in ("z", "c", "angles"))
    assert relative_error(net(z, c, angles).detach(), data[f"{key}ws"]) < tolerance
    assert relative_error(net(z, c).detach(), data[f"{key}ws_default_camera"]) < tolerance


@pytest.fixture
def generator_mapping(golden):
    data = golden("generator")
    z_dim, c_dim, w_dim = data["z"].shape[1], data["c"].shape[1], data["ws"].shape[2]
    stored = {key: value for key, value in data.items() if not key.endswith("mean_camera_params")}
    net = MappingNetwork(z_dim, c_dim, w_dim, data["num_ws"].item())
    load_reference(net, stored, "param/mapping.", torch.float64)
    return data, net, torch.tensor(data["z"]).double(), torch.tensor(data["c"]).double()


def test_truncation_matches_reference(generator_mapping):
    data, net, z, c = generator_mapping
    assert relative_error(net(z, c).detach(), data["ws"]) < 1e-6
    assert relative_error(net(z, c, truncation_psi=0.7).detach(), data["ws_trunc07"]) < 1e-6
    cut = net(z, c, truncation_psi=0.5, truncation_cutoff=3)
    assert relative_error(cut.detach(), data["ws_trunc05_cutoff3"]) < 1e-6


def test_running_mean_matches_reference_and_moves_only_on_request(generator_mapping):
    data, net, z, c = generator_mapping
    before = net.w_avg.clone()
    ws = net(z, c)
    assert torch.equal(net.w_avg, before)
    net.update_w_avg(ws[:, 0].mean(dim=0))
    assert relative_error(net.w_avg, data["w_avg_after_update"]) < 1e-6


def test_psi_zero_is_the_mean():
    net = MappingNetwork(4, 0, 6, 3)
    net.w_avg.normal_()
    assert torch.equal(net(torch.randn(2, 4), truncation_psi=0), net.w_avg.expand(2, 3, 6))


def test_without_latent_it_maps_the_condition():
    net = MappingNetwork(0, 5, 6)
    assert net(None, torch.randn(2, 5)).shape == (2, 6)
    assert "w_avg" not in net.state_dict()


def test_camera_dropout_acts_in_training_only_and_angles_are_needed_there():
    net = MappingNetwork(4, 0, 6, camera_encoding="raw", camera_dropout=0.5, mean_camera=[0.0] * 5)
    z, angles = torch.randn(64, 4), torch.ones(64, 3)
    torch.manual_seed(0)
    assert not torch.equal(net(z, None, angles), net(z, None, angles))
    with pytest.raises(ValueError, match="needs camera angles"):
        net(z)
    net.eval()
    assert torch.equal(net(z, None, angles), net(z, None, angles))


def test_derivatives():
    torch.manual_seed(0)
    net = MappingNetwork(3, 2, 4, 2, lr_multiplier=1.0).double()
    z, c = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(net, (z, c))
    assert torch.autograd.gradgradcheck(net, (z, c))
