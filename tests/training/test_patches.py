"""Patches are drawn from the published distributions and cut where the renderer looks."""

import pytest
import torch

from tests.tools import relative_error
from threedgp.config.schema import PatchConfig, Profile, TrainingConfig
from threedgp.training.patches import (
    PatchParams,
    extract_patches,
    place_patches,
    sample_patches,
    scale_variates,
)
from threedgp.training.schedules import schedule_values

LATE = 1e6  # kimg at which every schedule has ended


def sample(count, config, kimg, generator, group_size):
    profile = Profile(name="test", training=TrainingConfig(patch=config))
    return sample_patches(count, config, schedule_values(1000 * kimg, profile), generator, group_size)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("resolution", [12, 16])
def test_extraction_equals_the_reference(golden, resolution):
    data = golden("patches")
    params = PatchParams(torch.from_numpy(data["scales"]), torch.from_numpy(data["offsets"]))
    patches = extract_patches(torch.from_numpy(data["img"]), params, resolution)
    assert relative_error(patches, data[f"patch{resolution}"]) < 2e-6


def test_without_patches_images_pass_through():
    images = torch.rand(2, 3, 8, 8)
    assert extract_patches(images, None, 4) is images


@pytest.mark.parametrize("case", ["sample_a", "sample_b"])
@pytest.mark.parametrize("kind", ["beta", "uniform", "discrete"])
def test_placement_equals_the_reference(golden, case, kind):
    data = {key.removeprefix(f"{case}/"): value for key, value in golden("patches").items() if key.startswith(case)}
    config = (
        PatchConfig(min_scale=0.25, distribution=kind)
        if kind != "discrete"
        else PatchConfig(min_scale=0.4, distribution="discrete_uniform", discrete_support=[0.25, 0.5, 1.0])
    )
    scales = scale_variates(torch.from_numpy(data["unit_draw"]), config, config.min_scale)
    params = place_patches(scales, torch.from_numpy(data["offset_draw"]), int(data["group_size"]), "reference")
    assert relative_error(params.scales, data[f"{kind}/scales"]) < 1e-7
    assert relative_error(params.offsets, data[f"{kind}/offsets"]) < 2e-7


@pytest.mark.parametrize("beta", [0.001, 0.1, 0.8])
def test_beta_scales_have_the_published_moments(golden, beta):
    expected = golden("patches")[f"moments/beta_{beta}"]
    config = PatchConfig(min_scale=0.25, beta_start=beta, beta_end=beta)
    params = sample(200_000, config, 0.0, generator(), group_size=1)
    scales = params.scales[:, 0]
    moments = [scales.mean(), scales.std(), (scales < 0.5).double().mean(), params.offsets.mean()]
    assert abs(torch.stack([m.double() for m in moments]).numpy() - expected).max() < 0.005


@pytest.mark.parametrize("distribution", ["beta", "uniform", "discrete_uniform"])
@pytest.mark.parametrize("kimg", [0.0, 3000.0, LATE])
def test_patches_lie_inside_the_image(distribution, kimg):
    config = PatchConfig(min_scale=0.25, distribution=distribution)
    params = sample(512, config, kimg, generator(), group_size=4)
    assert params.scales.shape == params.offsets.shape == (512, 2)
    assert (params.scales[:, 0] == params.scales[:, 1]).all()
    assert (params.scales >= 0.25).all()
    assert (params.offsets >= 0).all()
    assert (params.offsets + params.scales <= 1 + 1e-6).all()


def test_uniform_patches_start_as_whole_images():
    params = sample(64, PatchConfig(min_scale=0.25, distribution="uniform"), 0.0, generator(), group_size=4)
    assert (params.scales == 1).all()
    assert (params.offsets == 0).all()


def test_strided_groups_are_those_of_the_minibatch_statistics():
    config = PatchConfig(min_scale=0.25, distribution="uniform")
    params = sample(12, config, LATE, generator(), group_size=4)
    groups = params.scales.reshape(4, 3, 2)  # sample i belongs to group i mod 3
    assert (groups == groups[0]).all()
    assert len(params.scales[:, 0].unique()) == 3


def test_reference_groups_are_neighbours():
    config = PatchConfig(min_scale=0.25, distribution="uniform", group_layout="reference")
    params = sample(12, config, LATE, generator(), group_size=4)
    groups = params.offsets.reshape(3, 4, 2)
    assert (groups == groups[:, :1]).all()


def test_a_group_larger_than_the_batch_is_the_batch():
    params = sample(2, PatchConfig(min_scale=0.25), LATE, generator(), group_size=4)
    assert (params.scales[0] == params.scales[1]).all()


def test_the_same_generator_state_gives_the_same_patches():
    config = PatchConfig(min_scale=0.25)
    first, second = (sample(8, config, LATE, generator(5), group_size=4) for _ in range(2))
    assert (first.scales == second.scales).all()
    assert (first.offsets == second.offsets).all()
