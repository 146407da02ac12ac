"""Class scores: the judge is trained on real images, asks about samples straight and turned, and reuses embeddings."""

from __future__ import annotations

import pytest
import torch

from tests.training.small import tiny_profile
from tests.training.tiny_runs import write_training_set
from threedgp.data.dataset import TrainingSet
from threedgp.errors import DataError, UsageError
from threedgp.metrics.class_scores import class_depth, depth_fit, fit_probe, score_classes
from threedgp.metrics.scored_samples import Sampler
from threedgp.models.build import build_generator


class MeanColors:
    """A stand-in for a network: 48 numbers, the mean colours of a 4x4 grid; counts the images it saw."""

    name, dim = "colors", 48

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


@pytest.fixture
def dataset(tmp_path):
    return TrainingSet(write_training_set(tmp_path / "set"), resolution=16, num_classes=4)


def make_sampler(dataset, *overrides):
    profile = tiny_profile(*overrides)
    torch.manual_seed(0)
    return Sampler(build_generator(profile).eval(), profile, dataset)


def test_every_sample_is_judged_from_three_sides(dataset):
    network = MeanColors()
    scores = score_classes(make_sampler(dataset), dataset, network, count=10)
    assert network.seen == len(dataset.names) + 3 * 10
    line = scores.line("000000016")
    assert 0 <= line["results"]["class_accuracy"] <= 1
    assert -1 <= line["results"]["class_depth"] <= 1
    assert line["chance"] == 0.25
    assert set(line["results"]) == {
        "class_accuracy", "class_accuracy_turned", "class_accuracy_real", "class_depth", "class_depth_flat",
    }  # fmt: skip


def test_the_same_samples_get_the_same_scores_and_turning_changes_them(dataset):
    sampler = make_sampler(dataset)
    assert score_classes(sampler, dataset, MeanColors(), count=8) == score_classes(
        sampler, dataset, MeanColors(), count=8
    )
    straight, left, right = sampler.turned_views(range(4), [0.0, -0.4, 0.4])
    assert (straight[0] != left[0]).any()
    assert (left[0] != right[0]).any()
    again = torch.cat([sampler.turned_views([number], [0.0])[0][1] for number in range(4)])
    assert torch.allclose(again, straight[1], atol=1e-5)


def test_a_model_without_classes_is_refused(tmp_path):
    dataset = TrainingSet(write_training_set(tmp_path / "set"), resolution=16)
    with pytest.raises(UsageError, match="classes"):
        score_classes(make_sampler(dataset, "data.num_classes=0"), dataset, MeanColors())


@pytest.fixture
def clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    centers = torch.randn(4, 32, generator=generator)
    return centers[labels] * 3 + torch.randn(120, 32, generator=generator), labels, centers


def test_separable_classes_are_recognised(clusters):
    features, labels, centers = clusters
    probe = fit_probe(features, labels)
    assert probe.real_accuracy == 1.0
    assert probe.classify(centers * 3).tolist() == [0, 1, 2, 3]


def test_noise_is_at_chance():
    noise = torch.randn(4000, 32, generator=torch.Generator().manual_seed(1))
    assert fit_probe(noise, torch.arange(4000) % 4).real_accuracy == pytest.approx(0.25, abs=0.06)


def test_too_little_data_is_refused(clusters):
    features, labels, _ = clusters
    with pytest.raises(DataError, match="two classes"):
        fit_probe(features, torch.zeros(120, dtype=torch.long))
    with pytest.raises(DataError, match="ten"):
        fit_probe(features[:8], labels[:8])


def test_depth_fit_is_one_for_the_class_shape_and_blind_to_scale():
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8)
    shapes = torch.stack([rows, rows.T, (rows + rows.T).square()])  # [3, 8, 8]
    labels = torch.arange(30) % 3
    per_class = class_depth(shapes[labels] * 5 + 2, labels, 3)
    right, flat = depth_fit(shapes * 0.1 + 7, torch.arange(3), per_class)
    wrong, _ = depth_fit(shapes, torch.tensor([1, 0, 1]), per_class)
    assert right == pytest.approx(1.0, abs=1e-6)
    assert wrong < flat < right
    assert depth_fit(-shapes, torch.arange(3), per_class)[0] == pytest.approx(-1.0, abs=1e-6)
