"""Metric names: counts, forms, directions, offline names, errors."""

from __future__ import annotations

import pytest

from threedgp.config.metric_names import larger_is_better, main_value, metric_name, parse_metric
from threedgp.errors import UsageError


@pytest.mark.parametrize(
    ("name", "family", "num_gen", "num_real", "full"),
    [
        ("fid50k_full", "fid", 50_000, None, True),
        ("fid2k_full", "fid", 2048, None, True),
        ("fid5k_full", "fid", 5000, None, True),
        ("fid300_full", "fid", 300, None, True),
        ("fid50k", "fid", 50_000, 50_000, False),
        ("fid5k_1k", "fid", 5000, 1000, False),
        ("kid50k_full", "kid", 50_000, 1_000_000, True),
        ("kid50k", "kid", 50_000, 50_000, False),
        ("pr50k3_full", "pr", 50_000, 200_000, True),
        ("pr300_5", "pr", 300, 300, False),
        ("is50k", "is", 50_000, None, False),
        ("nfs256", "nfs", 256, None, False),
        ("nfs64_perimage", "nfs", 64, None, False),
        ("fd_efflite0_50k_full", "fid", 50_000, None, True),
        ("fd_efflite0_256_full", "fid", 256, None, True),
        ("kd_efflite0_2k", "kid", 2048, 2048, False),
        ("pr_efflite0_50k3_full", "pr", 50_000, 200_000, True),
    ],
)
def test_names_are_understood_and_canonical(name, family, num_gen, num_real, full):
    spec = parse_metric(name)
    assert (spec.name, spec.family, spec.num_gen, spec.num_real, spec.full) == (name, family, num_gen, num_real, full)


def test_other_spellings_get_the_canonical_name():
    assert parse_metric("fid2048_full").name == "fid2k_full"
    assert parse_metric("fid5000_full").name == "fid5k_full"
    assert parse_metric("fid5k_5k").name == "fid5k"
    assert parse_metric("fid2000_full").name == "fid2000_full"
    assert parse_metric("fid2000_full").num_gen == 2000


@pytest.mark.parametrize(
    "name",
    ["", "fid", "fid50k_half", "fid_50k", "FID50k", "pr50k_full", "is50k_full", "kid50k_5k", "nfs256x", "ppl2_wend"],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="is no metric"):
        parse_metric(name)


@pytest.mark.parametrize("name", ["fid0_full", "fid5k_0", "pr50k0", "nfs0"])
def test_zero_images_are_refused(name):
    with pytest.raises(UsageError, match="zero"):
        parse_metric(name)


def test_composed_names():
    assert metric_name("fid", 50_000) == "fid50k_full"
    assert metric_name("fid", 2048, offline=True) == "fd_efflite0_2k_full"
    assert metric_name("pr", 300) == "pr300_3_full"
    assert metric_name("is", 5000) == "is5k"
    assert metric_name("fid", 5000, num_real=1000) == "fid5k_1k"
    assert metric_name("kid", 500, num_real=500) == "kid500"
    with pytest.raises(UsageError, match="not 400"):
        metric_name("kid", 500, num_real=400)
    assert metric_name("nfs", 256, offline=True) == "nfs256"
    with pytest.raises(UsageError, match="at least 1"):
        metric_name("fid", 0)
    with pytest.raises(UsageError, match="offline"):
        metric_name("is", 5000, offline=True)


def test_offline_distances_are_never_called_fid():
    spec = parse_metric("fid50k_full").offline()
    assert spec.name == "fd_efflite0_50k_full"
    assert spec.label == "Frechet distance (efficientnet_lite0)"
    assert spec.extractor == "tf_efficientnet_lite0"
    assert parse_metric(spec.name) == spec


def test_extractors():
    assert parse_metric("fid50k_full").extractor == parse_metric("is50k").extractor == "inception"
    assert parse_metric("pr50k3_full").extractor == "vgg16-torchvision"
    assert parse_metric("pr_efflite0_50k3_full").extractor == "tf_efficientnet_lite0"
    assert parse_metric("nfs256").extractor is None


def test_directions():
    falling = ["fid50k_full", "fd_efflite0_2k_full", "kid50k_full", "kid50k_full_std"]
    rising = ["nfs256", "is50k_mean", "pr50k3_full_precision", "pr50k3_full_recall"]
    assert not any(larger_is_better(name) for name in falling)
    assert all(larger_is_better(name) for name in rising)
    assert main_value("is50k") == "is50k_mean"
    assert main_value("pr50k3_full") == "pr50k3_full_precision"
    assert main_value("fid2k_full") == "fid2k_full"
