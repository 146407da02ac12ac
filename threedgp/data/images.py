"""Pictures on disk: find them in a folder or zip, decode them safely to one meaning, write them whole or not at all.

Every stage, the training loader and the metrics read through this file, so that an image, its depth map and its
embedding always describe the same pixels: first frame, EXIF orientation applied, 8-bit RGB, alpha over white. What
cannot be read raises `DataError` with the reason only, because the caller knows the name. Imports stay at Pillow and
NumPy because each worker process of a stage pays for them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from threedgp.errors import DataError
from threedgp.files import atomic_open

WHITE = (255, 255, 255)
READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # by content, whatever the extension says
DEPTH_FORMATS = ("PNG", "TIFF")
MAX_PIXELS = 2 * 89_478_485  # Pillow's decompression-bomb limit: 179 megapixels
JPEG_QUALITY = 95
JPEG_END = b"\xff\xd9"
# As small as Pillow's default on photos at a quarter of its time: prediction does the work, matching adds nothing.
PNG_OPTIONS = {"compress_level": 1, "compress_type": 3}  # 3: runs and Huffman codes only (Z_RLE)
ORIENTATION_TAG = 0x0112
TIFF_WIDTH, TIFF_LENGTH, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANAR = 256, 257, 258, 262, 284
REASON_LENGTH = 200  # of a library's words, which may quote the file
STRIP_ROWS = 256  # of 16-bit colour that are worked on at once
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about what is handled here (bombs, damaged EXIF blocks, odd palettes): no noise from every worker.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_image(data: bytes, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Decode any supported picture to uint8 RGB [H, W, 3] (values 0..255, writable).

    See `open_image` for what is done to orientation, alpha, palettes, CMYK and 16-bit values, and for the errors.
    """
    return np.array(open_image(data, background))


def open_image(data: bytes, background: tuple[int, int, int] = WHITE, reduce: int = 1) -> Image.Image:
    """Decode any supported picture to an upright 8-bit Pillow image of mode RGB.

    First frame; EXIF orientation applied; grey replicated; palette expanded; alpha composited over `background` at
    source size; CMYK and Lab converted through the embedded ICC profile where there is one; 16-bit integers scaled by
    1/257 and rounded.

    Args:
        data: the whole file.
        background: RGB colour shown behind transparent pixels.
        reduce: decode a JPEG at 1/2, 1/4 or 1/8 of its size in the DCT (changes pixels slightly); other formats and
            the value 1 decode all pixels.

    Raises:
        DataError: empty, not a picture, cut off, too large, or with floating-point pixels.
    """
    try:
        with _reasons(data), _open(data) as image:
            if reduce > 1 and image.format == "JPEG":
                whole = image.width % reduce == image.height % reduce == 0
                if whole or _orientation(image) == 1:  # else turning would move the partial pixel to the front
                    image.draft(None, (image.width // reduce, image.height // reduce))
            rgb = _to_rgb(image, data, background)
            # Asked after decoding: Pillow turns TIFFs itself, and a PNG may say how it lies behind its pixels.
            orientation = _orientation(image)
            return rgb.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else rgb
    except DataError:
        if not _only_the_end_is_missing(data):
            raise
        return open_image(data.removesuffix(b"\xff") + JPEG_END, background, reduce)


class Header(NamedTuple):
    """What a picture says of itself: upright height and width, and Pillow's name of its pixel format."""

    height: int
    width: int
    mode: str


def read_header(data: bytes) -> Header:
    """Size and pixel format from the beginning of a file (PNG and JPEG need not be whole)."""
    with _reasons(data), _open(data) as image:
        return Header(*_upright_size(image, data), image.mode)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header alone."""
    return read_header(data)[:2]


def verify_checksums(data: bytes) -> None:
    """Compare the checksums inside a PNG, which decoding does not do."""
    with _reasons(data), _open(data) as image:
        image.verify()


def decode_depth(data: bytes, *, first_channel: bool = False) -> np.ndarray:
    """Decode a depth map to uint16 [H, W] (0..65535, larger is farther).

    Accepts one-channel 16-bit PNG or TIFF, one-channel 8-bit (multiplied by 256) and a uint16 `.npy` file.

    Args:
        data: the whole file.
        first_channel: take the first channel of a colour picture instead of refusing it.
    """
    with _reasons(data):
        if data.startswith(b"\x93NUMPY"):
            return _load_npy(data)
        with _open(data, DEPTH_FORMATS) as image:
            if image.mode == "L" or (first_channel and image.mode in ("LA", "RGB", "RGBA")):
                return np.array(image.getchannel(0)).astype(np.uint16) * 256
            if image.mode.startswith("I"):
                return _sixteen_bit(image)
            raise DataError(f"a depth map needs one channel of 8 or 16 bits, this file has mode {image.mode}")


def decode_usable_depth(data: bytes) -> np.ndarray:
    """`decode_depth`, for a map that is going to be trained on: one that says the same everywhere says nothing."""
    depth = decode_depth(data)
    if depth.size > 1 and depth.min() == depth.max():
        raise DataError(f"all its pixels are {depth.flat[0]}, so it holds no depth; make it again")
    return depth


def encode_image(image: np.ndarray | Image.Image, suffix: str) -> bytes:
    """Encode uint8 RGB [H, W, 3] as `.png` or `.jpg` (quality 95, 4:4:4); the same bytes every time."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    if suffix.lower() == ".png":
        picture.save(buffer, "PNG", **PNG_OPTIONS)
    elif suffix.lower() in (".jpg", ".jpeg"):
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        raise DataError(f"Images are written as .png or .jpg, not as '{suffix}'.")
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> bytes:
    """Encode uint16 [H, W] as a one-channel 16-bit PNG."""
    if depth.dtype != np.uint16 or depth.ndim != 2:
        raise ValueError(f"a depth map is uint16 [H, W], not {depth.dtype} {list(depth.shape)}")
    return encode_image(Image.fromarray(depth), ".png")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file by atomic rename."""
    with atomic_open(path) as file:
        file.write(data)


def write_image(path: Path | str, image: np.ndarray | Image.Image) -> None:
    """Write uint8 RGB [H, W, 3] to a `.png` or `.jpg` path by atomic rename."""
    write_bytes(path, encode_image(image, Path(path).suffix))


def write_depth(path: Path | str, depth: np.ndarray) -> None:
    """Write uint16 [H, W] to a 16-bit PNG by atomic rename."""
    write_bytes(path, encode_depth(depth))


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """A hostile file can make a codec raise anything: turn it into a `DataError` with the reason."""
    if not data:
        raise DataError("the file is empty")
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(_reason(error)) from None


def _open(data: bytes, formats: tuple[str, ...] = READ_FORMATS) -> ImageFile:
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


def _orientation(image: Image.Image) -> int:
    """How the pixels lie that Pillow gives now, as in EXIF: 1 is upright."""
    try:
        value = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)  # PngImageFile's own would decode all pixels
    except Exception:  # a damaged EXIF block is no reason to lose the photo
        return 1
    return value if value in ORIENTATIONS else 1


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """A value from the header of a TIFF."""
    return image.tag_v2.get(number, default) if isinstance(image, TiffImageFile) else default


def _upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    """(height, width) after turning, without decoding the pixels where that can be avoided."""
    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow exchange the sides when they open it, some when they load it
        width, height = _tag(image, TIFF_WIDTH, width), _tag(image, TIFF_LENGTH, height)
        orientation = _tag(image, ORIENTATION_TAG, 1)
        return (width, height) if orientation in ORIENTATIONS and orientation >= 5 else (height, width)
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
        image.load()
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _to_rgb(picture: ImageFile, data: bytes, background: tuple[int, int, int]) -> Image.Image:
    """The first frame as 8-bit RGB, not yet rotated."""
    raw_mode = _raw_mode(picture)
    picture.load()
    image: Image.Image = picture
    mode = image.mode
    if ";16" in raw_mode and mode in ("RGB", "RGBA"):
        image = _from_sixteen_bit_colour(image, data, raw_mode, background)
    elif max(_tag(image, TIFF_BITS, (8,))) > 8 and _tag(image, TIFF_PLANAR, 1) == 2:
        raise DataError("its colours of 16 bits lie in planes apart, which is not supported; save it with 8 bits")
    elif mode.startswith("I"):
        grey = _sixteen_bit(image)
        rgb = np.repeat(_eight_bit(grey)[..., None], 3, axis=2)
        key = image.info.get("transparency")
        if isinstance(key, int):
            rgb[grey == key] = background
        return Image.fromarray(rgb)
    elif mode == "F":
        raise DataError("its pixels are floating-point numbers without a defined range; save it with 8 or 16 bits")
    elif mode in ("CMYK", "LAB"):
        return _through_profile(image)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, background)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image if mode == "RGB" else image.convert("RGB")


def _only_the_end_is_missing(data: bytes) -> bool:
    """Whether a JPEG without an end marker holds all pixels: then what is appended to it changes none of them.

    Every viewer shows such a file as whole.
    """
    if not data.startswith(b"\xff\xd8") or data.endswith(JPEG_END):
        return False
    pixels = []
    for filler in (b"\x00", b"\x5a"):
        try:
            with _open(data.removesuffix(b"\xff") + filler * 64 + JPEG_END, ("JPEG",)) as image:
                pixels.append(image.tobytes())
        except Exception:
            return False
    return pixels[0] == pixels[1]


def _raw_mode(image: ImageFile) -> str:
    """How the file packs its pixels ('RGB;16B' and so on); Pillow forgets this once the image is loaded."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _from_sixteen_bit_colour(
    high: Image.Image, data: bytes, raw_mode: str, background: tuple[int, int, int]
) -> Image.Image:
    """16-bit colour scaled to 8 bits by 1/257 and rounded, its transparent colour over the background.

    Pillow keeps the high byte of every value. A second pass that is told the opposite byte order yields the low byte.
    """
    swapped = {"B": "L", "L": "B", "N": "B"}.get(raw_mode[-1])
    if swapped is None or not raw_mode.startswith(high.mode):
        raise DataError("its 16-bit pixels are packed in a way that is not supported; save it with 8 bits")
    with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as low:
        tiles = []
        for codec, box, offset, arguments in low.tile:
            new = raw_mode[:-1] + swapped
            tiles.append((codec, box, offset, (new, *arguments[1:]) if isinstance(arguments, tuple) else new))
        low.tile = tiles  # type: ignore[assignment]  # a named tuple since Pillow 11
        low.load()
        result, low_bytes = np.array(high), np.asarray(low)
    key = high.info.get("transparency")
    for first in range(0, len(result), STRIP_ROWS):  # all at once would take ten times the picture's memory
        strip = slice(first, first + STRIP_ROWS)
        value = result[strip].astype(np.uint16) << 8 | low_bytes[strip]
        result[strip] = _eight_bit(value)
        if isinstance(key, tuple) and len(key) == value.shape[2] == 3:
            result[strip][(value == np.array(key)).all(axis=2)] = background
    return Image.fromarray(result)


def _eight_bit(value: np.ndarray) -> np.ndarray:
    """uint16 to uint8: 1/257 of it, rounded."""
    return ((value.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _through_profile(image: Image.Image) -> Image.Image:
    """CMYK or Lab to sRGB by the embedded ICC profile, else by Pillow's plain formula."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            made = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return made or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile for other colours than the picture has: fall back to the plain formula
    return image.convert("RGB")


def _sixteen_bit(image: Image.Image) -> np.ndarray:
    """Integer pixels of Pillow's modes I;16*, I as uint16 [H, W]; refuses values that need more than 16 bits."""
    values = np.array(image)
    if _tag(image, TIFF_PHOTOMETRIC, 1) == 0:
        values = 65535 - values  # 0 is white; Pillow only turns 8 bits round
    if values.dtype.kind == "i" and values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError("its values need more than 16 bits; save it with 8 or 16 bits")
    return values.astype(np.uint16)


def _load_npy(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype != np.uint16 or len(shape) != 2:
        raise DataError(f"a depth array must be uint16 [H, W], this one is {dtype} {list(shape)}")
    if shape[0] * shape[1] * 2 != len(data) - stream.tell():
        raise DataError("the array is cut off")
    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.uint16)


def _reason(error: Exception) -> str:
    """One short line for the manifest, in words a photographer understands."""
    text = str(error).splitlines()[0][:REASON_LENGTH] if str(error) else type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS // 1_000_000} megapixels (a decompression bomb?)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a supported format"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut off ({text})"
    return f"damaged: {text}"
