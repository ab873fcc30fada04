"""From the bytes of an image file to pixels: the one rule for training, prediction and serving.

docs/images.md has the rule for each kind of file. Equal bytes and equal `Preprocessing` give equal pixels; a file that
no rule covers is refused, never replaced. The content decides which format a file has, its name does not matter.
"""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from classifier.data.completeness import lacks_rows
from classifier.data.preprocessing import Pixels
from classifier.data.preprocessing import Preprocessing as Preprocessing  # exported for callers of `decode`
from classifier.errors import UserError

Box = tuple[int, int, int, int]

PINNED = "13.0.0"  # of Pillow, as in requirements.lock. A change makes `dvc repro` decode again and name what changed
# No format that runs another program (EPS), and none whose decoder is not known to give equal bits everywhere (AVIF).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # a JPEG with several pictures (MPO) is a JPEG
JPEGS = ("JPEG", "MPO")  # as Pillow calls what it read
LARGEST_PIXELS = 89_478_485  # of a file, which may take 4 bytes each; Pillow warns above this number
MOST_SCANS = 200  # of a JPEG; usual ones have 1 to 12, and each may take as long as decoding all of it
PHOTOMETRIC = 262  # tag of TIFF; 0: white is zero, which Pillow leaves to us for 16 bits
NEW_SUBFILE_TYPE = 254  # tag of TIFF, of which bit 1 says that the picture is a preview
Image.MAX_IMAGE_PIXELS = None  # `_open` checks LARGEST_PIXELS

RAW = "a camera's raw file"
REFUSED = {  # (offset, bytes at this offset) -> kind of file
    (4, b"ftypheic"): "HEIC",
    (4, b"ftypheix"): "HEIC",
    (4, b"ftyphevc"): "HEIC",
    (4, b"ftypmif1"): "HEIC",
    (4, b"ftypmsf1"): "HEIC",
    (4, b"ftypavif"): "AVIF",
    (4, b"ftypavis"): "AVIF",
    (4, b"jP  \r\n\x87\n"): "JPEG 2000",
    (0, b"\xff\x4f\xff\x51"): "JPEG 2000",
    (4, b"JXL \r\n\x87\n"): "JPEG XL",
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"8BPS"): "Photoshop",
    (0, b"%PDF"): "PDF",
    (0, b"%!PS"): "PostScript",
    (0, b"<"): "SVG, HTML or XML",
    (0, b"\0\0\1\0"): "an icon",
    (0, b"icns"): "an icon",
    (4, b"ftypcrx"): RAW,
    (8, b"CR\2\0"): RAW,
    (0, b"FUJIFILMCCD-RAW"): RAW,
    (0, b"IIRO"): RAW,
    (0, b"IIRS"): RAW,
    (0, b"IIU\0"): RAW,
}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L", "F"}


class BadImageError(UserError):
    """A file that cannot be decoded; the message is the reason, without the file's name."""


class TooLargeError(BadImageError):
    """A file with more than LARGEST_PIXELS."""


def decoder() -> str:
    """The libraries that decode and resize, with their versions: other versions may give other pixels."""
    names = {"libjpeg_turbo": "libjpeg-turbo", "webp": "libwebp", "libtiff": "libtiff"}
    parts = [f"Pillow {PIL.__version__}"]
    return ", ".join(parts + [f"{name} {features.version(key)}" for key, name in names.items() if features.check(key)])


def decode(content: bytes, preprocessing: Preprocessing) -> Pixels:
    """The pixels of an image file, `(channels, image_size, image_size)` in 0..255.

    Raises BadImageError, with the reason, for a file that is damaged, too large or of a kind without a rule.
    """
    return decode_in_box(content, preprocessing)[0]


def decode_in_box(content: bytes, preprocessing: Preprocessing) -> tuple[Pixels, Box]:
    """Like `decode`, with the part of the pixels that is not padding: left, top, right, bottom."""
    with warnings.catch_warnings():  # Pillow's, about metadata that no rule reads
        warnings.simplefilter("ignore")
        try:
            image = _open(content)
            _draft(image, preprocessing)
            image.load()
            if lacks_rows(image, content):
                raise BadImageError("truncated: fewer rows than its header says")
            ImageOps.exif_transpose(image, in_place=True)
            return _canvas(_in_colour(image, preprocessing.channels), preprocessing)
        except (BadImageError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise many types for damaged files
            raise BadImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}"[:300]) from None


def _open(content: bytes) -> Image.Image:
    """Read the header alone. Raises BadImageError for another kind of file, and for dimensions beyond the limit."""
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImageError(_kind(content)) from None
    if image.width * image.height > LARGEST_PIXELS:
        raise TooLargeError(f"{image.width} x {image.height} pixels: allowed are {LARGEST_PIXELS:,} in all")
    if image.format in JPEGS and (scans := content.count(b"\xff\xda")) > MOST_SCANS:
        raise BadImageError(f"a JPEG of {scans:,} scans: allowed are {MOST_SCANS}")
    if image.format in JPEGS and image.mode == "CMYK" and "adobe" not in image.info:
        raise BadImageError("a CMYK JPEG that does not say whether it is inverted: convert it to RGB")
    if image.format == "TIFF" and image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:  # type: ignore[attr-defined]
        raise BadImageError(f"{RAW}, whose first picture is a preview: convert it to JPEG or PNG")
    if image.mode not in MODES:
        raise BadImageError(f"pixels of mode {image.mode}, which are not supported: convert it to JPEG or PNG")
    return image


def _kind(content: bytes) -> str:
    if not content:
        return "an empty file"
    for (start, magic), kind in REFUSED.items():
        if content[start : start + len(magic)] == magic:
            return f"{kind}, which is not supported: convert it to JPEG or PNG"
    return "not an image, or its header is damaged"


def _draft(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Let the JPEG decoder halve the image while it stays twice as large as needed: less work and memory."""
    width, height = preprocessing.resized(*image.size)
    if image.format in JPEGS and image.width >= 4 * width and image.height >= 4 * height:
        image.draft(None, (2 * width, 2 * height))


def _in_colour(image: Image.Image, channels: int) -> Image.Image:
    """8 bits per channel, gray or RGB, with transparent parts on white."""
    target = "L" if channels == 1 else "RGB"
    if image.mode == target and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert(target)
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    return image.convert(target)


def _eight_bits(image: Image.Image) -> Pixels:
    """The high byte of 16 bits, as Pillow reads the channels of colour images; floats in 0..1 times 255, rounded."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise BadImageError(f"floating-point pixels from {low:g} to {high:g}: allowed are 0 to 1")
        scaled: Pixels = np.rint(values * 255).astype(np.uint8)
        return scaled
    if low < 0 or high > 65535:
        raise BadImageError(f"32-bit pixels from {low} to {high}: allowed are 0 to 65,535")
    gray: Pixels = (values >> 8).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        gray = 255 - gray
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = 255
    return gray


def _canvas(image: Image.Image, preprocessing: Preprocessing) -> tuple[Pixels, Box]:
    """Resize with antialiasing (Pillow's bicubic filter), crop or pad, and invert."""
    inner, size = preprocessing.inner, preprocessing.image_size
    if preprocessing.resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    resized = preprocessing.resized(*image.size)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    pixels = pixels[None] if preprocessing.channels == 1 else pixels.transpose(2, 0, 1)
    if preprocessing.invert:
        pixels = 255 - pixels
    if resized == (size, size):
        return np.ascontiguousarray(pixels), (0, 0, size, size)
    canvas = np.zeros((preprocessing.channels, size, size), np.uint8)
    left, top = ((inner - side) // 2 + preprocessing.margin for side in resized)
    right, bottom = left + resized[0], top + resized[1]
    canvas[:, top:bottom, left:right] = pixels
    return canvas, (left, top, right, bottom)
