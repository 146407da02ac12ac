"""What the metrics need from several processes; a training or evaluation world fits as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from threedgp.errors import ThreeDGPError, recreate

T = TypeVar("T")


class Processes(Protocol):
    """This process's place among those that share one evaluation."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        ...

    def share(self, value: Any) -> Any:
        """The first process's value on every process."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        ...


class SingleProcess:
    """The only process there is."""

    rank = 0
    size = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def share(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]


SINGLE = SingleProcess()


def together(world: Processes, function: Callable[[], T]) -> T:
    """Run `function` on this process; if it fails with a `ThreeDGPError` on any, all raise one that says the same.

    Otherwise the healthy processes would wait for the failed one, or report a cut connection instead of the reason.
    """
    if world.size == 1:
        return function()
    value, problem = None, None
    try:
        value = function()
    except ThreeDGPError as error:
        problem = error
    told = world.gather(None if problem is None else [type(problem).__name__, str(problem)])
    if problem is not None:
        raise problem
    first = next((report for report in told if report is not None), None)
    if first is not None:
        raise recreate(*first)
    return value
