"""Batches of a training set, read ahead by processes of their own."""

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
