"""The linear probe recognises separable classes, is at chance on noise, and depth fit rewards the right shape."""

from __future__ import annotations

import pytest
import torch

from threedgp.errors import DataError
from threedgp.metrics.class_scores import class_depth, depth_fit, fit_probe


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
