"""Work ahead of the consumer with threads, in order and in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int, window: int) -> Iterator[Result]:
    """Like `map`, but `workers` threads run up to `window` items ahead of the consumer.

    Results come in the order of the items; an exception comes where its result would. Decoding, encoding and file
    access release Python's lock, so threads keep a network or a disk busy without copying pictures between processes.
    """
    items = iter(items)
    pool = ThreadPoolExecutor(max_workers=max(workers, 1))
    try:
        pending: deque[Future] = deque(pool.submit(function, item) for item in islice(items, max(window, 1)))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
