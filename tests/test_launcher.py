"""Several processes start, fail and end together, and nobody outside this machine can reach them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from threedgp.errors import DataError, UsageError
from threedgp.launcher import MEETING, REPORT, Place, WorkersFailed, _listen, launch, place, report_failure

QUIET = subprocess.DEVNULL


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_only_complete_marks_make_a_worker(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", MEETING):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 1, 0)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(0, 1, 0)
    monkeypatch.setenv(MEETING, "file:x")
    assert place() == Place(3, 4, 1)
    monkeypatch.delenv(MEETING)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert place() == Place(3, 4, 1)


def test_workers_know_who_they_are(tmp_path):
    code = f"import os; open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    for _ in launch(python(code), 3):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_when_one_fails_the_others_are_ended_and_the_culprit_is_named():
    code = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else sys.exit(7)"
    began = time.monotonic()
    with pytest.raises(WorkersFailed) as caught:
        list(launch(python(code), 2))
    assert time.monotonic() - began < 20
    assert [(failure.rank, failure.exitcode) for failure in caught.value.failures] == [(1, 7), (0, -signal.SIGTERM)]


def test_the_reason_of_a_failure_is_told(tmp_path, monkeypatch):
    code = (
        "from threedgp.errors import DataError; from threedgp.launcher import report_failure; import sys\n"
        "report_failure(DataError('Bad picture.')); sys.exit(1)"
    )
    with pytest.raises(WorkersFailed) as caught:
        list(launch(python(code), 1))
    assert caught.value.failures[0].report["text"] == "Bad picture."
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    try:
        raise ValueError("odd\nsecond line")
    except ValueError as error:
        report_failure(error)
    assert "ValueError: odd (in test_launcher.py, line " in (tmp_path / "report").read_text()
    monkeypatch.delenv(REPORT)
    report_failure(DataError("x"))  # outside a launcher there is nobody to tell


def test_workers_do_not_outlive_their_launcher(tmp_path):
    """Killed by -9, even while its workers are still starting."""
    worker = "import os, sys, time; open(sys.argv[1] + '/' + str(os.getpid()), 'w'); time.sleep(60)"
    code = (
        "import sys\nfrom threedgp.launcher import launch\n"
        f"for _ in launch([sys.executable, '-c', {worker!r}, {str(tmp_path)!r}], 2): pass"
    )
    launcher = subprocess.Popen(python(code))
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    launcher.kill()
    launcher.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert wait_until(lambda: not any(map(alive, pids)), 5)


def listeners(pids: list[int]) -> list[str]:
    """Addresses on which processes listen, in the kernel's hexadecimal."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].split(":")[0])
    return found


def test_nothing_listens_where_a_neighbour_could_reach_it(tmp_path):
    code = (
        "import os, time\nfrom threedgp.processes import join_world\n"
        "with join_world('cpu') as world:\n"
        "    world.barrier()\n"
        f"    open({str(tmp_path)!r} + '/' + str(os.getpid()), 'w')\n"
        "    time.sleep(60)"
    )
    steps = launch(python(code), 2)
    assert wait_until(lambda: next(steps, True) or len(list(tmp_path.iterdir())) == 2, 60)
    found = listeners([int(path.name) for path in tmp_path.iterdir()])
    steps.close()
    assert found  # gloo's own connections
    assert set(found) == {"0100007F"}  # 127.0.0.1


def test_the_store_of_several_machines_listens_at_its_address_alone():
    listener = _listen("127.0.0.1", 0)
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()
    assert _listen("192.0.2.1", 29500) is None  # a documentation address: another machine's
    with pytest.raises(UsageError, match="HOST:PORT"):
        next(launch(python("pass"), 1, nodes=2, rendezvous="node1", output=QUIET))
