"""The training set keeps image, depth, label, angles and embedding aligned and reports every problem at start-up."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.tools import relative_error
from threedgp.data.dataset import TrainingSet, collate
from threedgp.errors import DataError

GOLDEN_PATHS = ["b/2.png", "a/9.png", "a-1/10.png", "a/10.png", "B/1.png", "b/10.png", "a/9_x.png"]


def write_embeddings(folder, rows, row_of):
    folder.mkdir(exist_ok=True)
    rows = np.asarray(rows, dtype=np.float32)
    rows.tofile(folder / "m.memmap")
    (folder / "m_desc.json").write_text(json.dumps({"shape": list(rows.shape), "filepath_to_idx": row_of}))
    return folder / "m.memmap"


def write_set(root, count=6, size=16, classes=2, depth=True):
    generator = np.random.default_rng(0)
    labels = []
    for index in range(count):
        name = f"c{index % classes}/{index}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name)
        if depth:
            pixels = generator.integers(0, 65536, (size, size)).astype(np.uint16)
            Image.fromarray(pixels).save(root / f"c{index % classes}/{index}_depth.png")
        labels.append([name, index % classes])
    names = [f"c{index}" for index in range(classes)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "classes": names}))
    return [name for name, _ in labels]


@pytest.fixture
def golden_set(golden, tmp_path):
    data = golden("dataset")
    labels, angles, row_of = [], [], {}
    rows = np.zeros((7, 5), dtype=np.float32)
    for index, name in enumerate(GOLDEN_PATHS):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data["image"][index].astype(np.uint8)).save(path)
        depth_path = path.with_name(path.stem + "_depth.png")
        if data["is8"][index]:
            Image.fromarray(data["depth8"][index].astype(np.uint8)).save(depth_path)
        else:
            Image.fromarray(data["depth"][index].astype(np.uint16)).save(depth_path)
        labels.append([name, int(data["label"][index])])
        angles.append([name, data["camera_angles"][index].tolist()])
        row_of[name] = int(data["embedding_row"][index])
        rows[row_of[name]] = data["embedding"][index]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": labels, "camera_angles": angles}))
    return data, tmp_path / "set", write_embeddings(tmp_path / "embeddings", rows, row_of)


@pytest.mark.parametrize("packed", [False, True])
def test_items_match_the_reference(golden_set, tmp_path, packed):
    data, path, embeddings = golden_set
    if packed:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in sorted(path.rglob("*.*")):
                archive.write(file, f"top/{file.relative_to(path)}")
        path = tmp_path / "set.zip"
    items = TrainingSet(
        path, resolution=8, num_classes=3, embeddings=embeddings, embedding_dim=5, use_angles=True, mirror=True
    )
    assert len(items) == 14
    batch = collate([items[index] for index in range(14)])
    assert [GOLDEN_PATHS.index(items.names[index % 7]) for index in range(14)] == data["raw_idx"].tolist()
    assert (batch.image.numpy() == data["item/image"]).all()
    assert (batch.depth.numpy() == data["item/depth"]).all()
    assert relative_error(batch.label, data["item/label"]) == 0
    assert relative_error(batch.camera_angles, data["item/camera_angles"]) < 1e-6
    assert relative_error(batch.embedding, data["item/embedding"]) == 0
    assert relative_error(batch.image / 127.5 - 1, data["item/image_scaled"]) < 1e-6
    assert relative_error(batch.depth / 65536 * 2 - 1, data["item/depth_scaled"]) < 1e-6
    assert relative_error(items.all_angles().double().mean(0), data["mean_camera"][:3]) < 1e-6


def test_a_size_limit_keeps_the_reference_subset(golden_set):
    data, path, _ = golden_set
    everything = TrainingSet(path, resolution=8, mirror=False).names
    some = TrainingSet(path, resolution=8, mirror=False, max_images=4, seed=int(data["subset/seed"]))
    assert some.names == [everything[row] for row in data["subset/sorted_position"]]
    assert len(TrainingSet(path, resolution=8, mirror=True, max_images=4)) == 8


def test_unused_parts_cost_nothing(tmp_path):
    write_set(tmp_path, depth=False)
    item = TrainingSet(tmp_path, resolution=16, use_depth=False, mirror=False)[0]
    assert item.depth.shape == (1, 1, 1)
    assert item.label.shape == item.embedding.shape == (0,)


def test_cached_items_equal_fresh_ones(tmp_path):
    write_set(tmp_path)
    cached, fresh = TrainingSet(tmp_path, resolution=16), TrainingSet(tmp_path, resolution=16, cache_bytes=0)
    for index in [0, 0, 7, 3, 9]:
        assert all((a == b).all() for a, b in zip(cached[index], fresh[index], strict=True))


def test_only_a_set_that_fits_whole_and_in_every_process_is_cached(tmp_path, monkeypatch):
    names = write_set(tmp_path)
    bytes_of_set = len(names) * 16 * 16 * 7

    def reads(cache_bytes):
        items, names = TrainingSet(tmp_path, resolution=16, cache_bytes=cache_bytes), []
        read = items.source.read
        monkeypatch.setattr(items.source, "read", lambda name: names.append(name) or read(name))
        for _ in range(3):
            items[0]
        return len(names)

    once, each_time = 2, 6  # the picture and its depth map
    assert (reads(bytes_of_set), reads(bytes_of_set - 1)) == (once, each_time)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (reads(2 * bytes_of_set), reads(bytes_of_set)) == (once, each_time)


def test_all_problems_are_reported_at_once(tmp_path):
    names = write_set(tmp_path)
    (tmp_path / "c0" / "0_depth.png").unlink()
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["labels"].pop()
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    embeddings = write_embeddings(tmp_path / "e", np.zeros((5, 4)), {name: row for row, name in enumerate(names[:5])})
    with pytest.raises(DataError) as caught:
        TrainingSet(tmp_path, resolution=32, num_classes=3, embeddings=embeddings, embedding_dim=8)
    message = str(caught.value)
    for words in (
        "16x16", "3dgp data resize -s 32", "1 of 6 images have no depth map: c0/0.png", "no label", "c1/5.png",
        "2 classes", "data.num_classes=3", "data.embedding_dim=8", "no embedding",
    ):  # fmt: skip
        assert words in message


def test_labels_needed_but_absent(tmp_path):
    write_set(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="no labels"):
        TrainingSet(tmp_path, resolution=16, num_classes=2)


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": [1, 2]}', '{"labels": 3}'])
def test_damaged_description(tmp_path, text):
    write_set(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        TrainingSet(tmp_path, resolution=16, num_classes=2)


def test_non_finite_embeddings_are_named(tmp_path):
    names = write_set(tmp_path)
    rows = np.zeros((6, 4))
    rows[4, 2] = np.nan
    embeddings = write_embeddings(tmp_path / "e", rows, {name: row for row, name in enumerate(names)})
    items = TrainingSet(tmp_path, resolution=16, embeddings=embeddings, embedding_dim=4)
    with pytest.raises(DataError, match=r"c0/4\.png"):
        items.require_finite_embeddings()


@pytest.mark.parametrize("damage", ["short", "rows", "json", "missing"])
def test_damaged_embeddings(tmp_path, damage):
    names = write_set(tmp_path)
    rows = {name: row for row, name in enumerate(names)}
    path = write_embeddings(tmp_path / "e", np.zeros((6, 4)), rows | ({names[0]: 6} if damage == "rows" else {}))
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "json":
        path.with_name("m_desc.json").write_text("{}")
    elif damage == "missing":
        path.unlink()
    with pytest.raises(DataError, match="embed"):
        TrainingSet(tmp_path, resolution=16, embeddings=path, embedding_dim=4)


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "c1" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    items = TrainingSet(tmp_path, resolution=16, mirror=False)
    with pytest.raises(DataError, match=r"c1/3\.png"):
        items[items.names.index("c1/3.png")]
