"""Damaged and forged pictures of all kinds are decoded or refused in words: no other error, no hang, bounded memory."""

import io
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.make_images import picture
from threedgp.data.images import decode_depth, decode_image, read_header
from threedgp.errors import DataError

SECONDS = 10  # that one picture may take at most, on a busy machine too
GIGABYTES = 2.5  # that this process may grow to: 179 megapixels at up to 12 bytes, whatever a header says


def originals() -> list[bytes]:
    """Small pictures of every format and pixel type that is read."""
    colour = Image.fromarray(picture(0, 24, 31))
    grey = Image.fromarray(np.arange(700, dtype=np.uint16).reshape(20, 35))
    exif = Image.Exif()
    exif[274] = 6
    files = []
    for image, kind, options in (
        (colour, "JPEG", {"exif": exif}), (colour, "JPEG", {"progressive": True}), (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {"exif": exif}), (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("RGBA"), "PNG", {}), (colour, "WEBP", {"exif": exif}), (colour, "BMP", {}), (colour, "GIF", {}),
        (colour, "TIFF", {"tiffinfo": {274: 5}}), (colour, "TIFF", {"compression": "tiff_lzw"}), (colour, "PPM", {}),
        (colour.convert("LAB"), "TIFF", {}), (grey, "PNG", {}), (grey, "TIFF", {"tiffinfo": {262: 0}}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.arange(700, dtype=np.uint16).reshape(20, 35))
    return [*files, buffer.getvalue(), sixteen_bit_png(24, 31)]


def sixteen_bit_png(height: int, width: int) -> bytes:
    """Colour with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + np.arange(3 * width).astype(">u2").tobytes()
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(row * height, 1)) + chunk(b"IEND", b"")


def mutate(data: bytes, random: np.random.RandomState) -> bytes:
    """Damage a file: bits, bytes and numbers changed (checksums mended half the time), pieces cut, doubled, moved."""
    work = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(min(len(work), 120) if random.rand() < 0.6 else len(work))  # mostly near the header
        length = 1 + random.randint(40)
        match random.randint(6):
            case 0:
                work[at] ^= 1 << random.randint(8)
            case 1:
                numbers = (0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
                number, form = numbers[random.randint(len(numbers))], "<>"[random.randint(2)] + "HI"[random.randint(2)]
                size = struct.calcsize(form)
                work[at : at + size] = struct.pack(form, number & (1 << 8 * size) - 1)
            case 2:
                del work[max(at, 1) : at + length]
            case 3:
                work[at:at] = work[at : at + length] * random.randint(1, 20)
            case 4:
                work[at : at + length] = random.bytes(length)
            case 5:
                del work[max(at, 1) :]
    return mend_checksums(bytes(work)) if random.rand() < 0.5 else bytes(work)


def mend_checksums(data: bytes) -> bytes:
    """The chunks of a PNG with right checksums, so that its decoder looks at their content."""
    work, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(work):
        end = at + 8 + struct.unpack(">I", work[at : at + 4])[0]
        if end + 4 > len(work):
            break
        work[end : end + 4] = struct.pack(">I", zlib.crc32(work[at + 4 : end]))
        at = end + 4
    return bytes(work)


@pytest.mark.filterwarnings("ignore")  # Pillow's, which images.py silences
@pytest.mark.parametrize("part", range(10))
def test_mutated_pictures(part):
    """2,000 in all, 200 a part."""
    random, files = np.random.RandomState(part), originals()
    decoded = longest = 0
    for number in range(200):
        data = mutate(files[number % len(files)], random)
        began = time.monotonic()
        for function in (read_header, decode_image, decode_depth):
            try:
                result = function(data)
            except DataError as error:
                longest = max(longest, len(str(error)))
                continue
            if function is decode_image:
                assert result.dtype == np.uint8
                assert result.shape[2:] == (3,)
                decoded += 1
        assert time.monotonic() - began < SECONDS, (part, number)
    assert longest < 300
    assert 10 < decoded < 190  # some damage is harmless, some is not
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < GIGABYTES


def test_sixteen_bit_colour_is_scaled_in_strips(tmp_path):
    """Once it took 50 to 63 bytes a pixel."""
    (tmp_path / "big.png").write_bytes(sixteen_bit_png(2000, 2000))
    code = (
        "import resource, sys, pathlib\nfrom threedgp.data.images import open_image\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "open_image(data)\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "big.png")]
    root = Path(__file__).resolve().parents[2]
    kilobytes = int(subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=root).stdout)
    assert kilobytes * 1024 / 2000**2 < 30
