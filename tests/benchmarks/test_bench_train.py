"""The benchmark measures what it says: every path, every part."""

import json
import subprocess
import sys

from tests.training.small import TINY, tiny_profile
from threedgp.benchmarks.bench_train import bench_train
from threedgp.ops import native

NAMES = ["plain fp32", "fast fp32"] + ["fast bf16"] * native.CPU_COMPUTES_BFLOAT16


def test_a_profile_is_timed_on_every_path():
    speeds, parts = bench_train(tiny_profile(), rounds=2)
    assert [speed.name for speed in speeds] == NAMES
    assert speeds[0].ratio_to_plain == 1
    for speed in speeds:
        assert speed.seconds_per_iteration > 0
        assert speed.peak_bytes > 100_000
        assert 0 < speed.fraction_of_limit < 1
    assert "convolutions" in parts


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
    assert [path["name"] for path in result["paths"]] == NAMES
    assert all(path["images_per_second"] > 0 for path in result["paths"])
