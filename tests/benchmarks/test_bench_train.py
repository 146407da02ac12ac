"""The benchmark measures what it says: every convolution found, every path, every part."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.training.small import TINY, tiny_profile
from threedgp.benchmarks.bench_train import ShapeRecorder, bench_train
from threedgp.ops import native


@pytest.mark.parametrize(
    ("kernel", "stride", "transposed"), [(3, 1, False), (3, 2, False), (1, 1, False), (3, 2, True)]
)
def test_work_is_counted_like_pytorch_counts(kernel, stride, transposed):
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    weight = torch.randn(4, 4, kernel, kernel, requires_grad=True)
    convolve = torch.conv_transpose2d if transposed else torch.conv2d
    results = []
    for counter in (FlopCounterMode(display=False), ShapeRecorder()):
        with counter:
            y = convolve(x, weight, stride=stride, padding=kernel // 2)
            torch.nn.functional.linear(y.mean(dim=[2, 3]), torch.ones(5, 4), torch.zeros(5)).sum().backward()
        results.append(counter)
    expected = results[0].get_total_flops()
    counts = [count * call.measure(torch.device("cpu"), repeats=1)[1] for call, count in results[1].calls.items()]
    assert sum(counts) == expected


def test_a_profile_is_timed_on_every_path():
    bench = bench_train(tiny_profile(), rounds=2)
    names = ["plain fp32", "fast fp32"] + ["fast bf16"] * native.CPU_COMPUTES_BFLOAT16
    assert [timing.variant.name for timing in bench.timings] == names
    assert bench.ratio(bench.timings[0]) == 1
    for timing in bench.timings:
        assert len(timing.seconds) == 2
        assert timing.median > 0
        assert timing.peak_bytes > 100_000
        assert 0 < bench.fraction(timing) < 1
    assert sum(bench.parts.values()) > 0
    assert "convolutions" in bench.parts


def test_command(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "threedgp_cli.main", "bench", "train", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    refused = run("--device", "tpu")
    assert refused.returncode == 2
    assert "cpu or cuda" in refused.stderr
    settings = [part for setting in TINY for part in ("--set", setting)]
    result = json.loads(run("--profile", "tiny-cpu", *settings, "--rounds", "1", "--threads", "1", "--json").stdout)
    assert result["profile"] == "tiny-cpu"
    assert result["threads"] == 1
    assert len(result["paths"]) == 2 + native.CPU_COMPUTES_BFLOAT16
    assert all(path["images_per_second"] > 0 for path in result["paths"])
