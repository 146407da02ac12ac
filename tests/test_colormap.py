"""The colours of depth."""

import numpy as np

from threedgp.colormap import depth_colormap, depth_table, oklab_to_srgb


def test_lightness_grows_evenly():
    linear = np.where(depth_table() / 255 <= 0.04045, 0, ((depth_table() / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= -1e-4).all()
    assert luminance[0] < 0.02
    assert luminance[-1] > 0.85


def test_no_two_depths_look_alike():
    assert len(np.unique(depth_table(), axis=0)) == 256


def test_values_beyond_are_clipped_and_nan_is_far():
    ends = depth_table()[[0, 255, 0]]
    assert (depth_colormap(np.array([-3.0, 7.0, np.nan])) == ends).all()


def test_oklab_white_and_black():
    assert np.allclose(oklab_to_srgb(np.array([[1.0, 0, 0], [0, 0, 0]])), [[1, 1, 1], [0, 0, 0]], atol=1e-3)
