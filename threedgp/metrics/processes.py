"""What the metrics need from several processes; a training or evaluation world fits as it is."""

from __future__ import annotations

from typing import Any, Protocol

import torch


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
