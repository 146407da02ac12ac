"""The Frechet distance: reference values, streaming, merging, both routes of the matrix root, bad features."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.errors import DataError
from threedgp.metrics import fid
from threedgp.metrics.fid import FeatureStatistics, frechet_distance, require_finite, trace_of_root


def statistics(features, batch=64) -> FeatureStatistics:
    result = FeatureStatistics()
    for part in torch.as_tensor(features).split(batch):
        result.update(part)
    return result


def random_features(count, dims, seed, decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scale = torch.arange(1, dims + 1, dtype=torch.float64) ** -decay
    return (torch.randn(count, dims, generator=generator, dtype=torch.float64) * scale) @ mixing + 3


@pytest.mark.parametrize("case", ["full", "gen_deficient", "both_deficient", "same"])
def test_reference_vectors(golden, case):
    values = golden("fid")
    moments = {}
    for side in ("real", "gen"):
        moments[side] = statistics(values[f"{case}/{side}"], batch=33).moments()
        assert relative_error(moments[side].mean, values[f"{case}/mean_{side}"]) < 1e-12
        assert relative_error(moments[side].cov, values[f"{case}/cov_{side}"]) < 1e-12
    distance = frechet_distance(moments["real"], moments["gen"])
    assert relative_error(distance, values[f"{case}/fid_exact"]) < 1e-9
    assert relative_error(distance, values[f"{case}/fid_reference"]) < 1e-6


def test_equal_sets_have_distance_zero():
    moments = statistics(random_features(50, 20, 0)).moments()
    assert 0 <= frechet_distance(moments, moments) < 1e-9


def test_known_gaussians():
    a = fid.Moments(1000, torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = fid.Moments(1000, torch.tensor([3.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 25.0]).double()))
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-12)


@pytest.mark.parametrize(("real", "generated"), [(400, 300), (400, 64), (400, 20), (64, 400), (400, 1)])
def test_fast_route_equals_the_exact_one(real, generated):
    a, b = statistics(random_features(real, 64, 1)).moments(), statistics(random_features(generated, 64, 2)).moments()
    traces = float(a.cov.trace() + b.cov.trace())
    fast = fid._fast_trace_of_root(a, b, traces)
    assert fast is not None
    assert abs(fast - trace_of_root(a.cov, b.cov)) < 1e-9 * traces


def test_fast_route_declines_what_it_cannot_do_exactly():
    both_singular = [statistics(random_features(30, 64, seed)).moments() for seed in (1, 2)]
    assert fid._fast_trace_of_root(*both_singular, 1.0) is None
    steep = [statistics(random_features(400, 64, seed, decay=5)).moments() for seed in (1, 2)]
    assert fid._fast_trace_of_root(*steep, float(steep[0].cov.trace())) is None
    exact = steep[0].mean.sub(steep[1].mean).square().sum() + steep[0].cov.trace() + steep[1].cov.trace()
    exact -= 2 * trace_of_root(steep[0].cov, steep[1].cov)
    assert frechet_distance(*steep) == pytest.approx(float(exact), rel=1e-12)


def test_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = statistics(random_features(300, 40, 1)).moments(), statistics(random_features(280, 40, 2)).moments()
    assert trace_of_root(a.cov, b.cov) == pytest.approx(linalg.sqrtm((a.cov @ b.cov).numpy()).trace().real, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_do_not_matter(batch):
    features = random_features(100, 8, 3)
    whole, parts = statistics(features, 100).moments(), statistics(features, batch).moments()
    assert relative_error(parts.mean, whole.mean) < 1e-13
    assert relative_error(parts.cov, whole.cov) < 1e-13
    expected = (features - features.mean(0)).T @ (features - features.mean(0)) / 100
    assert relative_error(parts.cov, expected) < 1e-13


def test_merged_parts_equal_the_whole_even_far_from_zero():
    features = random_features(90, 8, 4) + 1e4
    merged = FeatureStatistics()
    for part in (features[:0], features[:20], features[20:21], features[21:]):
        merged.merge(statistics(part))
    whole = statistics(features).moments()
    assert merged.count == 90
    assert relative_error(merged.moments().mean, whole.mean) < 1e-13
    assert relative_error(merged.moments().cov, whole.cov) < 1e-9


def test_state_round_trip():
    original = statistics(random_features(30, 5, 5))
    restored = FeatureStatistics.of(original.state())
    for each in (original, restored):
        each.update(random_features(10, 5, 6))
    assert torch.equal(original.moments().cov, restored.moments().cov)
    assert FeatureStatistics.of(FeatureStatistics().state()).count == 0


def test_non_finite_features_are_refused_by_position():
    features = random_features(20, 4, 7)
    features[13, 2] = torch.nan
    with pytest.raises(DataError, match="image 13 "):
        require_finite(features, range(20))
    with pytest.raises(DataError, match="empty"):
        FeatureStatistics().moments()


def test_different_dimensions_are_refused():
    with pytest.raises(DataError, match="4 and 5 dimensions"):
        frechet_distance(statistics(random_features(9, 4, 0)).moments(), statistics(random_features(9, 5, 0)).moments())
