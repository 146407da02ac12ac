"""In what order training sees its set, and its batches, read ahead by processes of their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch

from threedgp.data.dataset import Item, TrainingSet, collate
from threedgp.data.workers import shared_memory_serves
from threedgp.errors import DataError
from threedgp.launcher import end_with


class InfiniteSampler:
    """Yields, forever, the item indices that one process needs for each iteration; resumable anywhere.

    Every epoch is a fresh permutation drawn from (seed, stream, epoch); the position in it follows from the number of
    items consumed, so one integer restores it. Micro-batch j of an iteration holds the items j, j + K, j + 2K, ... of
    its batch (K micro-batches in all), and process r computes the micro-batches r, r + W, ...: the micro-batches, and
    with them the result, do not depend on the number of processes W.

    Args:
        length: items in the (mirrored) set.
        batch_size: items per iteration over all processes.
        micro_batch: items per micro-batch.
        rank, world_size: this process.
        position: items consumed so far by all processes.
        seed, stream: a new stream is a new order from the same seed (after a rollback).
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        seed: int = 0,
        stream: int = 0,
    ):
        self.length, self.batch_size, self.position = length, batch_size, position
        self.seed, self.stream = seed, stream
        count = batch_size // micro_batch
        order = np.arange(batch_size).reshape(micro_batch, count).T  # [micro-batches, micro_batch]
        self._mine = order[rank::world_size].reshape(-1)  # positions in the batch, micro-batch after micro-batch
        self._permutation: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        position = self.position
        while True:
            yield [self._item(position + int(offset)) for offset in self._mine]
            position += self.batch_size

    def _item(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if self._permutation is None or self._permutation[0] != epoch:
            generator = np.random.default_rng([self.seed, self.stream, epoch])
            self._permutation = epoch, generator.permutation(self.length)
        return int(self._permutation[1][offset])


def batches(
    dataset: TrainingSet, indices: Iterable[list[int]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Item]:
    """Batches of these items, in order.

    Worker processes send plain bytes through pipes: PyTorch's own way through shared memory hangs where a container has
    hardly any. What is wrong with a picture comes as the same error with and without them. They end with this process,
    even if that is killed, and so never hold on to what they inherited (the lock of a run).

    Args:
        indices: of the items of each batch.
        workers: processes; with 0 this one reads.
        pin_memory: put batches where a GPU can fetch them while it computes.

    Raises:
        DataError: a picture cannot be read, or the workers were killed or could not start.
    """
    if workers and not shared_memory_serves(workers):
        raise DataError(
            f"{workers} processes that read pictures cannot be started: /dev/shm is full. Give the container more "
            "of it (docker --shm-size=1g), or use training.workers=0."
        )
    try:
        loader = torch.utils.data.DataLoader(
            _Answering(dataset),
            batch_sampler=indices,
            collate_fn=_packed,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=partial(_begin_worker, os.getpid()),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch.open() if isinstance(batch, _Packed) else batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "A process that reads pictures was killed, most likely because memory or /dev/shm ran out. Use fewer with "
            "training.workers, or none: training.workers=0."
        ) from None


class _Answering(torch.utils.data.Dataset):
    """The same items, and errors as answers: raised in a worker they would arrive as the text of a traceback."""

    def __init__(self, dataset: TrainingSet):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Item | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


class _Packed:
    """A batch on its way between processes."""

    def __init__(self, batch: Item):
        self.fields: list[np.ndarray] = [field.numpy() for field in batch]

    def open(self) -> Item:
        return Item(*map(torch.from_numpy, self.fields))

    def pin_memory(self) -> Item:
        """What the loader's thread calls."""
        return Item(*[field.pin_memory() for field in self.open()])


def _packed(items: list[Item | DataError]) -> Item | DataError | _Packed:
    good = []
    for item in items:
        if isinstance(item, DataError):
            return item
        good.append(item)
    batch = collate(good)
    return batch if torch.utils.data.get_worker_info() is None else _Packed(batch)


def _begin_worker(parent: int, number: int) -> None:
    end_with(parent)
