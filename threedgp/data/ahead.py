"""Work ahead of the consumer, in order and in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int, window: int) -> Iterator[Result]:
    """Like `map`, but `workers` threads run up to `window` items ahead of the consumer.

    Results come in the order of the items; an exception comes where its result would. Decoding, encoding and file
    access release Python's lock, so threads keep a network or a disk busy without copying pictures between processes.
    """
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        yield from map_in(pool, function, items, window)


def map_in(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], window: int) -> Iterator[Result]:
    """`map_ahead` in the threads or processes of a pool.

    However it ends, what is under way is waited for, and what has not begun never does.
    """
    items = iter(items)
    pending: deque[Future[Result]] = deque()
    try:
        pending.extend(pool.submit(function, item) for item in islice(items, max(window, 1)))
        while pending:
            result = pending[0].result()
            pending.popleft()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
