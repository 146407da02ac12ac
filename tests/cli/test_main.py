"""The executable answers, and errors are sentences with exit codes, not tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run_3dgp(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "threedgp_cli.main", *arguments], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_help_and_version():
    assert "Usage: 3dgp" in run_3dgp("--help").stdout
    assert run_3dgp("--version").stdout.startswith("3dgp ")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; import threedgp_cli.main; "
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'pydantic', 'joblib', 'scipy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_profiles_commands():
    names = [entry["name"] for entry in json.loads(run_3dgp("profiles", "list", "--json").stdout)]
    assert "imagenet256" in names
    shown = json.loads(run_3dgp("profiles", "show", "tiny-cpu", "--set", "training.batch_size=16", "--json").stdout)
    assert shown["training"]["batch_size"] == 16
    different = json.loads(
        run_3dgp("profiles", "show", "imagenet256-paper-gp", "--diff", "imagenet256", "--json").stdout
    )
    assert different["loss.camera.emd.enabled"] == {"imagenet256": True, "imagenet256-paper-gp": False}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "nonsense"),
        (["profiles", "show", "imagnet256"], 2, "imagenet256"),
        (["profiles", "show", "tiny-cpu", "--set", "training.batch_size=x"], 2, "training.batch_size"),
    ],
)
def test_errors(arguments, code, words):
    result = run_3dgp(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
