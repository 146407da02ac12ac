"""The GPU kernel against the plain lookup: in Triton's interpreter, so that it is tested without a GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROBE = """
import torch
from threedgp.ops import native
from threedgp.ops.triplane import sample_triplanes
from threedgp.ops.triplane_triton import TriplaneOnGPU

torch.manual_seed(0)
for features in (5, 16):
    planes = torch.randn(2, 3, features, 9, 11, requires_grad=True)
    points = (torch.rand(2, 70, 3) * 2.6 - 1.3).requires_grad_()
    grad = torch.randn(2, 70, features)
    results = []
    for lookup in (TriplaneOnGPU.apply, sample_triplanes):
        with native.plain():
            value = lookup(planes, points)
        results.append((value, *torch.autograd.grad(value, (planes, points), grad)))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
planes = torch.randn(1, 3, 8, 6, 6, requires_grad=True)
points = torch.tensor([[[float("nan"), 0.0, 0.0], [1e30, 0.0, 0.0]]])
assert TriplaneOnGPU.apply(planes, torch.zeros(1, 0, 3)).shape == (1, 0, 8)
found = TriplaneOnGPU.apply(planes, points)
assert found[0, 0].isnan().all() and found[0, 1].isfinite().all()
found[:, 1].sum().backward()
assert planes.grad.isfinite().all()
print("well")
"""


def test_kernel_equals_the_definition():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "well", result.stderr


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from threedgp.ops import triplane_triton as kernels

pointers = {"planes", "points", "out", "grad", "grad_planes", "grad_points"}
sizes = {"F": 16, "FP": 16, "B": kernels.BLOCK, "PLANES": True, "POINTS": True}
for capability in (80, 90):
    for kernel in (kernels._forward, kernels._backward):
        constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
        signature = {
            name: "constexpr" if name in constants else "*fp32" if name in pointers else "i32"
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("well")
"""


def test_kernels_compile_for_data_centre_gpus():
    result = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    if "ptxas" in result.stderr and "well" not in result.stdout:
        pytest.skip("Triton's assembler is not installed here")
    assert result.stdout.strip() == "well", result.stderr
