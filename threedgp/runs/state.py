"""Optimisers and random generators as named tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import numpy as np
import torch

from threedgp.errors import CheckpointError


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser's state as `<parameter name>/<key>` -> tensor, for example `mapping.fc0.weight/exp_avg`.

    Settings (learning rate, betas) are not part of it: they follow from the profile and the schedules.
    """
    result = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            result[f"{name}/{key}"] = torch.as_tensor(value)
    return result


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned, each tensor on the device where the optimiser expects it.

    Raises:
        CheckpointError: an entry belongs to no parameter, or has another shape than its parameter.
    """
    parameters = dict(module.named_parameters())
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in groups:
            raise CheckpointError(f"The checkpoint has optimiser state for {name}, which the network does not train.")
        if key == "step":  # Adam counts on the CPU unless it runs as one fused or graph-captured kernel
            group = groups[id(parameter)]
            on_device = group.get("fused") or group.get("capturable")
            value = value.to(parameter.device if on_device else "cpu", copy=True)
        elif value.shape != parameter.shape:
            raise CheckpointError(
                f"The checkpoint's optimiser state {entry} has shape {list(value.shape)}, the network's parameter "
                f"{list(parameter.shape)}. Use the run's own profile."
            )
        else:
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = value


def rng_tensors() -> dict[str, torch.Tensor]:
    """State of the global generators of torch (CPU, and the current GPU if CUDA is in use), numpy and Python: uint8."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": _json_bytes(numpy_state),
        "python": _json_bytes(random.getstate()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def load_rng_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `rng_tensors` returned; a CUDA state is left out where there is no GPU."""
    torch.set_rng_state(tensors["torch"].cpu())
    numpy_state = json.loads(tensors["numpy"].cpu().numpy().tobytes())
    numpy_state["state"]["key"] = np.asarray(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    version, internal, gauss = json.loads(tensors["python"].cpu().numpy().tobytes())
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"].cpu())


def _json_bytes(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
