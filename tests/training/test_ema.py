"""The moving average follows the published rule."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tools import relative_error
from threedgp.config.schema import EmaConfig
from threedgp.training.ema import ema_beta, update_ema


class Net(nn.Module):
    def __init__(self, weight, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight).clone())
        self.register_buffer("buffer", torch.as_tensor(buffer).clone())
        self.register_buffer("count", torch.tensor(3))


def test_average_equals_the_reference(golden):
    data = golden("ema")
    for row, after in zip(data["table"], data["param_ema_after"], strict=True):
        nimg, batch, kimg, rampup, start, beta = row.tolist()
        config = EmaConfig(kimg=kimg, rampup=None if rampup < 0 else rampup, start_kimg=start)
        assert ema_beta(int(nimg), int(batch), config) == pytest.approx(beta, abs=1e-12)
        average = Net(data["param_ema_before"], data["buffer_ema_before"])
        update_ema(average, Net(data["param_live"], data["buffer_live"]), beta)
        assert relative_error(average.weight.detach(), after) < 2e-7
        assert np.array_equal(average.buffer, data["buffer_live"])


def test_the_first_iteration_copies_the_network():
    average, network = Net([1.0, 2.0], [0.0]), Net([0.3, -7.1], [4.0])
    update_ema(average, network, ema_beta(0, 64, EmaConfig(kimg=20.0)))
    assert torch.equal(average.weight, network.weight)
    assert average.weight.requires_grad  # a parameter as before
    assert average.weight.data_ptr() != network.weight.data_ptr()


def test_networks_without_buffers_are_averaged_too():
    average, network = nn.Linear(2, 2), nn.Linear(2, 2)
    update_ema(average, network, 0.0)
    assert torch.equal(average.weight, network.weight)
