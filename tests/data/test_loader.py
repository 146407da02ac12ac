"""Order and batches are the same for any number of processes and workers, and so are errors.

Workers end with whoever started them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from threedgp.data import loader
from threedgp.data.dataset import Item
from threedgp.data.loader import InfiniteSampler, batches
from threedgp.errors import DataError

INDICES = [[0, 2], [1, 3]]


class Numbers(torch.utils.data.Dataset):
    """Items that are told apart by their numbers."""

    def __init__(self, broken: int | None = None):
        self.broken = broken

    def __getitem__(self, index: int) -> Item:
        if index == self.broken:
            raise DataError(f"picture {index} is cut off.")
        image = torch.full((3, 2, 2), index, dtype=torch.uint8)
        depth = torch.full((1, 1, 1), 60000 + index, dtype=torch.int32)
        return Item(image, depth, torch.ones(2), torch.zeros(3), torch.zeros(0), torch.tensor(index))


def test_workers_change_no_batch():
    here, there = list(batches(Numbers(), INDICES)), list(batches(Numbers(), INDICES, workers=2))
    assert [batch.index.tolist() for batch in here] == INDICES
    for one, other in zip(here, there, strict=True):
        for field, same in zip(one, other, strict=True):
            assert field.dtype == same.dtype
            assert torch.equal(field, same)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_one_sentence(workers):
    stream = batches(Numbers(broken=3), INDICES, workers=workers)
    assert next(stream).index.tolist() == [0, 2]
    with pytest.raises(DataError) as caught:
        next(stream)
    assert str(caught.value) == "picture 3 is cut off."


def test_full_shared_memory_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(loader, "shared_memory_serves", lambda workers: False)
    with pytest.raises(DataError, match=r"/dev/shm is full.*training\.workers=0"):
        next(batches(Numbers(), INDICES, workers=2))
    assert next(batches(Numbers(), INDICES)).index.tolist() == [0, 2]


def test_a_killed_worker_is_told():
    endless = ([0] for _ in iter(int, 1))
    others = set(multiprocessing.active_children())  # of other tests, where several run in one process
    stream = batches(Numbers(), endless, workers=1)
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed"):
        list(stream)


def _read_until_killed(numbers) -> None:
    stream = batches(Numbers(), INDICES * 50, workers=2)
    next(stream)
    for worker in multiprocessing.active_children():
        numbers.put(worker.pid)
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the parent's death is announced on Linux only")
def test_workers_die_with_a_killed_parent():
    context = multiprocessing.get_context("fork")
    numbers = context.Queue()
    process = context.Process(target=_read_until_killed, args=(numbers,))
    process.start()
    workers = [numbers.get(timeout=60) for _ in range(2)]
    process.kill()
    process.join()
    deadline = time.monotonic() + 4  # PyTorch's own watch takes five seconds
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie that nobody has fetched."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stream(iterations, **kwargs):
    return list(islice(InfiniteSampler(10, batch_size=8, micro_batch=2, **kwargs), iterations))


def test_every_epoch_shows_every_item_once():
    flat = [item for batch in islice(InfiniteSampler(10, batch_size=5, micro_batch=5), 6) for item in batch]
    epochs = [flat[begin : begin + 10] for begin in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_micro_batches(world_size):
    def micro_batches(batch):
        return [tuple(batch[begin : begin + 2]) for begin in range(0, len(batch), 2)]

    alone = stream(6)
    ranks = [stream(6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for iteration, batch in enumerate(alone):
        together = [None] * 4
        for rank in range(world_size):
            together[rank::world_size] = micro_batches(ranks[rank][iteration])
        assert together == micro_batches(batch)


def test_position_restores_the_stream():
    assert stream(3, position=4 * 8) == stream(7)[4:]


def test_seed_and_stream_change_the_order():
    assert stream(2) == stream(2)
    assert stream(2) != stream(2, seed=1)
    assert stream(2) != stream(2, stream=1)
