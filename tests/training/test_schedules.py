"""Schedules depend on nothing but the images shown, and equal the published ones."""

import pytest

from tests.tools import relative_error
from threedgp.config.profile import merge, validate
from threedgp.config.schema import Profile
from threedgp.training import schedules

TRANSPORT = {"camera": {"emd": {"anneal_kimg": 3000.0}}}
PUBLISHED = {  # name in the reference -> name here and the settings that are not default
    "patch_beta": ("patch_beta", {}),
    "patch_min_scale": ("patch_min_scale", {}),
    "uniform_min_scale": ("patch_min_scale", {"training": {"patch": {"distribution": "uniform"}}}),
    "kd_weight": ("distillation_weight", {}),
    "emd_multiplier_default": ("transport_multiplier", {}),
    "emd_multiplier_fast": ("transport_multiplier", {"loss": TRANSPORT}),
    "spoof_p": ("spoof_probability", {}),
    "nerf_noise_std": ("density_noise_std", {}),
    "blur_sigma": ("blur_sigma", {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedules_equal_the_published_ones(golden, name):
    data = golden("schedules")
    ours, settings = PUBLISHED[name]
    profile = validate(merge({"name": "test", "training": {"patch": {"min_scale": 0.25}}}, settings))
    values = [getattr(schedules.schedule_values(1000.0 * t, profile), ours) for t in data["kimg"].tolist()]
    assert relative_error(values, data[name]) < 1e-12


def test_linear_equals_the_published_ramp(golden):
    data = golden("schedules")
    values = [schedules.linear(*row) for row in data["linear/args"].tolist()]
    assert relative_error(values, data["linear/value"]) < 1e-12


def test_without_a_span_the_final_value_holds_from_the_start():
    assert schedules.linear(0.0, 1.0, 0.25, 0.0) == 0.25
    profile = validate({"name": "test", "loss": {"blur": {"fade_kimg": 0.0}}})
    assert schedules.schedule_values(0, profile).blur_sigma == 0.0


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
