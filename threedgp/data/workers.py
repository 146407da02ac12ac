"""Work ahead of the consumer, in threads or in processes of their own: results stream, and Ctrl-C ends quietly."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain, count, islice
from typing import Literal, TypeVar

from threedgp.cores import available_cores
from threedgp.errors import DataError, UsageError
from threedgp.launcher import end_with

Backend = Literal["loky", "dask", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # items sent to a process at a time, once all processes have work
CLUSTER_CHUNK = 4096  # items sent to a cluster at a time: its backends return lists
IDLE_SECONDS = 300  # that processes wait for the next stage


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


def parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int | None = None,
    backend: Backend = "loky",
) -> Iterator[Result]:
    """Apply `function` to every item in worker processes and yield the results in order, as they come.

    Items and results stream: memory does not grow with their number. With one job everything happens in this
    process. The function and items must be picklable, the module of the function light to import, and paths
    absolute (workers outlive a call and keep the folder they started in).

    Ctrl-C, an error, or a consumer that stops early lets what is under way finish (about a second) and starts no more.

    Args:
        jobs: number of workers; None takes one a core (of the cluster for dask and ray).
        backend: `loky` (processes here), `dask` or `ray` (a cluster, when these are installed).

    Raises:
        DataError: a worker was killed.
        UsageError: the backend is unknown or not installed.
    """
    if backend != "loky":
        return _remote(function, items, jobs, backend)
    if jobs == 1:
        return map(function, items)
    jobs = jobs or available_cores()
    if not shared_memory_serves(jobs):
        # Worker processes need a few pages of /dev/shm; threads need none, and pictures are decoded beside the lock.
        return map_ahead(function, items, jobs, 3 * jobs)
    return _local(function, items, jobs)


@cache
def _pool(jobs: int, parent: int) -> Executor:
    """Workers that outlive a call. They are our own: joblib breaks when others use the pool that loky has for all."""
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(jobs, timeout=IDLE_SECONDS, initializer=end_with, initargs=(parent,))


def _local(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    from multiprocessing import resource_tracker

    from joblib.externals.loky.process_executor import TerminatedWorkerError

    pool = _pool(jobs, os.getpid())
    resource_tracker.ensure_running()  # starting later, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool.submit(int)  # starts the workers, who inherit that a Ctrl-C is for the parent to handle
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        pieces = map_in(pool, partial(_each, function), _chunks(items, 4 * jobs), 3 * jobs)
        yield from chain.from_iterable(pieces)
    except TerminatedWorkerError:
        _pool.cache_clear()  # it can't be used any more
        raise DataError(
            "A worker process was killed, most likely because memory ran out. "
            "Run the same command again with fewer jobs (-j 1); finished work is kept."
        ) from None


def _chunks(items: Iterable[Item], singles: int) -> Iterator[list[Item]]:
    """Single items first, so that all workers have work soon, then pieces, because each costs a message."""
    items = iter(items)
    for number in count():
        chunk = list(islice(items, 1 if number < singles else CHUNK))
        if not chunk:
            return
        yield chunk


def _each(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def shared_memory_serves(jobs: int) -> bool:
    """Whether there is room for the semaphores of a pool: containers may have hardly any shared memory."""
    try:
        return bool([multiprocessing.Lock() for _ in range(16 + 4 * jobs)])
    except OSError:
        return False


def _remote(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int | None, backend: str
) -> Iterator[Result]:
    """joblib on Dask or Ray; their own environment variables choose the cluster, a local one is the default."""
    from joblib import Parallel, delayed, parallel_config

    with ExitStack() as cluster:
        try:
            if backend == "dask":
                from distributed import Client

                cluster.enter_context(Client())
            elif backend == "ray":
                from ray.util.joblib import register_ray

                register_ray()
            else:
                raise UsageError(f"There is no backend '{backend}'. Choose loky, dask or ray.")
        except ModuleNotFoundError:
            package = {"dask": "dask distributed"}.get(backend, backend)
            raise UsageError(
                f"The backend '{backend}' is not installed. Install it with: pip install {package}"
            ) from None
        cluster.enter_context(parallel_config(backend=backend))
        stream = iter(items)
        while chunk := list(islice(stream, CLUSTER_CHUNK)):
            yield from Parallel(n_jobs=jobs or -1)(delayed(function)(item) for item in chunk)
