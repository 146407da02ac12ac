"""Profiles: published values, inheritance, overrides, and refusals that name the key."""

from __future__ import annotations

import pytest

from threedgp.config.profile import (
    all_keys,
    flatten,
    load_profile,
    load_profile_file,
    merge,
    override_profile,
    parse_override,
    profile_names,
    save_profile,
)
from threedgp.config.rules import batch_split, discriminator_resolution, image_channels
from threedgp.errors import ConfigError

NAMES = {
    "base", "demo32", "demo64", "tiny-cpu", "small-gpu", "epigraf256", "stylegan2-256",
    "imagenet256", "imagenet256-stable-fov", "imagenet256-paper-gp", "imagenet256-strong-camera",
    "imagenet256-imgaug", "imagenet256-imgaug-both",
    "dogs256", "dogs256-stable-fov", "elephants256", "elephants256-stable-fov", "horses256", "horses256-stable-fov",
    "imagenet256-plus", "dogs256-plus", "small-gpu-plus",
}  # fmt: skip


def test_every_promised_profile_is_there_and_valid():
    assert set(profile_names()) >= NAMES
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.description


def test_imagenet_values():
    profile = load_profile("imagenet256")
    values = flatten(profile)
    assert values["data.num_classes"] == 1000
    assert values["loss.gamma"] == 0.05
    for network in ("generator", "discriminator"):
        assert values[f"model.{network}.cmax"] == 1024
        assert values[f"model.{network}.cbase"] == 65536
    assert values["training.batch_size"] == 64
    assert profile.patch_law.min_scale == 0.25
    assert profile.start_blocks == 2
    assert (values["camera.fov.min"], values["camera.fov.max"], values["camera.cube_scale"]) == (10.0, 45.0, 0.5)
    assert image_channels(profile) == 4
    assert discriminator_resolution(profile) == 64


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dogs256", "loss.camera.emd.anneal_kimg", 3000.0),
        ("dogs256", "data.num_classes", 0),
        ("horses256-stable-fov", "camera.fov.max", 21.0),
        ("elephants256-stable-fov", "camera.cube_scale", 0.35),
        ("epigraf256", "model.generator.ray_steps", 48),
        ("epigraf256", "model.discriminator.fmaps", 0.5),
        ("epigraf256", "camera.fov.mean", 12.0),
        ("epigraf256", "training.use_depth", False),
        ("stylegan2-256", "training.patch.enabled", False),
        ("stylegan2-256", "loss.path_length.weight", 2.0),
        ("stylegan2-256", "training.generator_optimizer.lr", 0.002),
        ("imagenet256-paper-gp", "loss.camera.emd.enabled", False),
        ("imagenet256-paper-gp", "loss.camera.gradient_penalty.fov", 0.03),
        ("imagenet256-strong-camera", "loss.camera.gradient_penalty.look_at", 0.005),
        ("imagenet256-imgaug", "data.augment.where", "reals"),
        ("imagenet256-imgaug-both", "data.augment.where", "both"),
        ("imagenet256-imgaug-both", "model.generator.cmax", 1024),
        ("tiny-cpu", "model.generator.tri_plane.features", 8),
    ],
)
def test_profile_values(name, key, value):
    assert flatten(load_profile(name))[key] == value


def test_derived_values_follow_what_was_chosen():
    assert load_profile("epigraf256").gamma == 0.0002 * 256**2 / 64
    assert load_profile("stylegan2-256").start_blocks == 0
    assert load_profile("small-gpu").start_blocks == 1
    profile = load_profile("tiny-cpu")
    assert (profile.gamma, profile.gamma_fake, profile.start_blocks) == (0.0002 * 32**2 / 8, 0.0002 * 32**2 / 8, 1)
    changed = override_profile(profile, ["training.batch_size=16", "training.patch.resolution=8"])
    assert (changed.gamma, changed.start_blocks) == (0.0002 * 32**2 / 16, 2)
    assert changed.patch_law.min_scale == 0.25
    chosen = override_profile(profile, ["loss.gamma=0.3", "training.batch_size=16"])
    assert (chosen.gamma, chosen.gamma_fake) == (0.3, 0.3)


def test_override_reads_yaml_values():
    assert parse_override("a.b=1e-3") == {"a": {"b": 0.001}}
    assert parse_override("a=true") == {"a": True}
    assert parse_override("a=[0.0, 1]") == {"a": [0.0, 1]}
    profile = load_profile("tiny-cpu", ["training.batch_size=16", "loss.gamma=auto"])
    assert profile.training.batch_size == 16
    assert profile.gamma == 0.0002 * 32**2 / 16


def test_merge_goes_into_sections_and_replaces_values():
    assert merge({"a": {"x": 1, "y": [1, 2]}}, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.generator.cmx=3", ["model.generator.cmx", "model.generator.cmax"]),
        ("training.batchsize=3", ["training.batchsize", "training.batch_size"]),
        ("generator.cmax=3", ["generator"]),
        ("training.batch_size=many", ["training.batch_size", "many"]),
        ("training.batch_size=7.5", ["training.batch_size"]),
        ("training.use_depth=1", ["training.use_depth"]),
        ("loss.adversarial=wasserstein", ["loss.adversarial"]),
        ("training.batch_size=6", ["training.batch_size", "mbstd_group_size"]),
        ("training.batch_gpu=3", ["training.batch_gpu"]),
        ("training.patch.resolution=24", ["training.patch.resolution"]),
        ("training.patch.resolution=4", ["training.patch.resolution"]),
        ("model.depth_adaptor.selection_start_p=0.6", ["model.depth_adaptor.selection_start_p", "at most 0.5"]),
        ("training.patch.resolution=64", ["training.patch.resolution"]),
        ("training.patch={distribution: discrete_uniform, discrete_support: [0.5]}", ["discrete_support", "1 and 1"]),
        ("training.patch.min_scale=0.1", ["training.patch.min_scale", "0.5"]),
        ("training.patch.enabled=false", ["training.patch.conditioning", "hyper_mod"]),
        ("data.resolution=48", ["data.resolution"]),
        ("camera.origin.dist=normal", ["camera.origin.yaw", "mean"]),
        ("camera.near=2.0", ["camera.near", "camera.far"]),
        ("camera.fov={dist: normal, mean: 12.0, min: null, max: null}", ["camera.fov", "learn_camera"]),
        ("model.kind=epigraf", ["training.use_depth", "training.learn_camera"]),
        ("loss.blur.fade_kimg=2000", ["loss.blur.fade_kimg"]),
        ("model.generator={marcher: mip, last_back: true}", ["model.generator.marcher", "model.generator.last_back"]),
        ("training.batch_size", ["key.path=value"]),
    ],
)
def test_bad_overrides_are_refused_with_the_key(override, words):
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny-cpu", [override])
    assert all(word in str(caught.value) for word in words)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ConfigError, match="imagenet256"):
        load_profile("imagnet256")


def test_own_profile_file_extends_shipped_ones(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny-cpu\ntraining: {kimg: 3}\n")
    profile = load_profile(str(path))
    assert profile.name == "mine"
    assert profile.training.kimg == 3
    assert profile.data.resolution == 32


@pytest.mark.parametrize(
    "text",
    ["- a\n", "a: [\n", "extends: 3\n", "data: {mirror: true, mirror: false}\n", "extends: {a.yaml: 1}\n", "\x00"],
)
def test_broken_profile_files(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_profile(str(path))


def test_circular_extends(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(ConfigError, match="circle"):
        load_profile(str(path))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_saved_profile_reads_back_unchanged(tmp_path, name):
    profile = load_profile(name)
    save_profile(profile, tmp_path / "config.yaml")
    assert load_profile_file(tmp_path / "config.yaml") == profile


def test_override_of_a_loaded_profile():
    profile = override_profile(load_profile("tiny-cpu"), ["training.kimg=1"])
    assert profile.training.kimg == 1


def test_batch_split():
    profile = load_profile("imagenet256")
    assert batch_split(profile, 4) == (16, 16, 1)
    with pytest.raises(ConfigError, match="3 processes"):
        batch_split(profile, 3)
    with pytest.raises(ConfigError, match="mbstd_group_size"):
        batch_split(load_profile("imagenet256", ["training.batch_size=24"]), 4)


def test_keys_name_every_value():
    assert set(flatten(load_profile("base"))) <= set(all_keys())


def test_setting_one_value_of_a_group_keeps_the_defaults_of_its_others():
    profile = load_profile("base", ["camera.fov.max=30.0", "training.discriminator_optimizer.eps=1e-7"])
    assert (profile.camera.fov.min, profile.camera.fov.max) == (10.0, 30.0)
    assert profile.training.discriminator_optimizer.lr == 0.002
