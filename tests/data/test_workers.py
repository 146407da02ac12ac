"""Results stream from worker processes; full disks, kills and Ctrl-C end in a sentence."""

import errno
import operator
import os
import signal
import subprocess
import sys
import time

import joblib
import pytest

from threedgp.data import workers
from threedgp.data.workers import parallel
from threedgp.errors import DataError, UsageError


@pytest.mark.parametrize("jobs", [1, 2])
def test_parallel_streams_all_results(jobs):
    results = parallel(operator.neg, iter(range(100)), jobs=jobs)
    assert sorted(results) == list(range(-99, 1))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_comes_back_as_what_it_is(jobs):
    def fail_with(number):
        raise OSError(number, os.strerror(number), "/mnt/file.png")

    with pytest.raises(OSError, match=r"/mnt/file\.png") as caught:
        list(parallel(fail_with, [errno.ENOSPC] * 4, jobs=jobs))
    assert caught.value.errno == errno.ENOSPC


def test_a_killed_worker_is_a_sentence():
    with pytest.raises(DataError, match="worker process was killed"):
        list(parallel(os._exit, range(4), jobs=2))


def test_a_pool_of_joblib_in_the_same_process_is_left_alone():
    def doubled():
        return joblib.Parallel(n_jobs=2)(joblib.delayed(operator.mul)(number, 2) for number in range(3))

    assert list(parallel(operator.neg, range(3), jobs=2)) == [0, -1, -2]
    assert doubled() == [0, 2, 4]
    assert list(parallel(operator.neg, range(3), jobs=2)) == [0, -1, -2]


def test_missing_backends_say_what_to_install():
    with pytest.raises(UsageError, match="no backend 'cloud'"):
        list(parallel(operator.neg, [1], backend="cloud"))
    for backend, package in (("dask", "distributed"), ("ray", "ray")):
        try:
            __import__(package)
        except ModuleNotFoundError:
            with pytest.raises(UsageError, match=f"pip install .*{package}"):
                list(parallel(operator.neg, [1], backend=backend))
        else:
            assert list(parallel(operator.neg, [1, 2, 3], backend=backend)) == [-1, -2, -3]


def test_a_consumer_that_stops_early_is_heard(recwarn):
    started = []

    def items():
        for number in range(10_000):
            started.append(number)
            yield number

    for result in parallel(operator.neg, items(), jobs=2):
        if result == -3:
            break
    assert len(started) < 10_000
    assert sorted(parallel(operator.neg, range(4), jobs=2)) == [-3, -2, -1, 0]
    assert not recwarn.list


def test_interrupt_stops_between_items():
    def items():
        for number in range(1000):
            if number == 20:
                os.kill(os.getpid(), signal.SIGINT)
            yield number

    before = signal.getsignal(signal.SIGINT)
    results = []
    with pytest.raises(KeyboardInterrupt):
        results.extend(parallel(operator.neg, items(), jobs=2))
    assert signal.getsignal(signal.SIGINT) is before


def test_without_shared_memory_threads_do_the_work(monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workers.multiprocessing, "Lock", full)
    assert list(parallel(lambda number: (number, os.getpid()), range(20), jobs=2)) == [
        (number, os.getpid()) for number in range(20)
    ]


def test_workers_end_with_a_killed_parent():
    code = (
        "import os, signal, time\n"
        "from threedgp.data.workers import parallel\n"
        "for pid in parallel(lambda _: (time.sleep(0.2), os.getpid())[1], range(1000), jobs=2):\n"
        "    print(pid, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = {int(process.stdout.readline()) for _ in range(8)}
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.1)
    assert not [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
