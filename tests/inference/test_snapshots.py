"""Pictures of a model while it trains."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.inference.tiny import tiny
from threedgp.errors import UsageError
from threedgp.inference.snapshots import sample_sheet, short_video


@pytest.mark.parametrize(("kind", "classes", "tiles"), [("3dgp", 4, 8), ("epigraf", 0, 8), ("stylegan2", 0, 4)])
def test_sheet_has_a_row_for_each_class_and_its_depth(kind, classes, tiles):
    profile, generator = tiny(kind)
    assert profile.data.num_classes == classes
    sheet = sample_sheet(generator, profile, columns=3)
    assert sheet.size == (3 * 18 + 2, tiles * 18 + 2)


def test_sheet_is_the_same_every_time_and_changes_nothing():
    profile, generator = tiny()
    generator.train()
    state = torch.get_rng_state()
    first = np.asarray(sample_sheet(generator, profile, columns=2))
    assert generator.training
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(17)
    assert np.array_equal(first, np.asarray(sample_sheet(generator, profile, columns=2)))
    assert not np.array_equal(first, np.asarray(sample_sheet(generator, profile, columns=2, seed=5)))
    generator.eval()


def test_rows_spread_over_many_classes():
    profile, generator = tiny("3dgp", "data.num_classes=40")
    assert sample_sheet(generator, profile, columns=1).size == (20, 2 * 16 * 18 + 2)
    assert sample_sheet(generator, profile, columns=1, rows=2).size == (20, 4 * 18 + 2)


def test_short_video(tmp_path):
    profile, generator = tiny()
    short_video(generator, profile, tmp_path / "a.mp4", frames=5)
    shown = iio.imread(tmp_path / "a.mp4")
    assert shown.shape == (5, 2 * 18 + 2, 2 * 34 + 2, 3)  # colour and depth of 2x2 samples
    assert iio.immeta(tmp_path / "a.mp4")["fps"] == 25


def test_short_video_of_a_2d_model(tmp_path):
    profile, generator = tiny("stylegan2")
    with pytest.raises(UsageError, match="3D model"):
        short_video(generator, profile, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
