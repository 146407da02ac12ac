"""Keeping freed memory: it works, is idempotent, and leaves tensors alone."""

import subprocess
import sys

PROBE = """
import platform, torch
from threedgp.ops.allocator import keep_memory
expected = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
assert keep_memory() is expected and keep_memory() is expected
x = torch.full((3000, 3000), 2.0)
for _ in range(3):
    y = x + 1.0
    assert y.sum().item() == 27e6
print("well")
"""


def test_tensors_are_made_and_freed_as_before():
    # In a process of its own: what the allocator is told holds until the end.
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("well", 0), result.stderr
