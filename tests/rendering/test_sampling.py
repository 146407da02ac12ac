"""Sample positions: reference vectors, order, coverage."""

from __future__ import annotations

import pytest
import torch

from tests.tools import relative_error
from threedgp.rendering.sampling import importance_samples, inverse_cdf_samples, stratified_samples

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 2e-6)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("marcher", ["classical", "mip"])
def test_sample_positions_match_the_reference(golden, marcher, dtype, tolerance):
    arrays = golden("raymarch")
    jitter, s_coarse, weights, u = (
        torch.from_numpy(arrays[f"sampling_{marcher}/{key}"]).to(dtype)
        for key in ("jitter", "s_coarse", "weights", "u")
    )
    assert relative_error(stratified_samples(jitter[..., 0], marcher), s_coarse[..., 0]) < tolerance
    fine = importance_samples(s_coarse[..., 0], weights[..., 0], u.reshape(2, 10, -1), marcher)
    assert relative_error(fine[..., None], arrays[f"sampling_{marcher}/s_fine"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_inverse_cdf_matches_the_reference(golden, dtype, tolerance):
    arrays = golden("raymarch")
    bins, weights, u = (torch.from_numpy(arrays[f"pdf/{key}"]).to(dtype) for key in ("bins", "weights", "u"))
    assert relative_error(inverse_cdf_samples(bins, weights, u), arrays["pdf/samples"]) < tolerance
    even = torch.linspace(0, 1, u.shape[-1], dtype=dtype).expand_as(u)
    # u = 1 falls beyond or before the last entry depending on its rounding: only the interior is well-conditioned.
    samples = inverse_cdf_samples(bins, weights, even)
    assert relative_error(samples[:, :-1], arrays["pdf/samples_det"][:, :-1]) < tolerance
    assert ((samples >= bins[:, :1]) & (samples <= bins[:, -1:] + 1e-6)).all()


@pytest.mark.parametrize("marcher", ["classical", "mip"])
def test_strata_are_ascending_and_start_in_the_interval(marcher):
    jitter = torch.rand(50, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = stratified_samples(jitter, marcher)
    assert (s.diff(dim=-1) >= 0).all()
    assert (s >= 0).all()
    assert (s[:, :-1] <= 1).all()
    assert (s[:, -1] <= (1.0 if marcher == "classical" else 1 + 1 / 8)).all()


def test_samples_follow_the_density():
    bins = torch.linspace(0, 1, 5, dtype=torch.float64)[None]
    weights = torch.tensor([[1.0, 0.0, 2.0, 1.0]], dtype=torch.float64)
    u = torch.rand(1, 20000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = torch.histc(inverse_cdf_samples(bins, weights, u), bins=4, min=0, max=1) / 20000
    torch.testing.assert_close(share, torch.tensor([0.25, 0, 0.5, 0.25], dtype=torch.float64), rtol=0, atol=0.01)


def test_fine_samples_gather_at_the_surface_and_carry_no_gradient():
    s = stratified_samples(torch.full((1, 16), 0.5))
    weights = torch.zeros(1, 16, requires_grad=True)
    weights = weights + torch.nn.functional.one_hot(torch.tensor([7]), 16)
    u = (torch.arange(32)[None] + 0.5) / 32
    fine = importance_samples(s, weights, u)
    assert not fine.requires_grad
    assert ((fine - s[:, 7:8]).abs() < 1 / 15).float().mean() > 0.9


@pytest.mark.parametrize("intervals", [8, 7])
def test_a_single_ray_works_with_the_mip_marcher(intervals):
    s = stratified_samples(torch.full((1, 8), 0.5), "mip")
    fine = importance_samples(s, torch.rand(1, intervals), torch.rand(1, 6), "mip")
    assert fine.shape == (1, 6)
    assert fine.isfinite().all()
