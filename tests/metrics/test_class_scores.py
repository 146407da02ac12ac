"""Class scores: the judge is trained on real images, asks about samples straight and turned, and reuses embeddings."""

from __future__ import annotations

import pytest
import torch

from tests.training.small import tiny_profile
from tests.training.tiny_runs import write_training_set
from threedgp.data.dataset import TrainingSet
from threedgp.errors import UsageError
from threedgp.metrics.class_scores import score_classes
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
