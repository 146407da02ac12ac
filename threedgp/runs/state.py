"""The state of optimisers as named tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from threedgp.errors import CheckpointError

ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


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
        CheckpointError: an entry belongs to no parameter, has another shape than its parameter, or stands without the
            others that Adam keeps.
    """
    parameters = dict(module.named_parameters())
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in groups:
            raise CheckpointError(f"The checkpoint has optimiser state for {name}, which the network does not train.")
        if (
            key == "step" and value.numel() == 1
        ):  # Adam counts on the CPU unless it runs as one fused or graph-captured kernel
            group = groups[id(parameter)]
            on_device = group.get("fused") or group.get("capturable")
            value = value.to(parameter.device if on_device else "cpu", copy=True)
        elif key not in ADAM_STATE or value.shape != parameter.shape:
            raise CheckpointError(
                f"The checkpoint's optimiser state {entry} has shape {list(value.shape)}, the network's parameter "
                f"{list(parameter.shape)}. Use the run's own profile."
            )
        else:
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = value
    for name, parameter in parameters.items():
        missing = ADAM_STATE - optimizer.state.get(parameter, {}).keys()
        if missing and parameter in optimizer.state:
            raise CheckpointError(f"The checkpoint's optimiser state of {name} lacks {', '.join(sorted(missing))}.")
