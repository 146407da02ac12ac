"""Settings of earlier versions: what they are called now, and which are gone. Old profiles and runs stay readable."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

RENAMED = {
    "training.divergence.generator_loss_ticks": "training.divergence.patience",
    "training.divergence.diversity_every": "training.divergence.diversity_ticks",
}
"""Old key path -> new one of the same section, with the same meaning."""

_SPAN = "spans now follow from training.divergence.grace, a share of training.kimg"
_FIXED = "it has the value that suited all profiles"

RETIRED = {
    **{
        f"training.divergence.{name}": _SPAN
        for name in ("grace_kimg", "settle_kimg", "step_back_kimg", "region_kimg", "calm_kimg")
    },
    **{
        f"training.divergence.{name}": "lowered learning rates stay lowered, or the run would diverge again"
        for name in ("slow_kimg", "return_kimg")
    },
    **{
        f"training.divergence.{name}": "training.divergence.patience holds for all criteria"
        for name in ("saturated_ticks", "logit_ticks")
    },
    "training.divergence.healthy_ticks": "it is half of training.divergence.candidate_ticks",
    **{
        f"training.divergence.{name}": _FIXED
        for name in (
            "nonfinite_fraction",
            "saturated_sign",
            "saturated_loss",
            "logit_limit",
            "diversity_factor",
            "diversity_readings",
            "metric_factor",
            "metric_margin",
            "candidates",
        )
    },
}
"""Key path of a setting that is ignored now -> why."""


def modernize(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under today's names; one note says which were renamed or are ignored."""
    found: list[str] = []
    result = _modernize(tree, "", found)
    if found:
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
            result.setdefault(RENAMED[path].rpartition(".")[2], value)
        else:
            result[key] = _modernize(value, f"{path}.", found) if isinstance(value, Mapping) else value
    return result


@functools.cache
def _note(text: str) -> None:
    logging.getLogger("threedgp").warning("%s", text)
