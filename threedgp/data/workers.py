"""Worker processes for the data stages: results stream, Ctrl-C ends quietly, clusters are one option away."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any, Literal, TypeVar

from threedgp.cores import available_cores
from threedgp.data.ahead import map_ahead
from threedgp.data.stage import plain_os_errors
from threedgp.errors import DataError, UsageError

Backend = Literal["loky", "dask", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")
POLL_SECONDS = 0.5
CLUSTER_CHUNK = 4096  # items sent to a cluster at a time: its backends return lists


def parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int | None = None,
    backend: Backend = "loky",
) -> Iterator[Result]:
    """Apply `function` to every item in worker processes and yield results as they come, in any order.

    Items and results stream: memory does not grow with their number. With one job everything happens in this
    process. The function and items must be picklable, the module of the function light to import, and paths
    absolute (workers outlive a call and keep the folder they started in).

    Ctrl-C, an error, or a consumer that stops early lets what is under way finish (about a second) and starts no
    more; a second Ctrl-C does not wait.

    Args:
        jobs: number of workers; None takes one a core (of the cluster for dask and ray).
        backend: `loky` (processes here), `dask` or `ray` (a cluster, when these are installed).

    Raises:
        DataError: the disk is full or cannot be written to, or a worker was killed.
        UsageError: the backend is unknown or not installed.
    """
    with plain_os_errors():
        if backend == "loky" and jobs == 1:
            yield from map(function, items)
        elif backend == "loky":
            yield from _local(function, items, jobs)
        else:
            yield from _remote(function, items, jobs, backend)


def _local(function: Callable[[Item], Result], items: Iterable[Item], jobs: int | None) -> Iterator[Result]:
    from multiprocessing import resource_tracker

    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = jobs or available_cores()
    if not shared_memory_serves(jobs):
        # Worker processes need a few pages of /dev/shm; threads need none, and pictures are decoded beside the lock.
        yield from map_ahead(function, items, jobs, 3 * jobs)
        return
    stop = threading.Event()
    calls = (delayed(_guarded)(function, item) for item in takewhile(lambda _: not stop.is_set(), items))
    pool = Parallel(
        n_jobs=jobs,
        return_as="generator_unordered",
        pre_dispatch="3*n_jobs",
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    try:
        with _interrupt_sets(stop) as interrupted:
            resource_tracker.ensure_running()  # starting later, it would unblock the signal again
            with _interrupts_blocked():  # workers inherit this: a Ctrl-C is for the parent to handle
                results = pool(calls)
            try:
                for result, error in results:
                    if error is not None:
                        raise error
                    yield result
            finally:
                stop.set()
                for _ in results:  # killing workers instead would leave temporary files and tracebacks behind
                    pass
            if interrupted():
                raise KeyboardInterrupt
    except TerminatedWorkerError:
        raise DataError(
            "A worker process was killed, most likely because memory ran out. "
            "Run the same command again with fewer jobs (-j 1); finished work is kept."
        ) from None


def shared_memory_serves(jobs: int) -> bool:
    """Whether there is room for the semaphores of a pool: containers may have hardly any shared memory."""
    try:
        return bool([multiprocessing.Lock() for _ in range(16 + 4 * jobs)])
    except OSError:
        return False


def _end_with(parent: int) -> None:
    """In a worker: end within a second of the parent, even if that was killed with kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _guarded(function: Callable[[Item], Result], item: Item) -> tuple[Result | None, OSError | None]:
    """A full disk is handed back as a value, so that the other workers can end in peace."""
    try:
        return function(item), None
    except OSError as error:
        return None, error


@contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C set `stop`, and the second raise as always; yields whether there was one."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remote(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int | None, backend: Backend
) -> Iterator[Result]:
    from joblib import Parallel, delayed

    with _cluster(backend):
        stream = iter(items)
        while chunk := list(islice(stream, CLUSTER_CHUNK)):
            yield from Parallel(n_jobs=jobs or -1)(delayed(function)(item) for item in chunk)


@contextmanager
def _cluster(backend: str) -> Iterator[None]:
    """joblib pointed at Dask or Ray; their own environment variables choose the cluster, a local one is the default."""
    from joblib import parallel_config

    try:
        if backend == "dask":
            from distributed import Client

            with Client(), parallel_config(backend="dask"):
                yield
        elif backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
            with parallel_config(backend="ray"):
                yield
        else:
            raise UsageError(f"There is no backend '{backend}'. Choose loky, dask or ray.")
    except ModuleNotFoundError as error:
        package = "dask distributed" if backend == "dask" else "ray"
        if error.name not in ("distributed", "dask", "ray"):
            raise
        raise UsageError(f"The backend '{backend}' is not installed. Install it with: pip install {package}") from None
