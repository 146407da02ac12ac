"""Tiles, panels and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from threedgp.colormap import depth_table
from threedgp.errors import UsageError
from threedgp.inference.grid import (
    color_depth,
    image_columns,
    make_grid,
    panels,
    parse_panels,
    save_picture,
    to_uint8,
    video_columns,
)
from threedgp.inference.sampler import Views


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_grid_of_the_reference(golden, columns):
    values = golden("inference")
    grid = make_grid(torch.from_numpy(values["grid/images"]), columns)
    assert np.array_equal(grid, values[f"grid/nrow{columns}"])
    assert np.array_equal(to_uint8(grid), values[f"grid/nrow{columns}_uint8_video"])


def test_one_channel_becomes_grey_and_short_rows_stay_short():
    grid = make_grid(torch.ones(2, 1, 4, 6), 9)
    assert grid.shape == (3, 8, 18)
    assert grid.sum() == 2 * 3 * 4 * 6


def test_columns():
    assert [video_columns(count) for count in (1, 2, 4, 5, 9, 16)] == [1, 2, 2, 3, 3, 4]
    assert [image_columns(count, 16) for count in (1, 3, 16)] == [1, 3, 4]


def test_near_is_bright():
    colors = color_depth(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3))[0, :, 0].T  # [3 pixels, rgb]
    assert colors[0].tolist() == depth_table()[255].tolist()
    assert colors[2].tolist() == depth_table()[0].tolist()


def test_panels_in_the_order_asked_for():
    assert parse_panels("both") == ["rgb", "depth"]
    assert parse_panels(" Depth,rgb,depth") == ["depth", "rgb"]
    views = Views(torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
    adapted, rgb = panels(views, ["adapted", "rgb"])
    assert (rgb == 127).all()
    assert adapted[0, :, 0, 0].tolist() == depth_table()[0].tolist()


@pytest.mark.parametrize("text", ["", "rbg", "rgb,normals", ","])
def test_unknown_panels(text):
    with pytest.raises(UsageError, match="choose from rgb"):
        parse_panels(text)


def test_pictures_on_disk(tmp_path):
    picture = torch.from_numpy(np.random.RandomState(0).randint(0, 255, (3, 24, 40), dtype=np.uint8))
    save_picture(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), picture.permute(1, 2, 0))
    save_picture(tmp_path / "a.jpg", picture)
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.format == "JPEG"
        assert np.abs(np.asarray(file).astype(int) - picture.permute(1, 2, 0).numpy()).mean() < 4  # quality 95
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]


def test_pictures_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match=r"\.png, \.jpg"):
        save_picture(tmp_path / "a.tif", torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(UsageError, match="Lower --size"):
        save_picture(tmp_path / "a.png", torch.zeros(3, 1, 70_000, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())
