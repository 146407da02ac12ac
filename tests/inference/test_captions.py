"""Text under tiles."""

import pytest

from threedgp.inference.captions import caption_strips


def test_text_is_there_and_inside():
    strips = caption_strips(["bus, seed 3", ""], 120)
    assert strips.shape[0] == 2
    assert strips.shape[1::2] == (3, 120)
    assert strips[0].max() > 150
    assert strips[1].max() == 0
    assert strips[0, :, :, -2:].max() == 0


def test_one_size_for_all_so_that_tiles_stay_equal():
    strips = caption_strips(["a", "a much longer caption than the other"], 90)
    assert strips[1].float().mean() > strips[0].float().mean()


@pytest.mark.parametrize("width", [1, 8, 16, 40])
def test_what_does_not_fit_is_cut(width):
    strips = caption_strips(["a very long name of a class, seed 123456"], width)
    assert strips.shape[3] == width


def test_any_script_draws_something():
    assert caption_strips(["Katze 猫 🐈 \n newline"], 200).shape[3] == 200
