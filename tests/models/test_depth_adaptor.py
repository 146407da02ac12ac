"""The depth adaptor: reference vectors, choice of candidates, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tools import relative_error
from threedgp.config.schema import DepthAdaptorConfig
from threedgp.models.depth_adaptor import DepthAdaptor

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 2e-6)]


def reference_adaptor(arrays, variant: str, **options) -> DepthAdaptor:
    kernel, hidden, layers, near, far, fraction, bias, start_p, _ = arrays[f"{variant}/cfg"].tolist()
    config = DepthAdaptorConfig(
        kernel_size=int(kernel),
        hidden_dim=int(hidden),
        layers=int(layers),
        near_plane_offset_max_fraction=fraction,
        near_plane_offset_bias=bias,
        selection_start_p=start_p,
        **options,
    )
    adaptor = DepthAdaptor(near, far, config)
    prefix = f"{variant}/param/"
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
    adaptor.load_state_dict({k: v for k, v in state.items() if "resample_filter" not in k}, strict=True)
    return adaptor


def small_adaptor(**options) -> DepthAdaptor:
    torch.manual_seed(0)
    return DepthAdaptor(0.75, 1.25, DepthAdaptorConfig(kernel_size=3, hidden_dim=3, layers=2, **options)).double()


def small_depth(batch: int = 2, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.75 + 0.5 * torch.rand(batch, 1, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("variant", ["a", "b", "none"])
def test_values_match_the_reference(golden, variant, dtype, tolerance):
    arrays = golden("depth_adaptor")
    adaptor = reference_adaptor(arrays, variant).to(dtype)
    depth = torch.from_numpy(arrays[f"{variant}/depth"]).to(dtype)
    offset = adaptor.near_plane_offset().detach().expand(3)
    assert relative_error(offset, arrays[f"{variant}/near_plane_offset"]) < tolerance
    assert relative_error(adaptor.candidates(depth).detach(), arrays[f"{variant}/candidates"]) < tolerance
    for strategy in ("last", "mean", "random"):
        adaptor = reference_adaptor(arrays, variant, out_strategy=strategy).to(dtype).eval()
        assert relative_error(adaptor(depth).detach(), arrays[f"{variant}/eval_{strategy}"]) < tolerance


@pytest.mark.parametrize("variant", ["a", "b"])
def test_selection_probabilities_match_the_reference(golden, variant):
    arrays = golden("depth_adaptor")
    adaptor = reference_adaptor(arrays, variant)
    anneal_kimg = float(arrays[f"{variant}/cfg"][-1])
    for kimg, expected in zip(arrays[f"{variant}/kimg"], arrays[f"{variant}/selection_probs"], strict=True):
        adaptor.set_progress(min(float(kimg) / anneal_kimg, 1.0))
        np.testing.assert_allclose(adaptor.selection_probabilities().numpy(), expected, atol=1e-6)
        assert adaptor.selection_probabilities().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_training_picks_one_candidate_per_sample():
    adaptor, depth = small_adaptor(), small_depth(3)
    candidates = adaptor.candidates(depth)
    index = torch.tensor([2, 0, 1])
    torch.testing.assert_close(adaptor(depth, index=index), candidates[[0, 1, 2], index])
    torch.testing.assert_close(adaptor.eval()(depth), candidates[:, -1])
    torch.testing.assert_close(adaptor(depth, index=index), candidates[:, -1])


def test_the_random_choice_follows_its_probabilities_and_generator():
    adaptor = small_adaptor()
    adaptor.set_progress(1.0)
    generator = torch.Generator().manual_seed(0)
    share = torch.bincount(adaptor.draw_index(20000, generator), minlength=3) / 20000
    torch.testing.assert_close(share, adaptor.selection_probabilities().float(), atol=0.015, rtol=0)
    depth = small_depth(8)
    first, again = (adaptor(depth, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_without_hidden_layers_only_the_scaled_depth_is_left():
    adaptor = DepthAdaptor(0.75, 1.25, DepthAdaptorConfig(layers=0)).double()
    depth = small_depth()
    near = 0.75 + adaptor.near_plane_offset()
    torch.testing.assert_close(adaptor(depth), 2 * (depth - near) / (1.25 - near) - 1)


@pytest.mark.parametrize("strategy", ["random", "mean"])
def test_derivatives(strategy):
    adaptor, depth = small_adaptor(out_strategy=strategy), small_depth()
    offset = adaptor.near_plane_offset_raw

    def function(depth, offset):
        return torch.func.functional_call(
            adaptor, {"near_plane_offset_raw": offset}, (depth,), {"index": torch.tensor([2, 1])}
        )

    assert torch.autograd.gradcheck(function, (depth.requires_grad_(), offset))
