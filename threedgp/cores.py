"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that affinity (taskset, cpusets, Slurm) and the container's quota leave to this process, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return max(1, min(cores, math.ceil(quota)) if quota is not None else cores)


def share_cores(processes: int) -> int:
    """Threads for each of several processes that share this machine's cores, at least 1."""
    return max(1, available_cores() // max(processes, 1))


def cgroup_cores(root: Path = CGROUP) -> float | None:
    """The CPU quota of the control group, in cores; None without one (cgroup v2, then v1)."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cores if cores > 0 else None
