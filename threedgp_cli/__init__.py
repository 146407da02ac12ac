"""The `3dgp` command line."""

import os

# Before anything loads OpenMP: idle threads sleep instead of spinning. Where processes outnumber cores (several
# training processes, data loaders, a shared machine) spinning threads hold up those that work, up to fifty times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # lost connections are reported in words, not in stack frames
