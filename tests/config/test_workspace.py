"""The workspace finds data, runs and renders without a path, and says what to do when it cannot."""

from __future__ import annotations

import pytest

from threedgp.config.workspace import Workspace
from threedgp.errors import DataError, UsageError


def test_given_folder_beats_environment_beats_current(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.delenv("THREEDGP_WORKSPACE", raising=False)
    assert Workspace.find().root == tmp_path / "a"
    monkeypatch.setenv("THREEDGP_WORKSPACE", str(tmp_path / "b"))
    assert Workspace.find().root == tmp_path / "b"
    assert Workspace.find(tmp_path / "c").root == tmp_path / "c"
    with pytest.raises(UsageError, match="missing"):
        Workspace.find(tmp_path / "missing")


def test_the_only_data_set_is_the_default(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(DataError, match="3dgp data demo"):
        workspace.dataset()
    (tmp_path / "data" / "pets" / "images").mkdir(parents=True)
    assert workspace.dataset().name == "pets"
    (tmp_path / "data" / "cars").mkdir()
    with pytest.raises(UsageError, match="cars, pets"):
        workspace.dataset()
    with pytest.raises(DataError, match="'pets'"):
        workspace.dataset("pet")


def test_stages_take_the_newest_earlier_one(tmp_path):
    (tmp_path / "data" / "pets").mkdir(parents=True)
    dataset = Workspace(tmp_path).dataset()
    with pytest.raises(DataError, match="images"):
        dataset.prepared()
    for folder in (dataset.images, dataset.selected):
        folder.mkdir()
        assert dataset.photos() == folder
        assert dataset.prepared() == folder
    dataset.merged.mkdir()
    assert dataset.photos() == dataset.selected
    assert dataset.prepared() == dataset.merged
    dataset.resized(64).mkdir()
    dataset.full(64).mkdir()
    assert dataset.sizes() == [64]
