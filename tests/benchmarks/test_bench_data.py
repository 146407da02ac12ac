"""The benchmark compares like with like: the same pictures come out of both ways."""

import numpy as np
import pytest
from PIL import Image

from threedgp.benchmarks.bench_data import _bench_resize, _make_photos, bench_data, make_photo, plain_resize, psnr
from threedgp.data.resize import square_image
from threedgp.errors import DataError
from threedgp.progress import NULL_PROGRESS


def test_photos_are_the_same_every_time_and_not_flat():
    first, again, other = (np.asarray(make_photo(seed, 60, 80)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 10


def test_psnr():
    black, grey = np.zeros((4, 4), np.uint8), np.full((4, 4), 51, np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))


def test_the_plain_way_gives_the_same_pixels(tmp_path):
    photo = make_photo(0, 90, 120)
    photo.save(tmp_path / "a.png")
    plain_resize(32, (tmp_path / "a.png", tmp_path / "b.png"))
    with Image.open(tmp_path / "b.png") as plain:
        assert np.array_equal(plain, square_image(photo, 32))


def test_every_way_is_timed_and_judged(tmp_path):
    photos = _make_photos(tmp_path / "photos", 300, 400, 10, NULL_PROGRESS)
    timings = list(_bench_resize(photos, tmp_path / "out", "400x300", 32, 1, 10, repeats=2))
    assert [timing.stage for timing in timings] == ["resize", "resize --fast"]
    assert all(timing.images_per_second > 0 and timing.ratio > 0 for timing in timings)
    assert timings[0].psnr == float("inf")
    assert 45 < timings[1].psnr < 100


def test_a_missing_scratch_folder_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        next(bench_data(scratch=tmp_path / "no"))
