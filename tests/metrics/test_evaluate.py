"""The pipeline on image folders: equal to torch-fidelity, whatever the batch, the processes, a crash or the cache."""

from __future__ import annotations

import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from tests.metrics.sets import middle_extractor, pool_extractor, write_images
from tests.pretrained.filled import filled
from threedgp import files
from threedgp.config.metric_names import parse_metric
from threedgp.data.pictures import Pictures
from threedgp.errors import DataError, ThreeDGPError, UsageError
from threedgp.metrics import bank as bank_module
from threedgp.metrics import evaluate as evaluate_module
from threedgp.metrics.bank import StatisticsCache, real_key
from threedgp.metrics.evaluate import Evaluator
from threedgp.metrics.fid import frechet_distance
from threedgp.metrics.real_set import RealSet
from threedgp.pretrained.embedder import FeatureExtractor
from threedgp.pretrained.inception import InceptionV3
from threedgp.processes import World
from threedgp.progress import Progress

OFFLINE = [parse_metric(name) for name in ("fd_efflite0_40_full", "kd_efflite0_40_full", "pr_efflite0_40_3_full")]


class Notes(Progress):
    def __init__(self):
        self.texts, self.labels = [], []

    def start(self, label, total=None, unit="images", done=0):
        self.labels.append(label)
        self.done = done

    def note(self, text):
        self.texts.append(text)


@pytest.fixture
def folders(tmp_path):
    return write_images(tmp_path / "real", 50, 1), write_images(tmp_path / "fake", 40, 2)


def score(folders, specs=OFFLINE, extractor=pool_extractor, **options):
    real, fake = folders
    evaluator = Evaluator(lambda name: extractor(), **{"batch": 16} | options)
    return evaluator.score_images(specs, lambda count: Pictures(fake, limit=count), RealSet(real))


def numbers(results):
    return {name: value for result in results for name, value in result.results.items()}


@pytest.mark.slow
def test_equal_to_torch_fidelity_with_identical_weights(tmp_path, monkeypatch):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    network = filled(InceptionV3, seed=0, gain=2)
    torch.save(network.state_dict(), tmp_path / "filled.pth")
    folders = write_images(tmp_path / "real", 8, 1), write_images(tmp_path / "fake", 6, 2)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[1]),
        input2=str(folders[0]),
        fid=True,
        feature_layer_fid="768",  # torch-fidelity's eigenvalues at 2048 would take half a minute
        samples_shuffle=False,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(tmp_path / "filled.pth"),
    )
    # torch-fidelity divides covariances by N-1 where the definition has N: the only difference, undone here.
    moments = []

    def with_their_divisor(real, generated):
        moments.extend(replace(m, cov=m.cov * m.count / (m.count - 1)) for m in (real, generated))
        return frechet_distance(*moments)

    monkeypatch.setattr(evaluate_module, "frechet_distance", with_their_divisor)
    ours = numbers(score(folders, [parse_metric("fid6_full")], extractor=lambda: middle_extractor(network)))
    assert ours["fid6_full"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert [m.count for m in moments] == [8, 6]


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_the_batch_size_changes_nothing(folders, batch):
    expected = numbers(score(folders, batch=16))
    assert numbers(score(folders, batch=batch)) == pytest.approx(expected, rel=1e-9)


def test_results_say_how_they_were_made(folders):
    result = score(folders)[0]
    assert result.label == "Frechet distance (efficientnet_lite0)"
    line = result.line("000180000")
    assert line["metric"] == "fd_efflite0_40_full"
    assert line["checkpoint"] == "000180000"
    expected = {"extractor": "tf_efficientnet_lite0", "num_real": 50, "num_gen": 40, "seed": 0, "num_processes": 1}
    assert expected.items() <= line.items()
    json.dumps(line)


def _work(rank, meeting, folders, queue, cache=None):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    results = score(folders, batch=7, world=World(rank, 2, torch.device("cpu")), cache=cache)
    queue.put((numbers(results), [result.problem for result in results]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def in_two_processes(folders, meeting, cache=None):
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(rank, meeting, folders, queue, cache)) for rank in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get() for _ in workers]
    for worker in workers:
        worker.join(60)
    return answers


def test_two_processes_give_the_same_values(folders, tmp_path):
    expected = numbers(score(folders, batch=7))
    cache = StatisticsCache(tmp_path / "cache")
    for meeting in ("computed", "stored"):
        for answer, _ in in_two_processes(folders, tmp_path / meeting, cache):
            assert answer == pytest.approx(expected, rel=1e-9)


def test_two_processes_cope_with_one_image(folders, tmp_path):
    one = write_images(tmp_path / "one", 1, 3)
    first, second = in_two_processes((one, folders[1]), tmp_path / "meeting")
    assert first == second
    assert "at least 2 images" in first[1][0]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(folders, tmp_path, monkeypatch):
    expected = numbers(score(folders))
    cache = StatisticsCache(tmp_path / "cache")
    counted = itertools.count()
    update = bank_module.Bank.update

    def interrupted(self, present, images):
        if next(counted) == 2:
            raise KeyboardInterrupt
        update(self, present, images)

    monkeypatch.setattr(bank_module.Bank, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(folders, cache=cache)
    seen = []

    def recorded(self, present, images):
        seen.extend(present)
        update(self, present, images)

    monkeypatch.setattr(bank_module.Bank, "update", recorded)
    assert numbers(score(folders, cache=cache, batch=3)) == pytest.approx(expected, rel=1e-9)
    assert seen == list(range(16, 40))
    assert not list((tmp_path / "cache").glob("unfinished-*"))


def test_parts_of_any_processes_are_continued_and_overlaps_passed_over(folders, tmp_path):
    images, parts = Pictures(folders[0]), tmp_path / "parts"

    def bank_of(numbers):
        bank = bank_module.Bank(pool_extractor(), 50, ["rows"])
        for groups in images.batches([numbers] if numbers else []):
            for present, pixels in groups:
                bank.update(present, pixels)
        return bank

    for numbers in (range(0, 40, 2), range(1, 30, 2), range(10)):  # the last repeats the first two
        bank = bank_of(list(numbers))
        store = bank_module.Parts(parts, [bank])
        store.covered = bank.seen
        store.save()
    (parts / "part-damaged.safetensors").write_bytes(b"cut off")
    bank = bank_of([])
    progress = Notes()
    bank_module.fill(images, [bank], batch=4, parts=parts, progress=progress)
    whole = bank_of(list(range(50)))
    assert bank.statistics.count == 50
    assert torch.equal(bank.table("rows"), whole.table("rows"))
    assert torch.allclose(bank.statistics.moments().cov, whole.statistics.moments().cov, rtol=1e-12, atol=1e-12)
    assert progress.done == 35


def test_the_cache_notices_every_change(folders, tmp_path):
    cache = StatisticsCache(tmp_path / "cache")
    real, _ = folders

    def labels():
        progress = Notes()
        score(folders, cache=cache, progress=progress)
        return progress.labels

    assert labels() == ["Real images", "Scored images"]
    assert labels() == ["Scored images"]
    write_images(real, 1, 77)  # the same name, other pixels
    assert labels() == ["Real images", "Scored images"]
    (real / "049.png").unlink()
    assert labels() == ["Real images", "Scored images"]
    (real / "000.png").rename(real / "zzz.png")
    assert labels() == ["Real images", "Scored images"]


def test_cache_keys_differ_by_settings(folders):
    real, _ = folders
    variants = [
        Pictures(real),
        Pictures(real, mirror=True),
        Pictures(real, resolution=64),
        Pictures(real, limit=20),
        Pictures(real, limit=20, seed=1),
        Pictures(real, limit=21),
    ]
    other = pool_extractor()
    other.weights_sha256 = "2" * 64
    keys = [real_key(images, pool_extractor()) for images in variants] + [real_key(variants[0], other)]
    assert len(set(keys)) == len(keys)
    assert real_key(Pictures(real, limit=50), pool_extractor()) == keys[0]


def test_a_damaged_cache_file_is_made_again(folders, tmp_path):
    cache = StatisticsCache(tmp_path / "cache")
    expected = numbers(score(folders, cache=cache))
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert numbers(score(folders, cache=cache)) == expected


def test_subsets_and_mirror(folders):
    real, _ = folders
    part = Pictures(real, limit=20, seed=3)
    assert len(part) == 20
    assert not torch.equal(part.read(0), Pictures(real, limit=20, seed=4).read(0))
    doubled = Pictures(real, mirror=True)
    assert len(doubled) == 100
    assert torch.equal(doubled.read(57), doubled.read(7).flip(-1))


def test_unreadable_pictures_do_not_count_and_are_named(folders, tmp_path):
    real, _ = folders
    (real / "007.png").write_bytes(b"not a picture")
    progress = Notes()
    cache = StatisticsCache(tmp_path / "cache")
    results = score(folders, cache=cache, progress=progress)
    assert results[0].settings["num_real"] == 49
    assert any("007.png" in text for text in progress.texts)
    (real / "007.png").unlink()
    assert numbers(score(folders)) == numbers(results)


def test_unreadable_pictures_of_the_scored_side_do_not_count_in_its_name(folders, tmp_path):
    _, fake = folders
    (fake / "007.png").write_bytes(b"not a picture")
    progress = Notes()
    results = score(folders, cache=StatisticsCache(tmp_path / "cache"), progress=progress)
    names = ["fd_efflite0_39_full", "kd_efflite0_39_full", "pr_efflite0_39_3_full"]
    assert [result.metric for result in results] == names
    assert next(iter(results[2].results)) == "pr_efflite0_39_3_full_precision"
    for result in results:
        assert result.settings["num_gen"] == 39
        assert result.settings["left_out_gen"] == ["007.png"]
    assert sum("007.png: not a picture" in text for text in progress.texts) == 1


def test_a_score_that_cannot_be_computed_does_not_cost_the_others_theirs(folders, tmp_path):
    few = write_images(tmp_path / "few", 3, 3)
    distance, kernel, precision = score((few, folders[1]))
    assert len(distance.results) == 1
    assert len(kernel.results) == 2
    assert "need at least 4 real images, not 3" in precision.problem
    assert precision.results == {}


def test_a_diverged_model_scores_nan(folders):
    class Diverged(FeatureExtractor):
        """Finite on the 50 real images, which come first."""

        name, preprocess, dim, weights_sha256, weights_verified = "diverged", "", 4, "", True
        device, seen = torch.device("cpu"), 0

        def __init__(self):
            pass

        def __call__(self, images):
            Diverged.seen += len(images)
            return torch.full((len(images), 4), torch.nan if Diverged.seen > 50 else 1.0)

    (result,) = score(folders, OFFLINE[:1], Diverged)
    assert np.isnan(result.results["fd_efflite0_40_full"])
    assert "not finite" in result.problem


def test_a_cache_that_cannot_be_written_is_done_without(folders, monkeypatch):
    monkeypatch.setattr(files, "_done_without", set())
    progress = Notes()
    for _ in range(2):
        cache = StatisticsCache(Path("/proc/x/cache"), progress)
        assert numbers(score(folders, cache=cache, progress=progress)) == numbers(score(folders))
    assert sum("Statistics of real images cannot be kept" in text for text in progress.texts) == 1


def test_few_images_are_called_few(folders):
    progress = Notes()
    score(folders, OFFLINE[:1], progress=progress)
    assert any("only 40 generated images with 48-dimensional features is biased" in text for text in progress.texts)


def test_different_sizes_share_a_set_unless_the_model_has_one(tmp_path):
    folder = write_images(tmp_path / "mixed", 5, 1)
    write_images(tmp_path / "mixed" / "b", 3, 2, size=48)
    bank = bank_module.Bank(pool_extractor(), 8)
    bank_module.fill(Pictures(folder), [bank], batch=8)
    assert bank.statistics.count == 8
    with pytest.raises(DataError, match=r"b/000.png is 48x48, but the model makes 64x64"):
        bank_module.fill(Pictures(folder, resolution=64), [bank_module.Bank(pool_extractor(), 8)], batch=8)


def test_a_full_device_is_a_sentence(folders, monkeypatch):
    def full(self, numbers, images):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bank_module.Bank, "update", full)
    with pytest.raises(ThreeDGPError, match="smaller batch"):
        score(folders)


def test_bad_input_is_refused(folders, tmp_path):
    evaluator = Evaluator(lambda name: pool_extractor(), batch=8)
    with pytest.raises(UsageError, match="--data"):
        evaluator.score_images(OFFLINE, lambda count: Pictures(folders[1]), None)
    one = write_images(tmp_path / "one", 1, 3)
    (result,) = score((one, folders[1]), OFFLINE[1:2])
    assert "at least 2 images" in result.problem
    with pytest.raises(DataError, match="does not exist"):
        score((tmp_path / "nowhere", folders[1]))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="None of the 1 images"):
        score((broken, folders[1]))


def test_zip_and_folder_agree(folders, tmp_path):
    real, fake = folders
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        for path in sorted(real.iterdir()):
            archive.write(path, path.name)
    assert numbers(score((tmp_path / "real.zip", fake))) == numbers(score(folders))
    assert np.isfinite(list(numbers(score(folders)).values())).all()
