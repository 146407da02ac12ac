"""Scores of a generator: samples depend on seed and number alone, depth follows its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.metrics.sets import pool_extractor, write_images
from threedgp.config.metric_names import parse_metric
from threedgp.config.profile import load_profile
from threedgp.errors import ConfigError, UsageError
from threedgp.metrics.evaluate import Evaluator
from threedgp.metrics.nfs import depth_entropy, non_flatness, score_depth
from threedgp.metrics.real_set import RealSet
from threedgp.metrics.scored_samples import GeneratedImages, Sampler, UniformLabels, open_labels, to_uint8
from threedgp.models.build import build_generator
from threedgp.rendering.renderer import render_rays

SMALL = [
    "data.resolution=32",
    "data.num_classes=3",
    "model.generator.ray_steps=4",
    "model.generator.tri_plane.resolution=16",
    "training.patch.resolution=16",
]


def make_sampler(overrides=(), seed=0):
    profile = load_profile("tiny-cpu", [*SMALL, *overrides])
    torch.manual_seed(1)
    generator = build_generator(profile).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.3)
    return Sampler(generator, profile, UniformLabels(profile.data.num_classes), seed)


@pytest.fixture(scope="module")
def sampler():
    return make_sampler()


def test_a_sample_depends_on_seed_and_number_alone(sampler):
    together = sampler.images([3, 4, 5, 6])
    assert together.shape == (4, 3, 32, 32)
    assert together.dtype == torch.uint8
    torch.manual_seed(123)
    for position, number in enumerate([3, 4, 5, 6]):
        alone = sampler.images([number])[0]
        assert (alone.int() - together[position].int()).abs().max() <= 1  # one level where rounding falls on an edge
    assert (together[0] != together[1]).any()
    other = Sampler(sampler.generator, sampler.profile, sampler.labels, seed=1)
    assert (other.images([3]) != together[:1]).any()


def test_latents_are_drawn_from_the_prior_and_the_labels(sampler):
    latents = sampler.latents(range(300))
    assert abs(latents.z.mean()) < 0.02
    assert latents.z.std() == pytest.approx(1, abs=0.02)
    assert (latents.c.sum(dim=0) > 70).all()
    yaw = sampler.profile.camera.origin.yaw
    assert latents.camera.angles[:, 0].min() < yaw.min + 0.1 * (yaw.max - yaw.min)
    assert latents.camera.angles[:, 0].max() > yaw.max - 0.1 * (yaw.max - yaw.min)


def test_the_global_random_state_stays_untouched(sampler):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    sampler.images([0, 1])
    sampler.frontal_depths([0])
    assert torch.equal(before, torch.get_rng_state())


def test_images_use_adapted_cameras(sampler, monkeypatch):
    plain = sampler.images([0, 1])
    monkeypatch.setattr(sampler.generator, "adapt_camera", lambda camera, z, c: camera)
    assert (sampler.images([0, 1]) != plain).any()


def test_pixels_are_truncated_like_the_published_ones():
    img = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    assert to_uint8(img).tolist() == [0, 0, 128, 191, 255, 255]


def test_depth_is_seen_from_the_front_without_faint_densities(sampler):
    whole = sampler.frontal_depths([0, 1, 2, 3], cut_quantile=0.0)
    cut = sampler.frontal_depths([0, 1, 2, 3])
    assert whole.shape == cut.shape == (4, 32, 32)
    near, far = sampler.profile.camera.near, sampler.profile.camera.far
    assert (whole >= near - 1e-4).all()
    assert (whole <= far + 1e-4).all()
    assert (whole != cut).any()
    moved, still = sampler.frontal_depths([0]), sampler.frontal_depths([0], adaptor=False)
    assert (moved != still).any()


def test_the_quantile_is_shared_by_groups_of_four_whatever_the_count(sampler):
    five = score_depth(parse_metric("nfs5"), sampler)
    eight = score_depth(parse_metric("nfs8"), sampler)
    assert torch.equal(five.entropy, eight.entropy[:5])
    by_hand = depth_entropy(sampler.frontal_depths([4, 5, 6, 7]), five.near, five.far)
    assert torch.equal(eight.entropy[4:], by_hand.entropy)
    single = score_depth(parse_metric("nfs5_perimage"), sampler)
    assert not torch.equal(single.entropy, five.entropy)


def test_large_pictures_have_a_quantile_for_each_published_chunk(sampler, monkeypatch):
    calls = []

    def recorded(field, origins, directions, options, *, draws):
        calls.append((origins.shape[1], options.cut_quantile))
        return render_rays(field, origins, directions, options, draws=draws)

    monkeypatch.setattr("threedgp.metrics.scored_samples.render_rays", recorded)
    monkeypatch.setattr("threedgp.metrics.scored_samples.QUANTILE_VALUES", 4 * 4 * 3 * 600)
    assert sampler.frontal_depths([0]).shape == (1, 32, 32)
    assert calls == [(1024, 0.5)]  # up to chunk_rays in one piece
    monkeypatch.setattr(sampler.generator, "render_options", replace(sampler.generator.render_options, chunk_rays=1000))
    assert sampler.frontal_depths([0]).shape == (1, 32, 32)
    assert calls[1:] == [(600, 0.5), (424, 0.5)]


def test_scores_by_class(sampler):
    depths = score_depth(parse_metric("nfs8"), sampler)
    assert depths.values[0] == pytest.approx(non_flatness(depths.entropy))
    assert 1 <= depths.values[0] <= 64
    by_class = depths.by_class()
    assert sum(count for _, _, count in by_class) == 8
    assert sum(score * count for _, score, count in by_class) / 8 == pytest.approx(depths.values[0])
    assert [row[0] for row in replace(depths, class_names="abc").by_class()] == ["abc"[int(row[0])] for row in by_class]
    assert float(depths.histogram.sum()) == pytest.approx(1)


def test_all_metrics_in_one_call(sampler, tmp_path):
    real = write_images(tmp_path / "real", 12, 0, size=32)
    names = ["nfs4", "fd_efflite0_10_full", "kd_efflite0_6"]
    evaluator = Evaluator(lambda name: pool_extractor(), batch=4)
    results, depths = evaluator.score_generator([parse_metric(name) for name in names], sampler, RealSet(real, 32))
    assert [result.metric for result in results] == names
    assert list(depths) == ["nfs4"]
    assert results[1].settings["num_real"] == 12
    assert results[2].settings["num_real"] == 6
    assert {result.settings["resolution"] for result in results} == {32}


@pytest.mark.parametrize("batch", [1, 4])
def test_generated_images_come_in_chunks(sampler, batch):
    images = GeneratedImages(sampler, 4, "abc")
    chunks = [list(range(4))[first : first + batch] for first in range(0, 4, batch)]
    seen = [numbers for groups in images.batches(chunks) for numbers, _ in groups]
    assert seen == chunks
    assert GeneratedImages(sampler, 4).identity is None
    other = Sampler(sampler.generator, sampler.profile, sampler.labels, seed=1)
    assert GeneratedImages(other, 4, "abc").identity != images.identity


def test_flat_models_have_images_but_no_depth():
    flat = make_sampler(["model.kind=stylegan2", "training.use_depth=false", "training.learn_camera=false"])
    alone, together = flat.images([1]), flat.images([0, 1])
    assert (alone[0].int() - together[1].int()).abs().max() <= 1
    with pytest.raises(UsageError, match="2D model"):
        score_depth(parse_metric("nfs4"), flat)


def test_labels_without_a_training_set():
    profile = load_profile("tiny-cpu", SMALL)
    labels = open_labels(profile, None)
    assert len(labels) == 3
    assert labels.label(2).tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match="--data"):
        labels.camera_angles(0)
    assert open_labels(load_profile("tiny-cpu", [*SMALL, "data.num_classes=0"]), None).label(0).shape == (0,)
