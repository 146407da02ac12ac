"""Class scores: the judge learns from real images and is asked about others, straight and turned."""

from __future__ import annotations

import pytest
import torch

from tests.training.small import tiny_profile
from tests.training.tiny_runs import write_training_set
from threedgp.data.dataset import TrainingSet
from threedgp.errors import UsageError
from threedgp.files import read_json, write_json
from threedgp.metrics import class_scores
from threedgp.metrics.scored_samples import Sampler
from threedgp.models.build import build_generator


@pytest.fixture
def dataset(tmp_path):
    return TrainingSet(write_training_set(tmp_path / "set"), resolution=16, num_classes=4)


def score_classes(*arguments, **options):
    return class_scores.score_classes(*arguments, steps=4, **options)


def make_sampler(dataset, *overrides):
    profile = tiny_profile(*overrides)
    torch.manual_seed(0)
    return Sampler(build_generator(profile).eval(), profile, dataset)


def test_every_sample_is_judged_from_three_sides(dataset):
    result = score_classes(make_sampler(dataset), dataset, count=10)
    line = result.line("000000016")
    assert 0 <= line["results"]["class_accuracy"] <= 1
    assert -1 <= line["results"]["class_depth"] <= 1
    assert line["results"]["own_distance"] > 0
    assert line["chance"] == 0.25
    assert line["num_real"] == len(dataset.names) / 4
    assert set(line["results"]) == {
        "class_accuracy", "class_accuracy_turned", "class_accuracy_real", "own_distance", "own_distance_real",
        "own_variety",
        "class_depth", "class_depth_flat",
    }  # fmt: skip


def test_the_same_samples_get_the_same_scores_and_turning_changes_them(dataset):
    sampler = make_sampler(dataset)
    assert score_classes(sampler, dataset, count=8) == score_classes(sampler, dataset, count=8)
    straight, left, right = sampler.turned_views(range(4), [0.0, -0.4, 0.4])
    assert (straight[0] != left[0]).any()
    assert (left[0] != right[0]).any()
    again = torch.cat([sampler.turned_views([number], [0.0])[0][1] for number in range(4)])
    assert torch.allclose(again, straight[1], atol=1e-5)


def test_a_judge_of_another_set_compares_with_all_real_images(dataset, tmp_path):
    other = TrainingSet(write_training_set(tmp_path / "other"), resolution=16, num_classes=4)
    assert score_classes(make_sampler(dataset), dataset, learn_from=other, count=8).settings["num_real"] == len(
        dataset.names
    )
    three = TrainingSet(tmp_path / "other", resolution=16)
    with pytest.raises(UsageError, match=r"other must have the classes of the training set .*set"):
        score_classes(make_sampler(dataset), dataset, learn_from=three, count=8)
    write_json(
        tmp_path / "other" / "dataset.json", read_json(tmp_path / "other" / "dataset.json") | {"classes": list("dcba")}
    )
    named = TrainingSet(tmp_path / "other", resolution=16, num_classes=4)
    with pytest.raises(UsageError, match="same names in the same order"):
        score_classes(make_sampler(dataset), dataset, learn_from=named, count=8)


def test_a_model_without_classes_is_refused(tmp_path):
    dataset = TrainingSet(write_training_set(tmp_path / "set"), resolution=16)
    with pytest.raises(UsageError, match="classes"):
        score_classes(make_sampler(dataset, "data.num_classes=0"), dataset)


def test_depth_fit_is_one_for_the_class_shape_and_blind_to_scale():
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8)
    shapes = torch.stack([rows, rows.T, (rows + rows.T).square()])  # [3, 8, 8]
    labels = torch.arange(30) % 3
    per_class = class_scores.class_depth(shapes[labels] * 5 + 2, labels, 3)
    right, flat = class_scores.depth_fit(shapes * 0.1 + 7, torch.arange(3), per_class)
    wrong, _ = class_scores.depth_fit(shapes, torch.tensor([1, 0, 1]), per_class)
    assert right == pytest.approx(1.0, abs=1e-6)
    assert wrong < flat < right
    assert class_scores.depth_fit(-shapes, torch.arange(3), per_class)[0] == pytest.approx(-1.0, abs=1e-6)


def test_variety_is_what_remains_within_the_classes():
    labels = torch.arange(40) % 4
    centres, spread = torch.randn(4, 3) * 100, torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    alike, varied = class_scores._variety(centres[labels], labels, 4), class_scores._variety(spread, labels, 4)
    assert alike == 0
    assert class_scores._variety(centres[labels] + 2 * spread, labels, 4) == pytest.approx(4 * varied, rel=1e-4)
    assert class_scores._variety(spread[:9], labels[:9], 9) > 0  # a class of one and empty ones are left out
