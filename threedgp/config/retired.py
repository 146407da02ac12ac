"""Settings of earlier versions: what they are called now, and which are gone. Old profiles and runs stay readable."""

from __future__ import annotations

import copy
import functools
import logging
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from threedgp.errors import ConfigError

RENAMED = {
    "training.val_every": "training.metric_ticks",
    "training.divergence.generator_loss_ticks": "training.divergence.patience",
    "training.divergence.diversity_every": "training.divergence.diversity_ticks",
}
"""Old key path -> new one of the same section, with the same meaning."""

CONVERTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model.generator.fp32_only": ("model.generator.clamp_activations", operator.not_),
    "model.discriminator.fp32_only": ("model.discriminator.clamp_activations", operator.not_),
    "model.generator.max_batch_res": ("model.generator.chunk_rays", lambda side: side**2),
}
"""Old key path -> new one of the same section, and the new value for an old one."""

_SPAN = "spans now follow from training.divergence.grace, a share of training.kimg"
_FIXED = "it has the value that suited all profiles"

RETIRED = {
    f"training.divergence.{name}": why
    for why, names in {
        _SPAN: ("grace_kimg", "settle_kimg", "step_back_kimg", "region_kimg", "calm_kimg"),
        "lowered learning rates stay lowered, or the run would diverge again": ("slow_kimg", "return_kimg"),
        "training.divergence.patience holds for all criteria": ("saturated_ticks", "logit_ticks"),
        "it is half of training.divergence.candidate_ticks": ("healthy_ticks",),
        _FIXED: (
            *("nonfinite_fraction", "saturated_sign", "saturated_loss", "logit_limit", "candidates"),
            *("diversity_factor", "diversity_readings", "metric_factor", "metric_margin"),
        ),
    }.items()
    for name in names
}
"""Key path of a setting that is ignored now -> why."""


def modernize(tree: Mapping[str, Any], *, note: bool = True) -> dict[str, Any]:
    """The settings under today's names; one note says which were renamed or are ignored."""
    found: list[str] = []
    result = _modernize(tree, "", found)
    if found and note:
        _note(f"Settings of an earlier version: {'; '.join(found)}.")
    return result


def _modernize(tree: Mapping[str, Any], prefix: str, found: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in RETIRED:
            found.append(f"{path} is ignored, {RETIRED[path]}")
        elif path in RENAMED:
            found.append(f"{path} is called {RENAMED[path]} now")
            result[RENAMED[path].rpartition(".")[2]] = value
        elif path in CONVERTED and isinstance(value, (bool, int)):
            name, convert = CONVERTED[path]
            found.append(f"{path}={value} is written {name}={convert(value)} now")
            result[name.rpartition(".")[2]] = convert(value)
        elif path == "loss.gamma" and value == "auto":
            result[key] = None
        else:
            result[key] = _modernize(value, f"{path}.", found) if isinstance(value, Mapping) else value
    return result


def current_name(path: str) -> str:
    """Today's name of a key path.

    Raises:
        ConfigError: it is ignored now.
    """
    if path in RETIRED:
        raise ConfigError(f"{path} is ignored: {RETIRED[path]}.")
    return RENAMED.get(path) or CONVERTED.get(path, (path,))[0]


def underive(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.yaml of earlier versions, which hold derived values as if they had been chosen: those that are
    what would be derived today become null again, so that they follow when the batch or a size is changed.
    """
    try:
        data, training = tree["data"], tree["training"]
        patch, size, batch = training["patch"], data["resolution"], training["batch_size"]
        if "val_every" not in training:  # written by this version
            return dict(tree)
        scale = patch["resolution"] / size if patch["enabled"] else 1.0
        derived = {
            ("loss", "gamma_fake"): tree["loss"]["gamma"],
            ("loss", "gamma"): 0.0002 * size**2 / batch,
            ("training", "ema", "kimg"): 0.3125 * batch,
            ("training", "patch", "min_scale"): scale,
            ("model", "discriminator", "additional_start_blocks"): round(-math.log2(scale)),
        }
        result = copy.deepcopy(dict(tree))
        for path, value in derived.items():
            *sections, key = path
            section = functools.reduce(operator.getitem, sections, result)
            if section[key] == value:
                section[key] = None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # damaged: what is wrong is said by validation
        return dict(tree)
    return result


@functools.cache
def _note(text: str) -> None:
    logging.getLogger("threedgp").warning("%s", text)
