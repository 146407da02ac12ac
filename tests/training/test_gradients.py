"""Parameters found once: the same as walking through the modules, and forgotten with the network."""

import gc
import weakref

import torch
from torch import nn

from threedgp.training.gradients import parameters_of, require_gradients


def test_they_are_the_parameters_of_the_network_and_stay_when_weights_are_loaded():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    found = parameters_of(network)
    network.load_state_dict({name: torch.ones_like(value) for name, value in network.state_dict().items()})
    for one, other in zip(found, network.parameters(), strict=True):
        assert one is other
    assert parameters_of(network) is found


def test_gradients_are_switched_for_all():
    network = nn.Linear(3, 4)
    for wanted in (False, True):
        require_gradients(network, wanted)
        assert all(parameter.requires_grad == wanted for parameter in network.parameters())


def test_a_network_is_not_kept_alive():
    network = nn.Linear(3, 4)
    parameters_of(network)
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None
