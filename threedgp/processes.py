"""One process among several: who am I, and the few collective operations that training and scores need.

Works in the processes that `threedgp.launcher` starts, in torchrun's (NCCL on GPUs, gloo on CPUs) and, unchanged, in a
single process. Values go from process to process as JSON, never as pickles.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from threedgp.errors import ThreeDGPError, UsageError, recreate
from threedgp.launcher import MEETING, place

TIMEOUT = datetime.timedelta(minutes=30)  # metrics on rank 0 may keep the others waiting


@dataclass(frozen=True)
class World:
    """This process's place among all of them.

    Attributes:
        rank: 0 .. size-1 over all machines; rank 0 writes files.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mean over all processes, in place."""
        return self.sum(tensor).div_(self.size)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite every tensor with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def share(self, value: Any) -> Any:
        """Rank 0's small value on every process, as JSON brings it: numbers, strings, lists, dicts with string keys."""
        return self.gather(value if self.is_main else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's small value, by rank, as JSON brings it."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        texts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in zip(texts, lengths, strict=True)]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """True everywhere if true anywhere."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag))).item())  # on the CPU: nobody waits for a GPU

    def require_equal(self, tensors: dict[str, torch.Tensor]) -> None:
        """Check that all processes hold the same bytes.

        Raises:
            ThreeDGPError: names the first tensor that differs.
        """
        if self.size == 1:
            return
        sums = torch.stack([_fingerprint(tensor) for tensor in tensors.values()])  # [tensors]
        low, high = sums.clone(), sums.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        for name, smallest, largest in zip(tensors, low.tolist(), high.tolist(), strict=True):
            if smallest != largest:
                raise ThreeDGPError(
                    f"The processes disagree about {name}: their copies of the networks have drifted apart. "
                    "Resume from the last checkpoint; if it happens again, one machine computes wrongly."
                )


SINGLE = World(0, 1, torch.device("cpu"))
T = TypeVar("T")


def together(world: World, function: Callable[[], T]) -> T:
    """Run `function` on this process; if it fails with a `ThreeDGPError` on any, all raise one that says the same.

    Otherwise the healthy processes would wait for the failed one, or report a cut connection instead of the reason.
    """
    problem = None
    try:
        value = function()
    except ThreeDGPError as error:
        problem = error
    told = world.gather(None if problem is None else [type(problem).__name__, str(problem)])
    if problem is not None:
        raise problem
    for report in told:
        if report is not None:
            raise recreate(*report)
    return value


def _fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """A position-dependent 64-bit sum of the raw bytes."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).long()
    weights = torch.arange(1, len(data) + 1, device=data.device) % 65521
    return (data * weights).sum()


def _store(size: int) -> dist.Store | None:
    """Where the processes exchange their addresses; None: where torchrun's environment says."""
    kind, _, where = os.environ.get(MEETING, "").partition(":")
    if kind == "file":
        return dist.FileStore(where, size)
    if kind == "tcp":
        host, _, port = where.rpartition(":")
        store = dist.TCPStore(host, int(port), is_master=False, timeout=TIMEOUT)
        return dist.PrefixStore("training", store)
    return None


def choose_device(name: str | None = None) -> torch.device:
    """The device asked for, else a GPU if PyTorch finds one; a numbered GPU becomes the one this process computes on.

    Raises:
        UsageError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name}: there is no such device here. Use cpu, cuda or cuda:NUMBER.") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and streams that name no device go there, too
    return device


@contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that were started together (or be the only one) and leave at the end; yields a `World`.

    Args:
        device: `cpu` or `cuda`; default: cuda where there is one.

    Raises:
        UsageError: more processes on this machine than GPUs, or no GPU although cuda was asked for.
    """
    rank, size, local_rank = place()
    kind = device or choose_device().type
    if kind == "cuda":
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UsageError(f"Process {local_rank} of this machine finds only {count} GPUs. Start fewer with --gpus.")
        torch.cuda.set_device(local_rank)
    world = World(rank, size, torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu"))
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(size), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield world
    finally:
        if size > 1 and dist.is_initialized():
            dist.destroy_process_group()
