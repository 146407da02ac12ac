"""A stage knows by content, not by date, which of its files still hold."""

import os
import shutil

import pytest
from PIL import Image

from tests.data.photos import make_photos
from threedgp.data.depth import run_depth
from threedgp.data.images import decode_depth, decode_image, open_image
from threedgp.data.journal import JOURNAL, Job, Journal, do_job
from threedgp.data.merge import merge
from threedgp.data.resize import ResizeSettings, resize, square_image
from threedgp.data.source import FolderSource, open_source
from threedgp.pretrained.depth_estimators import choose_estimator

OLD = 1.5e9  # seconds: long before anything here


FILES = {"x/b": "a"}


def made_in(root):
    """A finished job: out/x/b holds what in/a holds, in capitals."""
    (root / "in").mkdir(exist_ok=True)
    (root / "in/a").write_bytes(b"first")
    return do_job(capitals, FolderSource(root / "in").without_names(), root / "out", Job(FILES)).made


def capitals(job, files):
    files.write("x/b", files.read("a").upper())


def kept(root, made, files=FILES):
    return Job(files, made).kept(FolderSource(root / "in").without_names(), root / "out")


def test_same_bytes_hold_whatever_the_dates_say(tmp_path):
    made = made_in(tmp_path)
    assert kept(tmp_path, made) == made
    os.utime(tmp_path / "in/a", (OLD, OLD))
    shutil.copyfile(tmp_path / "out/x/b", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "out/x/b")
    again = kept(tmp_path, made)
    assert again is not None
    assert again != made  # today's stamps
    assert [mark.digest for mark in again.targets.values()] == [mark.digest for mark in made.targets.values()]


@pytest.mark.parametrize("changed", ["in/a", "out/x/b"])
def test_other_bytes_of_the_same_size_and_date_do_not_hold(tmp_path, changed):
    made = made_in(tmp_path)
    date = (tmp_path / changed).stat().st_mtime_ns
    (tmp_path / changed).write_bytes(b"other")
    os.utime(tmp_path / changed, ns=(date, date))
    assert kept(tmp_path, made) is None


def test_other_sources_and_targets_do_not_hold(tmp_path):
    made = made_in(tmp_path)
    assert kept(tmp_path, None) is None
    assert kept(tmp_path, made, {"x/b": "c"}) is None
    assert kept(tmp_path, made, {"x/b": "a", "x/c": "a"}) is None
    (tmp_path / "out/x/b").unlink()
    assert kept(tmp_path, made) is None


def test_a_journal_outlives_kills_and_nonsense(tmp_path):
    made = made_in(tmp_path)
    journal = Journal(tmp_path / "out")
    journal.add(made)
    journal.add(made)
    assert journal.path.read_text().count("\n") == 1
    with open(journal.path, "a") as file:
        file.write('{"sources": 3}\n[1]\n{"sources": {"a": ["1", "2"]}, "tar')
    assert Journal.load(tmp_path / "out").jobs == {"x/b": made}
    journal.keep([])
    assert Journal.load(tmp_path / "out").jobs == {}


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"first")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(tmp_path / "elsewhere")
    outcome = do_job(capitals, FolderSource(tmp_path / "in").without_names(), tmp_path / "out", Job(FILES))
    assert "leads out of" in outcome.reason
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_photo_replaced_by_one_with_an_older_date_is_new_everywhere(tmp_path):
    """`cp -p`, `mv`, `tar`, `unzip` and `rsync -a` keep dates."""
    images = tmp_path / "images"
    make_photos(images, count=3, classes=("",))
    spec = choose_estimator("synthetic")

    def prepare():
        run_depth(images, tmp_path / "depth", spec, jobs=1)
        merge(images, tmp_path / "depth", tmp_path / "merged", jobs=1)
        resize(tmp_path / "merged", tmp_path / "32", ResizeSettings(32), jobs=1)
        return (tmp_path / "32/01_depth.png").read_bytes()

    before = prepare()
    other = tmp_path / "other.png"
    Image.radial_gradient("L").convert("RGB").resize((50, 40)).save(other)
    os.utime(other, (OLD, OLD))
    shutil.copy2(other, images / "01.png")
    after = prepare()
    expected = square_image(open_image(other.read_bytes()), 32)
    assert decode_image((tmp_path / "32/01.png").read_bytes()).tobytes() == expected.tobytes()
    assert after != before
    whole = run_depth(images, tmp_path / "fresh", spec, jobs=1).output / "01_depth.png"
    assert (decode_depth((tmp_path / "merged/01_depth.png").read_bytes()) == decode_depth(whole.read_bytes())).all()


def test_renamed_targets_show_the_source_that_the_manifest_names(tmp_path):
    make_photos(tmp_path / "images", count=4, size=(32, 32))
    settings = ResizeSettings(32, rename=True)
    resize(tmp_path / "images", tmp_path / "set", settings, jobs=1)
    (tmp_path / "images/cat/00.png").unlink()
    report = resize(tmp_path / "images", tmp_path / "set", settings, jobs=1)
    files = report.output / JOURNAL
    assert files.exists()
    assert len(open_source(tmp_path / "set").names) == 7
    manifest = Journal.load(tmp_path / "set").jobs
    for target, made in manifest.items():
        (name,) = made.sources
        shown = decode_image((tmp_path / "set" / target).read_bytes())
        assert (shown == decode_image((tmp_path / "images" / name).read_bytes())).all()
