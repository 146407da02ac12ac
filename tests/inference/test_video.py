"""Videos: what players see, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import os
import stat

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from threedgp.errors import UsageError
from threedgp.inference.video import VideoError, check_video, find_ffmpeg, open_video


def frames(count: int = 6, height: int = 32, width: int = 48) -> torch.Tensor:
    """uint8 [count, 3, h, w]: a coloured ramp with a bar that moves."""
    ramp = torch.arange(width) * 255 // width
    made = torch.stack([ramp.expand(height, -1), ramp.flip(0).expand(height, -1), torch.full((height, width), 90)])
    made = made.to(torch.uint8).repeat(count, 1, 1, 1)
    for index in range(count):
        made[index, :, :, 6 * index : 6 * index + 4] = 255
    return made


def write(path, kind: str, pictures: torch.Tensor, **options) -> None:
    with open_video(path, kind, **options) as add:
        for picture in pictures:
            add(picture)


def interrupted(pictures):
    """Frames until somebody presses Ctrl-C."""
    yield from pictures[:2]
    raise KeyboardInterrupt


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fake_ffmpeg(tmp_path, monkeypatch, script: str) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("threedgp.inference.video.find_ffmpeg", lambda: str(program))


def test_mp4_plays_everywhere_and_shows_the_frames(tmp_path):
    path = tmp_path / "deep" / "a.mp4"
    write(path, "mp4", frames(), fps=24)
    facts = iio.immeta(path)
    assert facts["codec"] == "h264"
    assert facts["pix_fmt"].startswith("yuv420p(tv, bt709")
    assert facts["fps"] == 24
    assert facts["duration"] == pytest.approx(6 / 24, abs=0.01)
    shown = iio.imread(path)
    assert shown.shape == (6, 32, 48, 3)
    assert np.abs(shown.astype(int) - frames().permute(0, 2, 3, 1).numpy()).mean() < 4
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # the index first: it plays while it loads
    assert files(path.parent) == ["a.mp4"]


def test_odd_sides_get_one_black_line(tmp_path):
    write(tmp_path / "a.mp4", "mp4", frames(3, 31, 47))
    shown = iio.imread(tmp_path / "a.mp4")
    assert shown.shape == (3, 32, 48, 3)
    grey = shown.mean(axis=-1)
    assert grey[:, -1].mean() < 40  # colours are stored for 2x2 pixels and bleed a little
    assert grey[:, :, -1].mean() < 40


def test_the_same_frames_make_the_same_file(tmp_path):
    for kind in ("mp4", "gif", "webp"):
        for name in "ab":
            write(tmp_path / f"{name}.{kind}", kind, frames())
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_gif_and_webp_loop(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write(path, kind, frames(), fps=20)
    with Image.open(path) as file:
        assert file.n_frames == 6
        assert file.info["loop"] == 0
        shown, durations = [], []
        for index in range(file.n_frames):
            file.seek(index)
            shown.append(np.asarray(file.convert("RGB")))
            durations.append(file.info["duration"])
    assert set(durations) == {50}
    assert np.abs(np.stack(shown).astype(int) - frames().permute(0, 2, 3, 1).numpy()).mean() < 8


def test_png_frames_replace_earlier_ones(tmp_path):
    for count in (5, 3):
        write(tmp_path / "a", "png", frames(count))
    assert files(tmp_path / "a") == ["00000.png", "00001.png", "00002.png"]
    with Image.open(tmp_path / "a" / "00002.png") as file:
        assert np.array_equal(np.asarray(file), frames()[2].permute(1, 2, 0))
    assert files(tmp_path) == ["a"]


def test_png_frames_never_replace_other_things(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(UsageError, match="in the way"), open_video(tmp_path / "thesis", "png"):
        pass
    assert files(tmp_path / "thesis") == ["chapter.tex"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "png"])
def test_an_interrupted_video_leaves_the_earlier_one(tmp_path, kind):
    path = tmp_path / ("a" if kind == "png" else f"a.{kind}")
    write(path, kind, frames(2))
    before = files(path) if kind == "png" else path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, interrupted(frames()))
    assert (files(path) if kind == "png" else path.read_bytes()) == before
    assert files(tmp_path) == [path.name]


def test_a_full_disk_is_called_one(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, 'head -c 3000 >/dev/null; echo "a.mp4: No space left on device" >&2; exit 1')
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left") as caught:
        write(out / "a.mp4", "mp4", frames(400))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(out / "a.mp4")
    assert files(out) == []


def test_a_full_disk_at_the_very_end(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, 'cat >/dev/null; echo "trailer: No space left on device" >&2; exit 1')
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "out" / "a.mp4", "mp4", frames(2))
    assert files(tmp_path / "out") == []


def test_other_failures_of_ffmpeg_are_quoted(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, 'echo "Unknown encoder libx264" >&2; exit 8')
    with pytest.raises(VideoError, match="Unknown encoder libx264"):
        write(tmp_path / "out" / "a.mp4", "mp4", frames(400))
    assert files(tmp_path / "out") == []


def test_success_without_a_file_is_a_failure(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "cat >/dev/null")
    with pytest.raises(VideoError, match="Nothing was written"):
        write(tmp_path / "out" / "a.mp4", "mp4", frames(2))


def test_no_ffmpeg(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", os.path.join(os.sep, "nowhere", "ffmpeg"))
    with pytest.raises(UsageError, match="--format png"):
        find_ffmpeg()
    with pytest.raises(UsageError, match="--format png"):
        check_video("mp4", 30)
    check_video("png", 30)  # needs none


@pytest.mark.parametrize(
    ("kind", "fps", "words"),
    [("avi", 30, "--format avi"), ("mp4", 0, "--fps 0"), ("mp4", float("nan"), "--fps nan"), ("gif", 60, "GIF")],
)
def test_impossible_videos(kind, fps, words):
    with pytest.raises(UsageError, match=words):
        check_video(kind, fps)


def test_frames_too_large_for_the_format(tmp_path):
    with pytest.raises(UsageError, match="at most 8192"):
        write(tmp_path / "a.mp4", "mp4", torch.zeros(1, 3, 2, 9000, dtype=torch.uint8))
    assert files(tmp_path) == []


def test_frames_are_handed_over_as_they_come(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    fake_ffmpeg(tmp_path, monkeypatch, f"head -c 4608 >/dev/null; touch {seen}; cat >/dev/null; exit 3")

    def pictures():
        yield from frames(60)  # more than a pipe holds
        assert seen.exists()

    with pytest.raises(VideoError, match="code 3"):
        write(tmp_path / "a.mp4", "mp4", pictures())
