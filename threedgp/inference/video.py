"""Frames to a video, one at a time: MP4, GIF and WebP through ffmpeg, or a folder of PNG pictures.

Every file appears when it is complete, or not at all: after an error or Ctrl-C nothing half-written is left.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from threedgp.errors import ThreeDGPError, UsageError
from threedgp.files import atomic_path, temporary_path

FORMATS = ("mp4", "gif", "webp", "png")
FPS, CRF = 30.0, 10
LARGEST_SIDE = {"mp4": 8192, "gif": 65535, "webp": 16383}
FASTEST_GIF = 50.0  # frames a second: players slow down anything shorter than two hundredths of a second

AddFrame = Callable[[Tensor], None]


class VideoError(ThreeDGPError):
    """ffmpeg could not write a video."""


def find_ffmpeg() -> str:
    """The path of ffmpeg: $IMAGEIO_FFMPEG_EXE, the one that comes with imageio-ffmpeg, or the system's.

    Raises:
        UsageError: there is none.
    """
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        path = None
    if path is None or shutil.which(path) is None:
        raise UsageError(
            "There is no ffmpeg to write videos with. Install it with `pip install imageio-ffmpeg`, point "
            "$IMAGEIO_FFMPEG_EXE at one, or write single frames with --format png."
        )
    return path


def check_video(kind: str, fps: float) -> None:
    """Refuse early what cannot be written. Raises `UsageError`: unknown format, impossible fps, or no ffmpeg."""
    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: choose from {', '.join(FORMATS)}.")
    if not 0.1 <= fps <= 240:
        raise UsageError(f"--fps {fps:g}: videos have 0.1 to 240 frames a second.")
    if kind == "gif" and fps > FASTEST_GIF:
        raise UsageError(f"--fps {fps:g}: GIF files show at most {FASTEST_GIF:g} frames a second. Use --format mp4.")
    if kind != "png":
        find_ffmpeg()


def check_frame(kind: str, height: int, width: int) -> None:
    """Refuse frames that are too large for the format. Raises `UsageError`."""
    largest = LARGEST_SIDE.get(kind)
    if largest is not None and max(height, width) > largest:
        raise UsageError(
            f"The video would be {width}x{height} pixels; {kind} holds at most {largest} a side. Lower --size or "
            "--per-file."
        )


@contextmanager
def open_video(path: Path | str, kind: str, *, fps: float = FPS, crf: int = CRF) -> Iterator[AddFrame]:
    """Write a video while it is rendered: `with open_video(path, "mp4") as add: add(frame)`.

    Memory does not grow with the number of frames.

    Args:
        path: of the file, or of the folder for `png`.
        kind: `mp4` (H.264, yuv420p, colours marked as BT.709; odd sides get one black row or column), `gif` (a palette
            of its own for each frame, loops), `webp` (lossy, loops) or `png` (00000.png, ... in a folder).
        fps: frames a second.
        crf: quality of MP4, 0 (lossless) to 51.

    Yields:
        A function that takes the next frame, uint8 [3, H, W]; all frames have the size of the first.

    Raises:
        UsageError: no ffmpeg, or frames too large for the format.
        VideoError: ffmpeg failed; its own words are in the message.
        OSError: the disk is full or not writable.
    """
    check_video(kind, fps)
    path = Path(path)
    if kind == "png":
        with _frames_folder(path) as add:
            yield add
        return
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as log:
        encoder = _Encoder(path, temporary, kind, fps, crf, log)
        try:
            yield encoder.add
        except BaseException:
            encoder.abort()
            raise
        encoder.finish()


class _Encoder:
    """ffmpeg reading raw frames from a pipe; started by the first frame, which tells the size."""

    def __init__(self, path: Path, temporary: Path, kind: str, fps: float, crf: int, log: IO[bytes]):
        self.path, self.temporary, self.kind, self.fps, self.crf, self.log = path, temporary, kind, fps, crf, log
        self.process: subprocess.Popen | None = None
        self.size: tuple[int, int] | None = None

    def add(self, frame: Tensor) -> None:
        pixels = np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())  # [H, W, 3]
        size = (pixels.shape[0], pixels.shape[1])
        if self.process is None:
            self.size, self.process = size, self._start(*size)
        if size != self.size:
            raise ValueError(f"a frame of {size} in a video of {self.size}")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(pixels)
        except OSError:  # ffmpeg is gone; what it said is worth more than "broken pipe"
            self.finish()
            raise

    def _start(self, height: int, width: int) -> subprocess.Popen:
        check_frame(self.kind, height, width)
        arguments = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
        arguments += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            f"{self.fps:g}",
            "-i",
            "-",
        ]
        arguments += [*_encoding(self.kind, self.crf), "-fflags", "+bitexact", "-flags:v", "+bitexact"]
        return subprocess.Popen(
            [*arguments, str(self.temporary.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C must not reach it: this process ends it in order
        )

    def finish(self) -> None:
        """Close the file and check it."""
        if self.process is None:
            raise ValueError("a video needs at least one frame")
        assert self.process.stdin is not None
        with suppress(OSError):  # a pipe that ffmpeg has left; its exit code tells
            self.process.stdin.close()
        code = self.process.wait()
        if code == 0 and self.temporary.is_file() and self.temporary.stat().st_size > 0:
            return
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip()
        if os.strerror(errno.ENOSPC).lower() in words.lower():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        last = words.splitlines()[-1].strip() if words else f"it ended with code {code}"
        raise VideoError(f"ffmpeg could not write {self.path}: {last.rstrip('.')}. Nothing was written.")

    def abort(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _encoding(kind: str, crf: int) -> list[str]:
    if kind == "mp4":
        # Even sides for yuv420p; the matrix is stated, or players guess it by the size and shift the colours.
        matrix = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd"
        marks = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
        even = f"pad=ceil(iw/2)*2:ceil(ih/2)*2,{matrix},format=yuv420p,{marks}"
        quality = ["-c:v", "libx264", "-preset", "medium", "-crf", str(crf)]
        return ["-vf", even, *quality, "-movflags", "+faststart", "-f", "mp4"]
    if kind == "gif":
        palette = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=sierra2_4a"
        return ["-filter_complex", palette, "-loop", "0", "-f", "gif"]
    return ["-c:v", "libwebp_anim", "-quality", "90", "-loop", "0", "-f", "webp"]


@contextmanager
def _frames_folder(path: Path) -> Iterator[AddFrame]:
    """PNG frames in a hidden folder that takes the place of `path` when it is complete."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not is_frames_folder(path):
        raise UsageError(f"{path} is in the way: it is no folder of frames. Choose another name with --out.")
    work = temporary_path(path)
    work.mkdir()
    written = 0

    def add(frame: Tensor) -> None:
        nonlocal written
        Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy()).save(work / f"{written:05d}.png")
        written += 1

    try:
        yield add
        if path.exists():
            displaced = temporary_path(path)
            os.rename(path, displaced)
            os.rename(work, path)
            shutil.rmtree(displaced, ignore_errors=True)
        else:
            os.rename(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_frames_folder(path: Path) -> bool:
    """True for a folder that holds numbered PNG pictures and nothing else, so that replacing it destroys no work."""
    return path.is_dir() and all(entry.suffix == ".png" and entry.stem.isdigit() for entry in path.iterdir())
