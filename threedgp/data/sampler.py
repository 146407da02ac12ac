"""The order in which training sees the data: infinite, the same for any number of processes, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class InfiniteSampler:
    """Yields, forever, the item indices that one process needs for each iteration.

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
