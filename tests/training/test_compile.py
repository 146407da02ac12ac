"""Compiled networks train as plain ones do: one graph each, first derivatives only."""

import pytest
import torch

from tests.tools import relative_error
from tests.training.small import make_draws, make_real, tiny_profile
from threedgp.ops import native
from threedgp.processes import World
from threedgp.training.phases import Setup, phases, set_trainable
from threedgp.training.schedules import schedule_values
from threedgp.training.state import TrainingState


def gradients_of_all_phases(profile) -> dict[str, torch.Tensor]:
    """Gradients of the first micro-batch of every phase, by phase and parameter."""
    state = TrainingState.build(profile, World(0, 1, torch.device("cpu")))
    setup = Setup(profile, state.G, state.D, schedule_values(0, profile), state.path_length_mean)
    found = {}
    with native.plain():
        for phase in phases(profile):
            network = state.networks[phase.network]
            network.zero_grad()
            set_trainable(setup, phase.network)
            phase.run(setup, make_real(profile), make_draws(profile, phase.name), 1.0)
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    found[f"{phase.name}/{name}"] = parameter.grad.clone()
    return found


@pytest.mark.slow  # dynamo alone takes half a minute to wake up
@pytest.mark.parametrize("adversarial", ["non_saturating", "relativistic"])
def test_gradients_are_those_of_the_plain_networks(monkeypatch, adversarial):
    compile_module = torch.nn.Module.compile
    compiled = []

    def compile_quickly(self, **options):
        compiled.append(type(self).__name__)
        compile_module(self, backend="aot_eager", fullgraph=True, **options)  # derives graphs, writes no C++

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    settings = (f"loss.adversarial={adversarial}", "loss.gamma=0.5")
    plain = gradients_of_all_phases(tiny_profile(*settings))
    assert compiled == []
    fast = gradients_of_all_phases(tiny_profile(*settings, "compile=true"))
    assert compiled == ["Discriminator", "SynthesisNetwork"]
    assert plain.keys() == fast.keys()
    assert {name.split("/")[0] for name in fast} == {"Gmain", "Dmain", "Dreg"}
    for name, value in plain.items():
        assert relative_error(fast[name], value) < 1e-5, name


def test_a_generator_with_path_length_penalty_is_differentiated_twice(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    TrainingState.build(tiny_profile("compile=true", "loss.path_length.weight=2.0"), World(0, 1, torch.device("cpu")))
    assert compiled == ["Discriminator"]
