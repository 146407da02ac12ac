"""Threads follow what this process may use, not what the machine has."""

from __future__ import annotations

import os

import pytest

from threedgp.cores import available_cores, cgroup_cores, share_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_cores(tmp_path) == cores


def test_affinity_and_quota_bound_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr("threedgp.cores.cgroup_cores", lambda: None)
    assert available_cores() == 5
    assert share_cores(2) == 2
    assert share_cores(9) == 1
    monkeypatch.setattr("threedgp.cores.cgroup_cores", lambda: 1.5)
    assert available_cores() == 2
    monkeypatch.setattr("threedgp.cores.cgroup_cores", lambda: 0.1)
    assert available_cores() == 1
