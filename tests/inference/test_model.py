"""A trained model and what its training set knows about it."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from tests.inference.tiny import tiny_run
from threedgp.errors import CheckpointError, DataError, UsageError
from threedgp.inference.latents import Sample
from threedgp.inference.model import TrainedModel, data_facts
from threedgp.processes import choose_device
from threedgp.runs.checkpoint import save_checkpoint


def test_loading(tmp_path):
    run = tiny_run(tmp_path, name="a", nimg=12_500)
    model = TrainedModel.load(run.checkpoints()[-1], "cpu")
    assert (model.run, model.checkpoint, model.kimg) == ("a", "000012500", "12.5")
    assert not model.generator.training
    assert not any(parameter.requires_grad for parameter in model.generator.parameters())
    assert model.caption(Sample(3, 1)) == "class 1, seed 3"
    model.class_names = ["ant", "bee", "cat", "dog"]
    assert model.caption(Sample(3, 1)) == "bee, seed 3"
    assert model.caption(Sample(3)) == "seed 3"
    both = model.canonical_cameras([Sample(0, 0), Sample(1, 1)], "mean").to_vector()
    assert torch.equal(both[0], both[1])
    own = model.canonical_cameras([Sample(0, 0), Sample(1, 1)], "posterior").to_vector()
    assert not torch.allclose(own[0], own[1])


def test_a_checkpoint_without_average(tmp_path):
    run = tiny_run(tmp_path)
    path = save_checkpoint(run.checkpoints_folder, {"D": {"a": torch.zeros(1)}}, {}, nimg=9000, profile=run.profile)
    with pytest.raises(CheckpointError, match="no averaged generator"):
        TrainedModel.load(path, "cpu")


def test_facts_from_folder_and_zip(tmp_path):
    rows = [["a.png", [0.1, 1.5, 0.0]], ["b.png", [0.3, 1.6, 0.0]]]
    content = json.dumps({"labels": [["a.png", 0], ["b.png", 1]], "classes": ["x", "y"], "camera_angles": rows})
    (tmp_path / "dataset.json").write_text(content)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("dataset.json", content)
        for name in ("a.png", "b.png"):
            archive.writestr(name, b"never read")
    for path in (tmp_path, tmp_path / "set.zip"):
        names, angles = data_facts(path, 2)
        assert names == ["x", "y"]
        assert torch.equal(angles, torch.tensor([row for _, row in rows]))
    assert data_facts(tmp_path, 3)[0] is None  # names of other classes than the model's


def test_a_set_without_facts_and_a_broken_one(tmp_path):
    assert data_facts(tmp_path, 2) == (None, None)
    (tmp_path / "dataset.json").write_text('{"labels": 7}')
    with pytest.raises(DataError, match=r"dataset\.json"):
        data_facts(tmp_path, 2)


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device(None).type in ("cpu", "cuda")
    for name in ("toaster", "cuda:99", ""):
        with pytest.raises(UsageError, match="--device"):
            choose_device(name)
