"""Makes image files of all kinds that people have, and files that are no images: `python -m tests.difficult FOLDER`.

Equal versions of Pillow and its libraries make equal files. tests/data/test_difficult.py knows the pixels of each.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

COUNT = 1000
ORIENTATION = 0x0112  # EXIF's tag
# PNG's passes of an interlaced image: the first row and column of each, and the steps to the next ones
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def oriented(number: int) -> bytes:
    """EXIF data with this orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif.tobytes()


def png(
    pixels: np.ndarray,
    colour: int,
    *chunks: tuple[bytes, bytes],
    size: tuple[int, int] | None = None,
    bits: int | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG of `(H, W, C)` uint16 or uint8; `chunks` come before the pixels.

    `size` and `bits` are what the header claims: with fewer bits than a byte has, the pixels are packed already. Pillow
    can write neither 16 bits in colour nor 2 and 4 bits in gray, and nothing interlaced.
    """
    height, width = size or pixels.shape[:2]
    passes = [pixels[y::down, x::right] for y, x, down, right in ADAM7] if interlaced else [pixels]
    stored = pixels.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(stored).tobytes() for each in passes for row in each)
    header = struct.pack(">IIBBBBB", width, height, bits or 8 * pixels.itemsize, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def ycck(image: Image.Image) -> bytes:
    """A JPEG as Photoshop writes it: inverted CMYK, whose first three channels are stored as YCbCr."""
    negative = image.point(lambda value: 255 - value).convert("YCbCr")
    channels = [channel.point(lambda value: 255 - value) for channel in negative.split()]
    stored = Image.merge("CMYK", [*channels, Image.new("L", image.size)])
    content = bytearray(file_of(stored, "JPEG", quality=100))
    content[content.index(b"Adobe") + 11] = 2  # the transform; 0 is CMYK
    return bytes(content)


def photo(generator: np.random.Generator) -> Image.Image:
    """Smooth shapes and some noise, 8 to 70 pixels wide and high."""
    height, width = generator.integers(8, 70, 2)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in generator.uniform(0.05, 0.6, (3, 3))]
    noise = generator.normal(0, 8, (height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))


def _deep(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint16."""
    return np.minimum(np.asarray(image).astype(np.uint32) * 257 + 77, 65535).astype(np.uint16)


def _gray16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(_deep(image)[..., 0]))


def _big_endian(image: Image.Image) -> Image.Image:
    return Image.frombytes("I;16B", image.size, np.asarray(_gray16(image)).astype(">u2").tobytes())


def _floats(image: Image.Image, divisor: int) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / divisor)


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image


def _frames(image: Image.Image, kind: str, **options: Any) -> bytes:
    others = [image.transpose(Image.Transpose.ROTATE_180), image.point(lambda value: 255 - value)]
    return file_of(image, kind, save_all=True, append_images=others, **options)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


KINDS: dict[str, Callable[[Image.Image, int], bytes]] = {
    "baseline.jpg": lambda image, n: file_of(image, "JPEG", quality=(40, 75, 95)[n % 3], subsampling=n % 3),
    "progressive.jpg": lambda image, n: file_of(image, "JPEG", progressive=True),
    "gray.jpg": lambda image, n: file_of(image.convert("L"), "JPEG"),
    "oriented.jpg": lambda image, n: file_of(image, "JPEG", exif=oriented(n % 10)),
    "oriented.png": lambda image, n: file_of(image, "PNG", exif=oriented(n % 10)),
    "oriented.tif": lambda image, n: file_of(image, "TIFF", tiffinfo={ORIENTATION: n % 8 + 1}),
    "oriented.webp": lambda image, n: file_of(image, "WEBP", lossless=True, exif=oriented(n % 8 + 1)),
    "palette.png": lambda image, n: file_of(image.quantize(5), "PNG"),
    "palette_transparent.png": lambda image, n: file_of(image.quantize(5), "PNG", transparency=n % 5),
    "palette_alpha.png": lambda image, n: file_of(image.quantize(5), "PNG", transparency=bytes([0, 90, 200, 255, 9])),
    "palette_transparent.gif": lambda image, n: file_of(image.quantize(5), "GIF", transparency=n % 5),
    "bilevel.png": lambda image, n: file_of(image.convert("1"), "PNG"),
    "bilevel.tif": lambda image, n: file_of(image.convert("1"), "TIFF", compression="group4"),
    "gray16.png": lambda image, n: file_of(_gray16(image), "PNG"),
    "gray16.tif": lambda image, n: file_of(_gray16(image), "TIFF"),
    "gray16_big_endian.tif": lambda image, n: file_of(_big_endian(image), "TIFF"),
    "gray16.pgm": lambda image, n: file_of(_gray16(image), "PPM"),
    "gray16_transparent.png": lambda image, n: png(
        _deep(image)[..., :1], 0, (b"tRNS", _deep(image)[0, 0, :1].astype(">u2").tobytes())
    ),
    "gray32.tif": lambda image, n: file_of(_gray16(image).convert("I"), "TIFF"),
    "gray32_negative.tif": lambda image, n: file_of(
        Image.fromarray(np.asarray(_gray16(image)).astype(np.int32) - 9999), "TIFF"
    ),
    "float.tif": lambda image, n: file_of(_floats(image, 255), "TIFF"),
    "float_wide.tif": lambda image, n: file_of(_floats(image, 1), "TIFF"),
    "rgb16.png": lambda image, n: png(_deep(image), 2),
    "rgba16.png": lambda image, n: png(np.concatenate([_deep(image), _deep(image)[..., :1]], 2), 6),
    "alpha.png": lambda image, n: file_of(_with_alpha(image), "PNG"),
    "gray_alpha.png": lambda image, n: file_of(_with_alpha(image).convert("LA"), "PNG"),
    "rgb_transparent.png": lambda image, n: png(
        np.asarray(image), 2, (b"tRNS", np.asarray(image)[0, 0].astype(">u2").tobytes())
    ),
    "cmyk.jpg": lambda image, n: file_of(image.convert("CMYK"), "JPEG"),
    "cmyk.tif": lambda image, n: file_of(image.convert("CMYK"), "TIFF"),
    "ycck.jpg": lambda image, n: ycck(image),
    "lab.tif": lambda image, n: file_of(ImageCms.applyTransform(image, _to_lab()), "TIFF"),
    "animation.gif": lambda image, n: _frames(image, "GIF"),
    "animation.webp": lambda image, n: _frames(image, "WEBP", lossless=True),
    "animation.png": lambda image, n: _frames(image, "PNG"),
    "multi_picture.mpo": lambda image, n: _frames(image, "MPO"),
    "pages.tif": lambda image, n: _frames(image, "TIFF"),
    "profile.jpg": lambda image, n: file_of(image, "JPEG", icc_profile=_profile()),
    "profile.png": lambda image, n: file_of(image, "PNG", icc_profile=_profile()),
    "lossy.webp": lambda image, n: file_of(image, "WEBP", quality=60),
    "plain.bmp": lambda image, n: file_of(image, "BMP"),
    "lzw.tif": lambda image, n: file_of(image, "TIFF", compression="tiff_lzw"),
    "jpeg.tif": lambda image, n: file_of(image, "TIFF", compression="jpeg"),
    "wrong_extension.png": lambda image, n: file_of(image, "JPEG"),
    "long.png": lambda image, n: file_of(image.resize((1 + n % 3, 3000)), "PNG"),
    "one_pixel.png": lambda image, n: file_of(image.crop((0, 0, 1, 1)), "PNG"),
    "large.jpg": lambda image, n: file_of(image.resize((900 + n, 700)), "JPEG"),
    "huge.png": lambda image, n: png(np.asarray(image), 2, size=(100_000, 100_000)),
    "huge.gif": lambda image, n: (content := file_of(image, "GIF"))[:6] + b"\xff" * 4 + content[10:],
    "empty_dimensions.png": lambda image, n: png(np.asarray(image), 2, size=(0, 5)),
    "truncated.jpg": lambda image, n: _cut(file_of(image, "JPEG"), n),
    "truncated.png": lambda image, n: _cut(file_of(image, "PNG"), n),
    "truncated.webp": lambda image, n: _cut(file_of(image, "WEBP"), n),
    "truncated.gif": lambda image, n: _cut(file_of(image, "GIF"), n),
    "truncated.tif": lambda image, n: _cut(file_of(image, "TIFF", compression="tiff_lzw"), n),
    "photo.heic": lambda image, n: b"\0\0\0\x18ftyp" + (b"heic", b"heix", b"mif1")[n % 3] + bytes(40),
    "photo.avif": lambda image, n: b"\0\0\0\x18ftypavif" + bytes(40),
    "photo.cr2": lambda image, n: b"II*\0\x10\0\0\0CR\2\0" + file_of(image, "TIFF")[12:],
    "preview.dng": lambda image, n: file_of(image, "TIFF", tiffinfo={254: 1}),
    "drawing.svg": lambda image, n: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "page.jpg": lambda image, n: b"<!doctype html><title>404</title>",
    "document.pdf": lambda image, n: b"%PDF-1.7\n",
    "vector.eps": lambda image, n: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "nothing.jpg": lambda image, n: b"",
    "text.jpg": lambda image, n: b"hello",
}  # fmt: skip


def _cut(content: bytes, number: int) -> bytes:
    """Without the last part, of another length for each number."""
    return content[: len(content) * (1 + number % 15) // 17]


def _to_lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def files(count: int = COUNT) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents, the kinds in turn."""
    kinds = list(KINDS.items())
    for number in range(count):
        turn, place = divmod(number, len(kinds))
        name, make = kinds[place]
        yield f"{number:04d}_{name}", make(photo(np.random.default_rng(number)), turn)


def main(folder: Path) -> None:
    """Write the files into two class folders."""
    for number, (name, content) in enumerate(files()):
        path = folder / ("even", "odd")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
