"""Schedules depend on nothing but the images shown, and equal the published ones."""

import pytest

from tests.tools import relative_error
from threedgp.config.schema import (
    BlurConfig,
    CameraConditioningConfig,
    DensityNoiseConfig,
    DistillationConfig,
    PatchConfig,
    Profile,
    TransportConfig,
)
from threedgp.training import schedules

BETA = PatchConfig(min_scale=0.25)
UNIFORM = PatchConfig(min_scale=0.25, distribution="uniform")

PUBLISHED = {
    "patch_beta": lambda t: schedules.patch_beta(t, BETA),
    "patch_min_scale": lambda t: schedules.patch_min_scale(t, BETA),
    "uniform_min_scale": lambda t: schedules.patch_min_scale(t, UNIFORM),
    "kd_weight": lambda t: schedules.distillation_weight(t, DistillationConfig()),
    "emd_multiplier_default": lambda t: schedules.transport_multiplier(t, TransportConfig()),
    "emd_multiplier_fast": lambda t: schedules.transport_multiplier(t, TransportConfig(anneal_kimg=3000.0)),
    "spoof_p": lambda t: schedules.spoof_probability(t, CameraConditioningConfig()),
    "nerf_noise_std": lambda t: schedules.density_noise_std(t, DensityNoiseConfig()),
    "blur_sigma": lambda t: schedules.blur_sigma(1000.0 * t, BlurConfig()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedules_equal_the_published_ones(golden, name):
    data = golden("schedules")
    values = [PUBLISHED[name](t) for t in data["kimg"].tolist()]
    assert relative_error(values, data[name]) < 1e-12


def test_linear_equals_the_published_ramp(golden):
    data = golden("schedules")
    values = [schedules.linear(*row) for row in data["linear/args"].tolist()]
    assert relative_error(values, data["linear/value"]) < 1e-12


def test_without_a_span_the_final_value_holds_from_the_start():
    assert schedules.linear(0.0, 1.0, 0.25, 0.0) == 0.25
    assert schedules.blur_sigma(0, BlurConfig(fade_kimg=0.0)) == 0.0


def test_all_values_of_an_iteration_come_from_the_profile():
    profile = Profile(name="test")
    values = schedules.schedule_values(180_000, profile)
    assert values.kimg == 180.0
    assert values.patch_beta == pytest.approx(0.001 + 0.799 * 0.018)
    assert values.patch_min_scale == 0.25
    assert values.blur_sigma == pytest.approx(1.0)
    assert values.density_noise_std == pytest.approx(1 - 180 / 5000)
    assert values.depth_progress == pytest.approx(0.018)
    assert values.transport_multiplier == pytest.approx(0.018)
    assert values.distillation_weight == pytest.approx(1 - 0.0018)
    assert values.spoof_probability == pytest.approx(1 - 0.5 * 0.18)
