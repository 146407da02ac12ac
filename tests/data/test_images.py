"""Decoding has one meaning for every kind of picture, and a broken file is a reason, never a crash."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from threedgp.data.images import (
    decode_depth,
    decode_image,
    decode_usable_depth,
    encode_depth,
    encode_image,
    image_size,
    open_image,
    write_depth,
    write_image,
)
from threedgp.errors import DataError

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # pytest takes the module's own filter away
random = np.random.RandomState(0)


def smooth(height=30, width=44, channels=3):
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / (5 + k)) * np.cos(y / (7 + k)) * 120 + 128 for k in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, bit_depth, colour_type, rows, extra=b""):
    """A PNG written by hand: Pillow cannot write 16-bit colour."""

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = b"".join(b"\0" + row for row in rows)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_rgb_is_exact():
    rgb = smooth()
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode_image(encoded(Image.fromarray(rgb), kind)), rgb)
    assert np.array_equal(decode_image(encoded(Image.fromarray(rgb), "WEBP", lossless=True)), rgb)


def test_grey_and_one_bit_are_replicated():
    grey = smooth()[..., 0]
    assert np.array_equal(decode_image(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey).convert("1")
    assert np.array_equal(decode_image(encoded(bits))[..., 1], np.array(bits.convert("L")))


def test_alpha_lies_over_the_background(golden):
    data = golden("resize")
    rgba = data["modes/rgba_input"].astype(np.uint8)
    result = decode_image(encoded(Image.fromarray(rgba)))
    assert np.abs(result.astype(int) - data["modes/rgba_on_white"]).max() <= 1
    black = decode_image(encoded(Image.fromarray(rgba)), background=(0, 0, 0))
    expected = rgba[..., :3] * (rgba[..., 3:] / 255.0)
    assert np.abs(black - expected).max() <= 1


def test_transparent_palette_and_colour_key():
    palette = Image.fromarray(smooth()).quantize(16)
    assert np.array_equal(decode_image(encoded(palette)), np.array(palette.convert("RGB")))
    clear = decode_image(encoded(palette, transparency=3))
    assert (clear[np.array(palette) == 3] == 255).all()
    flat = Image.new("RGB", (4, 4), (10, 20, 30))
    assert (decode_image(encoded(flat, transparency=(10, 20, 30))) == 255).all()
    gif = decode_image(encoded(palette, "GIF", transparency=3))
    assert (gif[np.array(palette) == 3] == 255).all()


def test_cmyk_is_not_taken_for_alpha():
    rgb = Image.fromarray(smooth())
    result = decode_image(encoded(rgb.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert np.abs(result.astype(int) - smooth()).max() <= 12


def test_lab_goes_through_its_profile():
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    rgb = Image.fromarray(smooth())
    image = ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
    result = decode_image(encoded(image, "TIFF", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes()))
    assert np.abs(result.astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_sixteen_bits_are_scaled_not_cut(colour_type, channels):
    values = random.randint(0, 65536, (6, 5, channels))
    if channels == 4:
        values[..., 3] = 65535
    rows = [row.astype(">u2").tobytes() for row in values]
    result = decode_image(png(5, 6, 16, colour_type, rows))
    expected = np.round(values[..., :3] / 257.0)
    assert np.array_equal(result, np.broadcast_to(expected, (6, 5, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    rgb = smooth(20, 31)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[orientation]
    data = encoded(Image.fromarray(rgb), "PNG", exif=exif)
    assert np.array_equal(decode_image(data), upright)
    assert image_size(data) == upright.shape[:2]


def test_damaged_exif_keeps_the_photo():
    data = encoded(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 50)
    assert decode_image(data).shape == (30, 44, 3)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data) == [255, 0, 0]).all()


def test_reduced_jpeg_decoding_only_on_request():
    data = encoded(Image.fromarray(smooth(64, 96)), "JPEG")
    assert open_image(data).size == (96, 64)
    assert open_image(data, reduce=2).size == (48, 32)
    assert open_image(encoded(Image.fromarray(smooth(64, 96))), reduce=2).size == (96, 64)


PNG_BYTES = encoded(Image.fromarray(smooth(200, 200)))
JPEG_BYTES = encoded(Image.fromarray(smooth(200, 200)), "JPEG")
BOMB = png(30000, 30000, 8, 0, [])
BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am not a picture\n" * 40, "not a picture"),
    "half a PNG": (PNG_BYTES[: len(PNG_BYTES) // 2], "cut off"),
    "half a JPEG": (JPEG_BYTES[: len(JPEG_BYTES) // 2], "cut off"),
    "header only": (PNG_BYTES[:20], "cut off|damaged|not a picture"),
    "bomb": (BOMB, "megapixels"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_rejected_with_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(DataError, match=reason):
        decode_image(data)


def test_floating_point_pixels_are_rejected():
    with pytest.raises(DataError, match="floating-point"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_random_damage_never_raises_anything_but_data_error():
    for data in (
        PNG_BYTES,
        JPEG_BYTES,
        encoded(Image.fromarray(smooth()), "TIFF"),
        encoded(Image.fromarray(smooth()), "GIF"),
    ):
        for seed in range(40):
            noise = np.random.RandomState(seed)
            bad = bytearray(data)
            for position in noise.randint(0, len(bad), 8):
                bad[position] = noise.randint(256)
            with contextlib.suppress(DataError):
                assert decode_image(bytes(bad)).ndim == 3


def test_depth_of_all_kinds():
    depth = random.randint(0, 65536, (7, 9)).astype(np.uint16)
    assert np.array_equal(decode_depth(encode_depth(depth)), depth)
    eight = (depth >> 8).astype(np.uint8)
    assert np.array_equal(decode_depth(encoded(Image.fromarray(eight))), eight.astype(np.uint16) * 256)
    buffer = io.BytesIO()
    np.save(buffer, depth)
    assert np.array_equal(decode_depth(buffer.getvalue()), depth)
    colour = encoded(Image.fromarray(smooth()))
    with pytest.raises(DataError, match="one channel"):
        decode_depth(colour)
    assert np.array_equal(decode_depth(colour, first_channel=True), smooth()[..., 0].astype(np.uint16) * 256)


def test_hostile_depth_arrays():
    for array, reason in ((np.ones((3, 3), np.float32), "uint16"), (np.array([object()]), "uint16")):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        with pytest.raises(DataError, match=reason):
            decode_depth(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.ones((5, 5), np.uint16))
    with pytest.raises(DataError, match="cut off"):
        decode_depth(buffer.getvalue()[:-7])
    with pytest.raises(DataError, match="damaged"):
        decode_depth(b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 30)


def test_files_appear_whole_and_alone(tmp_path):
    write_image(tmp_path / "sub" / "照片 'one'.png", smooth())
    write_depth(tmp_path / "sub" / "照片 'one'_depth.png", np.full((30, 44), 60000, np.uint16))
    write_image(tmp_path / "a.jpg", smooth())
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.jpg", "照片 'one'.png", "照片 'one'_depth.png"]
    assert np.array_equal(decode_image((tmp_path / "sub" / "照片 'one'.png").read_bytes()), smooth())
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # 4:4:4
    with pytest.raises(DataError, match="png or"):
        encode_image(smooth(), ".webp")


ORIENTATION_CORNERS = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("top", "left"), 6: ("top", "right"), 7: ("bottom", "right"), 8: ("bottom", "left"),
}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTATION_CORNERS)
def test_turned_tiffs_are_turned_once(orientation):
    """Pillow turns TIFFs by itself."""
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:20, :40] = (255, 0, 0)  # red in the stored top left corner
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", tiffinfo={274: orientation})
    shown = decode_image(buffer.getvalue())
    assert shown.shape == ((60, 100, 3) if orientation < 5 else (100, 60, 3))
    assert image_size(buffer.getvalue()) == shown.shape[:2]
    rows, columns = np.nonzero(shown[..., 0])
    vertical = "top" if rows.mean() < shown.shape[0] / 2 else "bottom"
    horizontal = "left" if columns.mean() < shown.shape[1] / 2 else "right"
    assert (vertical, horizontal) == ORIENTATION_CORNERS[orientation]


def test_the_transparent_colour_of_sixteen_bit_pngs_is_white():
    random = np.random.RandomState(0)
    colour = random.randint(0, 65536, (30, 40, 3)).astype(np.uint16)
    colour[:5] = (1000, 2000, 3000)
    for pixels, colour_type, key in ((colour, 2, (1000, 2000, 3000)), (colour[..., :1], 0, (1000,))):
        rows = [row.astype(">u2").tobytes() for row in pixels]
        extra = chunk(b"tRNS", np.array(key, ">u2").tobytes())
        shown = decode_image(png(40, 30, 16, colour_type, rows, extra))
        assert (shown[:5] == 255).all()
        assert (shown[5:] == (pixels[5:].astype(int) + 128) // 257).all()


def test_sixteen_bit_grey_tiff_where_zero_is_white():
    grey = np.random.RandomState(0).randint(0, 65536, (6, 7)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "TIFF", tiffinfo={262: 0})
    assert (decode_depth(buffer.getvalue()) == 65535 - grey).all()
    assert (decode_image(buffer.getvalue())[..., 0] == (65535 - grey.astype(int) + 128) // 257).all()


def test_a_map_that_says_the_same_everywhere_is_of_no_use():
    for value in (0, 300):
        with pytest.raises(DataError, match=f"all its pixels are {value}"):
            decode_usable_depth(encode_depth(np.full((3, 4), value, np.uint16)))
    assert decode_usable_depth(encode_depth(np.arange(12, dtype=np.uint16).reshape(3, 4)))[2, 3] == 11
    assert decode_usable_depth(encode_depth(np.zeros((1, 1), np.uint16))).shape == (1, 1)


def test_a_jpeg_without_its_end_marker_is_whole_and_one_without_pixels_is_not():
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG")
    data = buffer.getvalue()
    for missing in (1, 2):
        assert (decode_image(data[:-missing]) == decode_image(data)).all()
    for missing in (12, 200):
        with pytest.raises(DataError, match="cut off"):
            decode_image(data[:-missing])


def test_a_png_that_says_behind_its_pixels_how_it_lies():
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(buffer, "PNG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    rest = data[:start] + data[stop:]
    end = rest.index(b"IEND") - 4
    late = rest[:end] + data[start:stop] + rest[end:]
    assert image_size(late) == (10, 6)
    assert (decode_image(late) == decode_image(data)).all()
