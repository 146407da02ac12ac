"""Several processes of one command on this machine, and how they find each other and those on other machines.

Processes on one machine meet in a file that only their user can read, and talk over the loopback interface: nothing
listens where a neighbour could reach it. Several machines meet at a key-value store that one of them keeps at the
address it was given; what stands in it is numbers and text, and nothing that comes from another machine is unpickled.
torchrun's own rendezvous listens on every address and unpickles its state, which is why it is not used here; processes
that torchrun itself started are understood all the same, see `place`.

A launching process stays outside the computation. When a worker fails it ends the others and says which one and why;
when it dies itself, however it dies, the workers die with it.
"""

from __future__ import annotations

import ctypes
import datetime
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from threedgp.cores import share_cores
from threedgp.errors import ThreeDGPError, UsageError

MEETING = "THREEDGP_MEETING"  # where processes meet: file:PATH or tcp:HOST:PORT; marks workers of this launcher
REPORT = "THREEDGP_REPORT"  # where a worker leaves the reason of its failure
TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL_SECONDS = 0.1
GRACE_SECONDS = 3.0  # for the others to say what they noticed, once one has failed
END_SECONDS = 10.0  # for a worker to end when it is told to
MEET_MINUTES = 10.0
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


class Place(NamedTuple):
    """This process among those that share a command: its number, how many there are, and its number here."""

    rank: int
    size: int
    local_rank: int


def place() -> Place:
    """What the environment says about this process.

    Only complete marks count, of this launcher or of torchrun: a lone WORLD_SIZE is somebody else's, as on Kubernetes.
    """
    environment = os.environ
    if MEETING in environment or all(name in environment for name in TORCHRUN):
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"]))
    return Place(0, 1, 0)


@dataclass(frozen=True)
class Failure:
    """A worker that ended badly: its rank, pid, exit code (negative: the signal), and the report it left, if any."""

    rank: int
    pid: int
    exitcode: int
    report: Mapping[str, Any] = field(default_factory=dict)

    def blame(self) -> tuple[int, float]:
        """Sort key: the process that caused the others to fail comes first."""
        kind = self.report.get("kind")
        if kind == "error":
            order = 0
        elif self.exitcode == -signal.SIGTERM or kind == "contact":
            order = 2  # ended by the launcher, or left alone by the one that failed
        else:
            order = 1
        return order, float(self.report.get("timestamp", 0.0))


class WorkersFailed(Exception):
    """Some workers failed; the one to blame first."""

    def __init__(self, failures: Sequence[Failure]):
        self.failures = sorted(failures, key=Failure.blame)
        super().__init__(f"process {self.failures[0].rank} failed")


class NoMeeting(ThreeDGPError):
    """The machines did not find each other."""


def launch(
    command: Sequence[str],
    processes: int,
    *,
    nodes: int = 1,
    rendezvous: str | None = None,
    output: IO[Any] | None = None,
) -> Iterator[None]:
    """Run `command` in several processes on this machine, one part of `nodes` times as many; ends when they have.

    Yields again and again meanwhile, so that the caller can look after its own things; whoever stops asking ends them.
    Workers are in sessions of their own: Ctrl-C reaches this process only.

    Args:
        command: of every worker.
        rendezvous: HOST:PORT of one of the machines, when there are several.
        output: where standard output and errors of the workers go; None: where this process's go.

    Raises:
        WorkersFailed: some failed, and the others have been ended.
        NoMeeting: the other machines did not come.
        UsageError: the rendezvous is no HOST:PORT.
    """
    with tempfile.TemporaryDirectory(prefix="3dgp-", ignore_cleanup_errors=True) as folder:
        if nodes == 1:
            yield from _run(command, processes, Path(folder), f"file:{folder}/meeting", 0, processes, output)
            return
        meeting = _Meeting(nodes, rendezvous or "")
        try:
            while not meeting.complete():
                yield
                time.sleep(POLL_SECONDS)
            first = meeting.machine * processes
            yield from _run(command, processes, Path(folder), f"tcp:{rendezvous}", first, nodes * processes, output)
        finally:
            meeting.leave()


def _run(
    command: Sequence[str], processes: int, folder: Path, meeting: str, first: int, size: int, output: IO[Any] | None
) -> Iterator[None]:
    common = {MEETING: meeting, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(share_cores(processes))}
    common |= {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    if meeting.startswith("file:"):
        common |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for local in range(processes):
            own = {"RANK": str(first + local), "LOCAL_RANK": str(local), REPORT: str(folder / f"report-{local}.json")}
            workers.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **common, **own},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=partial(end_with, os.getpid()),
                )
            )
        failed_at = None
        while any(worker.poll() is None for worker in workers):
            yield
            if failed_at is None and any(worker.poll() for worker in workers):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() > failed_at + GRACE_SECONDS:
                break
            time.sleep(POLL_SECONDS)
    finally:
        _end(workers)
    failures = [
        Failure(first + local, worker.pid, worker.returncode, _report_in(folder / f"report-{local}.json"))
        for local, worker in enumerate(workers)
        if worker.returncode != 0
    ]
    if failures:
        raise WorkersFailed(failures)


def _report_in(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or half of one
        return {}


def _end(workers: Sequence[subprocess.Popen]) -> None:
    """Ask those that still run to end, then make them."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + END_SECONDS
    for worker in workers:
        try:
            worker.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def end_with(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """For a child's first line: get this signal at once when the parent ends, even by kill -9 (Linux)."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:  # it died before it could be asked about
            os._exit(1)


# ---------------------------------------------------------------------------------------------------- several machines


class _Meeting:
    """Several machines that meet at a store, which one of them keeps.

    Attributes:
        machine: this one's number.
    """

    def __init__(self, machines: int, rendezvous: str):
        from torch.distributed import TCPStore

        host, separator, port = rendezvous.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise UsageError(f"--rendezvous must be HOST:PORT of one of the machines, not '{rendezvous}'.")
        self.machines, self.rendezvous = machines, rendezvous
        self.deadline = time.monotonic() + 60 * MEET_MINUTES
        listener = _listen(host, int(port))
        self.keeps = listener is not None
        options: dict[str, Any] = {
            "timeout": datetime.timedelta(minutes=MEET_MINUTES),
            "wait_for_workers": False,
            "is_master": self.keeps,
        }
        if listener is not None:
            # The store listens on a socket of ours: on its own it would listen on every address.
            options |= {"master_listen_fd": listener.detach(), "use_libuv": False}
        try:
            self.store = TCPStore(host, int(port), **options)
            self.machine = self.store.add("machines", 1) - 1
        except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            raise NoMeeting(f"{rendezvous} cannot be reached ({str(error).splitlines()[0][:200]}).") from None
        if self.machine >= machines:
            raise NoMeeting(f"{rendezvous} is in use by another start of {machines} machines. Choose another port.")

    def complete(self) -> bool:
        """Whether all machines are here. Raises `NoMeeting` when they have not come in time."""
        try:
            here = self.store.add("machines", 0)
        except RuntimeError as error:
            raise NoMeeting(f"{self.rendezvous} was left ({str(error).splitlines()[0][:200]}).") from None
        if here < self.machines and time.monotonic() > self.deadline:
            raise NoMeeting(f"{here} of {self.machines} machines came to {self.rendezvous}.")
        return here >= self.machines

    def leave(self) -> None:
        """Whoever keeps the store stays until the others have read what they need, but not for ever."""
        try:
            self.store.add("done", 1)
            deadline = time.monotonic() + END_SECONDS
            while self.keeps and self.store.add("done", 0) < self.machines and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # the machine that keeps it has gone, and its error says why
            return


def _listen(host: str, port: int) -> socket.socket | None:
    """A socket that listens at this address alone, if it is this machine's and free; else None.

    A machine's own name often stands for 127.0.1.1, where others could not reach it; its address in the network is
    taken then.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NoMeeting(f"The name {host} of --rendezvous is not known here ({error.strerror}).") from None
    family, _, _, _, address = found[0]
    if str(address[0]).startswith("127.") and host not in ("localhost", address[0]):
        if host not in (socket.gethostname(), socket.getfqdn()):
            return None
        family, address = socket.AF_INET, (_network_address(), port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return None  # another machine's, or kept by another process of this one
        raise NoMeeting(f"{host}:{port} cannot be listened at ({error.strerror}). Choose another port.") from None
    return listener


def _network_address() -> str:
    """This machine's address towards the network. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


# --------------------------------------------------------------------------------------------------------- in a worker


def report_failure(error: BaseException) -> None:
    """Leave the reason of this worker's failure where the launcher finds it; print nothing."""
    path = os.environ.get(REPORT)
    if path is None:
        return
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" (in {os.path.basename(last[0].filename)}, line {last[0].lineno})" if last else ""
    known = isinstance(error, ThreeDGPError)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    alone = "DistError" in kinds or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    first = (str(error).strip().splitlines() or ["no message"])[0]
    report = {
        "timestamp": time.time(),
        "kind": "error" if known else "contact" if alone else "crash",
        "text": str(error) if known else f"{type(error).__name__}: {first}{where}.",
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file)
