"""The `3dgp` command line."""

import os

# Before anything loads OpenMP: idle threads spin for less than a millisecond, then sleep. Where processes outnumber
# cores (several training processes, data loaders, a shared machine) threads that keep spinning hold up those that work,
# up to fifty times; but woken from sleep for every small operation, two threads are slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # lost connections are reported in words, not in stack frames
