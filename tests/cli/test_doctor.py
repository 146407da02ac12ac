"""The check-up: every line says what was found, and for what is missing, what to do."""

import json

import pytest

from threedgp_cli import doctor
from threedgp_cli.main import app


def check_up(capsys) -> dict[str, dict]:
    app(args=["doctor", "--json"], prog_name="3dgp", standalone_mode=False)
    return {entry["subject"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_missing_weights_are_named_with_their_place(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_native", list)  # would compile into the empty cache
    found = check_up(capsys)
    assert {"python", "torch", "cpu", "gpu", "video", "disk"} <= set(found)
    missing = found["weights leres-resnext101"]
    assert missing["state"] == "note"
    assert missing["advice"] == f"Put res101.pth into {tmp_path / 'weights'}."
    assert "96 MB with --download" in found["weights inception"]["advice"]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "res101.pth").write_bytes(b"any published file is accepted; loading it checks its tensors")
    assert check_up(capsys)["weights leres-resnext101"]["state"] == "ok"


def test_a_problem_is_an_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_codec", lambda: doctor.Finding("video", doctor.BAD, "no ffmpeg.", "Install ffmpeg."))
    with pytest.raises(SystemExit) as caught:
        app(args=["doctor"], prog_name="3dgp")
    assert caught.value.code == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "native ops" in output
    assert "!! video no ffmpeg. Install ffmpeg." in output
