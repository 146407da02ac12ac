"""The data order is a permutation per epoch, independent of the number of processes, and restartable anywhere."""

from __future__ import annotations

from itertools import islice

import pytest

from threedgp.data.sampler import InfiniteSampler


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
