"""Profiles and `--set` values from anywhere: one sentence, soon, or a profile whose numbers are finite and in range."""

from __future__ import annotations

import math
import os
import random
import time

import pytest

from threedgp.config.profile import (
    all_keys,
    explain,
    flatten,
    load_profile,
    load_profile_file,
    parse_override,
    profile_yaml,
    save_profile,
)
from threedgp.errors import ConfigError

SECONDS = 10.0
LONGEST_MESSAGE = 4000
VALUES = (
    ".nan", ".inf", "-.inf", "1e400", "-1", "0", "1", "1e9", "1e30", "9" * 30, "9" * 5000, "0b_", "0x_", "010", "1:30",
    "true", "no", "!!bool x", "!!int x", "!!float x", "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!null x", "!x y",
    "2020-13-45", "2020-01-01", "null", "~", "''", "\"\\0\"", "\x00", "\u2028", "\x1b[2J", "[" * 900, "{" * 900, "[]",
    "{}", "[1, 2, 3]", "[.nan, 0.9]", "{a: 1}", "&a [*a]", "*a", "!!python/object:os.system x", "!!binary x",
    "!!timestamp x", "? [1]", "<<: {a: 1}", "[nosuch]", "[../../x]", "[fid0_full]", "[fid99999999999k]", "../../x",
    "a: b: c", "- x", "|", "%",
    "@", "`", "400", "0.5", "text",
)  # fmt: skip


def finite(profile) -> bool:
    values = [v for value in flatten(profile).values() for v in (value if isinstance(value, list) else [value])]
    return all(math.isfinite(value) for value in values if isinstance(value, (int, float)))


def attempt(load) -> bool:
    """Whether a load gave a profile; anything but a profile or one refusal in time fails the test."""
    began = time.monotonic()
    try:
        profile, message = load(), "a profile"
    except ConfigError as error:
        profile, message = None, str(error)
    assert len(message) < LONGEST_MESSAGE
    assert time.monotonic() - began < SECONDS
    assert profile is None or finite(profile)
    return profile is not None


def mutated_overrides(seed: int, count: int):
    draw = random.Random(seed)
    keys = [*all_keys(), "nosuch", "training", "a.b.c", "training.batch_size.x", ".".join(["x"] * 500)]
    for _ in range(count):
        yield [f"{draw.choice(keys)}={draw.choice(VALUES)}" for _ in range(draw.choice((1, 1, 1, 3)))]


def mutated_files(seed: int, count: int):
    draw = random.Random(seed)
    whole = profile_yaml(load_profile("tiny-cpu")).encode()
    for _ in range(count):
        text = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            place = draw.randrange(len(text))
            match draw.randrange(4):
                case 0:
                    text[place] = draw.randrange(256)
                case 1:
                    del text[place : place + draw.randrange(60)]
                case 2:
                    text[place:place] = draw.choice(VALUES).encode()
                case 3:
                    text[place:place] = text[place : place + draw.randrange(400)]
        yield bytes(text)


def try_many(seed: int, count: int, folder) -> None:
    taken = sum(attempt(lambda o=o: load_profile("tiny-cpu", o)) for o in mutated_overrides(seed, count))
    path = folder / "config.yaml"
    for text in mutated_files(seed, count):
        path.write_bytes(text)
        taken += attempt(lambda: load_profile_file(path))
        attempt(lambda: load_profile(str(path)))
    assert taken > 0  # some mutations are harmless


def test_mutated_profiles_and_overrides(tmp_path):
    try_many(1, 30, tmp_path)


@pytest.mark.slow
def test_many_mutated_profiles_and_overrides(tmp_path):
    try_many(2, 250, tmp_path)


@pytest.mark.parametrize("value", VALUES)
def test_every_odd_value_of_a_number(value):
    attempt(lambda: load_profile("tiny-cpu", [f"training.kimg={value}"]))


@pytest.mark.parametrize(
    "override",
    [
        "training.kimg=.inf", "training.generator_optimizer.lr=.inf", "camera.radius={mean: .nan}",
        "camera.fov.max=400.0",        "camera.fov.min=-3.0", "model.generator.tri_plane.mlp.layers=1000000000",
        "training.workers=1000000000",
        "training.metrics=[../../x]", "training.metrics=[nosuch]", "loss.gamma=-1.0",
        "training.seed=99999999999999999999",
        "training.generator_optimizer.betas=[.nan, 0.9]", "data.embedder=../../x", "data.dataset=../x",
        "training.batch_size=1:30", "model.depth_adaptor.kernel_size=4", "camera.look_at.dist=hybrid",
        "camera.origin={dist: hybrid, yaw: {mean: 0.0, std: 1.0}, pitch: {mean: 1.5, std: 1.0}}",
    ],
)  # fmt: skip
def test_impossible_values_are_refused_with_their_key(override):
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny-cpu", [override])
    assert override.partition("=")[0] in str(caught.value)


def test_values_are_read_as_they_look():
    assert parse_override("a=010") == {"a": 10}
    assert parse_override("a=1:30") == {"a": "1:30"}
    assert parse_override("a=no") == {"a": "no"}
    assert parse_override("a=1e-4") == {"a": 1e-4}
    assert parse_override("a=2020-01-01") == {"a": "2020-01-01"}


@pytest.mark.parametrize("name", ["2024", "no", "1e3", "12:30", "010", "true", "a: b", "-"])
def test_data_sets_may_have_any_name(name, tmp_path):
    profile = load_profile("tiny-cpu", dataset=name)
    assert profile.data.dataset == name
    save_profile(profile, tmp_path / "config.yaml")
    assert load_profile_file(tmp_path / "config.yaml") == profile
    if ":" not in name and name != "-":
        (tmp_path / "mine.yaml").write_text(f"extends: tiny-cpu\ndata: {{dataset: {name}}}\n")
        assert load_profile(str(tmp_path / "mine.yaml")).data.dataset == name
        assert load_profile("tiny-cpu", [f"data.dataset={name}"]).data.dataset == name
    assert load_profile("tiny-cpu", ["data.dataset=null"]).data.dataset is None


def test_bombs_and_pipes_end_soon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40)]
    (tmp_path / "aliases.yaml").write_text("a0: &a0 [1]\n" + "\n".join(lines))
    (tmp_path / "keys.yaml").write_text("\n".join(f"key{k}: 1" for k in range(20_000)))
    (tmp_path / "double0.yaml").write_text("extends: tiny-cpu\n")
    for k in range(1, 18):
        (tmp_path / f"double{k}.yaml").write_text(f"extends: [double{k - 1}.yaml, double{k - 1}.yaml]\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("aliases", "keys", "large", "pipe"):
        assert not attempt(lambda name=name: load_profile(f"{name}.yaml"))
    assert attempt(lambda: load_profile("double17.yaml"))


def test_every_setting_is_explained():
    for setting in (setting for key in all_keys() if "." not in key for setting in explain(key)):
        assert setting.meaning, setting.key
        assert setting.values, setting.key
        if "number" in setting.values:
            assert "at most" in setting.values or "below" in setting.values, setting.key
    (batch,) = explain("training.batch_size")
    assert (batch.default, batch.values) == (64, "whole number at least 1 and at most 1000000")
    assert explain("training.val_every")[0].key == "training.metric_ticks"
    with pytest.raises(ConfigError, match=r"training\.batch_size"):
        explain("training.batchsize")


def test_names_of_earlier_versions_are_understood_with_a_note(tmp_path, caplog):
    path = tmp_path / "old.yaml"
    path.write_text(
        "extends: tiny-cpu\nloss: {gamma: auto}\ntraining: {val_every: 7, divergence: {grace_kimg: 3.0}}\n"
        "model: {generator: {fp32_only: false, max_batch_res: 32}}\n"
    )
    profile = load_profile(str(path))
    assert (profile.loss.gamma, profile.training.metric_ticks) == (None, 7)
    assert (profile.model.generator.clamp_activations, profile.model.generator.chunk_rays) == (True, 1024)
    (note,) = caplog.messages
    assert "training.val_every is called training.metric_ticks now" in note
    assert "training.divergence.grace_kimg is ignored" in note
