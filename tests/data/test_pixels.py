"""A test for each row of the table in docs/images.md."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from classifier.data.dataset import known_preprocessing
from classifier.data.pixels import (
    FORMATS,
    LARGEST_PIXELS,
    REFUSED,
    BadImageError,
    Preprocessing,
    TooLargeError,
    decode,
    decode_in_box,
)
from tests.difficult import file_of, oriented, png, ycck

GENERATOR = np.random.default_rng(0)
COLOUR = GENERATOR.integers(0, 256, (8, 8, 3), np.uint8)
GRAY = COLOUR[..., 0]
DEEP = GENERATOR.integers(0, 65536, (8, 8, 3)).astype(np.uint16)


def rule(**values: Any) -> Preprocessing:
    given = {"image_size": 8, "margin": 0, "resize": "stretch", "channels": 3, "invert": False}
    return Preprocessing.model_validate(given | values)


def pixels(content: bytes, **values: Any) -> np.ndarray:
    """(H, W, C)."""
    return decode(content, rule(**values)).transpose(1, 2, 0)


def refuses(content: bytes, reason: str, **values: Any) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(content, rule(**values))


def retagged(content: bytes, tag: int, kind: int, old: int, new: int) -> bytes:
    """A TIFF with another value of a tag; kind: 3 for 16 bits, 4 for 32 bits."""
    entry = struct.pack("<HHII", tag, kind, 1, old)
    assert entry in content
    return content.replace(entry, struct.pack("<HHII", tag, kind, 1, new))


def smooth(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], 2).astype(np.uint8))


def test_an_original_of_a_known_set_becomes_its_canonical_pixels():
    gray, colour = GENERATOR.integers(0, 256, (28, 28), np.uint8), GENERATOR.integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(decode(file_of(Image.fromarray(gray), "PNG"), known_preprocessing(1)), np.pad(gray, 2)[None])
    found = decode(file_of(Image.fromarray(colour), "PNG"), known_preprocessing(3))
    assert np.array_equal(found, colour.transpose(2, 0, 1))
    assert found.flags.c_contiguous


def test_each_format_is_decoded():
    image = smooth(24, 24).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    lossless, lossy = ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"), ("JPEG", "WEBP")
    assert {*lossless, *lossy} == set(FORMATS)
    for kind in lossless:
        content = file_of(image if kind == "GIF" else image.convert("RGB"), kind, lossless=True)
        assert np.array_equal(pixels(content, image_size=24), expected), kind
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        content = file_of(image.convert("RGB"), "TIFF", compression=compression)
        assert np.array_equal(pixels(content, image_size=24), expected), compression
    for kind in lossy:
        found = pixels(file_of(smooth(24, 24), kind, quality=100), image_size=24).astype(int)
        assert np.abs(found - np.asarray(smooth(24, 24))).mean() < 5, kind


ORIENTED = {  # EXIF 2.32, table 6: what stands upright in the stored pixels
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("number", [*ORIENTED, 0, 9])
def test_exif_orientation(number):
    stored = Image.fromarray(COLOUR)
    upright = ORIENTED.get(number, ORIENTED[1])
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True})]:
        assert np.array_equal(pixels(file_of(stored, kind, exif=oriented(number), **options)), upright(COLOUR)), kind
    plain = pixels(file_of(stored, "JPEG"))
    assert np.array_equal(pixels(file_of(stored, "JPEG", exif=oriented(number))), upright(plain))
    if number in ORIENTED:
        assert np.array_equal(pixels(file_of(stored, "TIFF", tiffinfo={0x0112: number})), upright(COLOUR))


def test_orientation_decides_what_is_padded():
    content = file_of(smooth(8, 4), "PNG", exif=oriented(6))
    found, box = decode_in_box(content, rule(resize="pad"))
    assert box == (0, 2, 8, 6)
    assert found[:, :2].max() == found[:, 6:].max() == 0


def test_palette():
    image = Image.fromarray(COLOUR).quantize(7)
    expected = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    assert np.array_equal(pixels(file_of(image, "PNG")), expected)
    assert np.array_equal(pixels(file_of(image, "GIF")), expected)
    shown = np.where(np.asarray(image)[..., None] == 2, 255, expected)
    for kind in ("PNG", "GIF"):
        assert np.array_equal(pixels(file_of(image, kind, transparency=2)), shown), kind
    half = bytes([0, 255, 255, 255, 255, 255, 255])
    shown = np.where(np.asarray(image)[..., None] == 0, 255, expected)
    assert np.array_equal(pixels(file_of(image, "PNG", transparency=half)), shown)


def test_1_bit():
    image = Image.fromarray(GRAY > 127)
    expected = np.where(GRAY > 127, 255, 0)[..., None]
    for kind, options in [("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})]:
        assert np.array_equal(pixels(file_of(image, kind, **options), channels=1), expected), kind
    few = png(GRAY[..., None], 0)
    assert np.array_equal(pixels(few, channels=1), GRAY[..., None])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_scaled(bits):
    values = GRAY >> 8 - bits
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(8, -1), axis=1)
    tiff = retagged(file_of(Image.fromarray(packed), "TIFF"), 256, 4, bits, 8)  # the width
    for content in (
        png(packed[..., None], 0, size=(8, 8), bits=bits),
        retagged(tiff, 258, 3, 8, bits),
        b"P5 8 8 %d\n%b" % (2**bits - 1, values.tobytes()),  # the largest value stands for white
    ):
        assert np.array_equal(pixels(content, channels=1), values[..., None] * (255 // (2**bits - 1))), content[:4]


def test_16_bit_is_scaled_not_clipped():
    deep = np.ascontiguousarray(DEEP[..., 0])
    expected = (deep >> 8)[..., None]
    big = Image.frombytes("I;16B", (8, 8), deep.astype(">u2").tobytes())
    for image, kind in [
        (Image.fromarray(deep), "PNG"),
        (Image.fromarray(deep), "TIFF"),
        (big, "TIFF"),
        (Image.fromarray(deep), "PPM"),
        (Image.fromarray(deep.astype(np.int32)), "TIFF"),
    ]:
        assert np.array_equal(pixels(file_of(image, kind), channels=1), expected), (image.mode, kind)
        assert np.array_equal(pixels(file_of(image, kind)), expected.repeat(3, 2)), (image.mode, kind)
    assert np.array_equal(pixels(png(DEEP, 2)), DEEP >> 8)
    transparent = png(deep[..., None], 0, (b"tRNS", deep[3, 3:4].astype(">u2").tobytes()))
    assert pixels(transparent, channels=1)[3, 3] == 255


def test_white_is_zero_in_some_tiffs():
    for image in (Image.fromarray(GRAY), Image.fromarray(np.ascontiguousarray(DEEP[..., 0]))):
        content = file_of(image, "TIFF")
        inverted = retagged(content, 262, 3, 1, 0)
        assert np.array_equal(pixels(inverted, channels=1), 255 - pixels(content, channels=1)), image.mode


def test_wider_numbers_are_scaled_if_their_range_is_known_and_refused_otherwise():
    share = GRAY.astype(np.float32) / 255
    assert np.array_equal(pixels(file_of(Image.fromarray(share), "TIFF"), channels=1), GRAY[..., None])
    refuses(file_of(Image.fromarray(share * 255), "TIFF"), "floating-point pixels from .* to 2..: allowed are 0 to 1")
    share[0, 0] = np.nan
    refuses(file_of(Image.fromarray(share), "TIFF"), "floating-point pixels from nan to nan")
    wide = Image.fromarray(GRAY.astype(np.int32) - 1000)
    refuses(file_of(wide, "TIFF"), "32-bit pixels from -.* to -7..: allowed are 0 to 65,535")


def test_alpha_lies_on_white():
    alpha = np.full((8, 8), 128, np.uint8)
    alpha[0], alpha[1] = 0, 255
    found = pixels(file_of(Image.fromarray(np.dstack([COLOUR, alpha])), "PNG"))
    assert (found[0] == 255).all()
    assert np.array_equal(found[1], COLOUR[1])
    assert np.abs(found[2:] - (COLOUR[2:] * (128 / 255) + 127)).max() <= 1
    gray = pixels(file_of(Image.fromarray(np.dstack([GRAY, alpha])), "PNG"), channels=1)[..., 0]
    assert (gray[0] == 255).all()
    assert np.array_equal(gray[1], GRAY[1])
    deep = pixels(png(np.dstack([DEEP, alpha.astype(np.uint16) * 257]), 6))
    assert (deep[0] == 255).all()
    assert np.array_equal(deep[1], DEEP[1] >> 8)
    hidden = png(COLOUR, 2, (b"tRNS", COLOUR[4, 4].astype(">u2").tobytes()))
    assert (pixels(hidden)[4, 4] == 255).all()
    assert np.array_equal(pixels(hidden)[5], COLOUR[5])


def test_cmyk_and_the_inverted_ycck_of_adobe():
    image = smooth(8, 8)
    for content in (
        file_of(image.convert("CMYK"), "TIFF"),
        file_of(image.convert("CMYK"), "JPEG", quality=100),
        ycck(image),
    ):
        assert np.abs(pixels(content).astype(int) - np.asarray(image)).max() <= 8


def test_cmyk_that_does_not_say_whether_it_is_inverted_is_refused():
    content = file_of(smooth(8, 8).convert("CMYK"), "JPEG")
    start = content.index(b"\xff\xee")  # Adobe's marker, then the length of its segment
    stop = start + 2 + int.from_bytes(content[start + 2 : start + 4])
    with pytest.raises(BadImageError, match="a CMYK JPEG that does not say whether it is inverted"):
        pixels(content[:start] + content[stop:])


def test_gray_among_colour_and_colour_among_gray():
    gray = file_of(Image.fromarray(GRAY), "PNG")
    assert np.array_equal(pixels(gray), GRAY[..., None].repeat(3, 2))
    same = file_of(Image.fromarray(GRAY[..., None].repeat(3, 2)), "PNG")
    assert np.array_equal(pixels(same, channels=1), GRAY[..., None])
    luma = (COLOUR @ [19595, 38470, 7471] + 32768) >> 16  # ITU-R 601-2
    assert np.array_equal(pixels(file_of(Image.fromarray(COLOUR), "PNG"), channels=1)[..., 0], luma)


def test_the_first_frame_or_page():
    first, second = smooth(8, 8).quantize(64), Image.fromarray(COLOUR).quantize(64)
    alone = pixels(file_of(first, "PNG"))
    several = {"save_all": True, "append_images": [second.convert("RGB")]}
    for kind, options in [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]:
        content = file_of(first if kind == "GIF" else first.convert("RGB"), kind, **several, **options)
        assert np.array_equal(pixels(content), alone), kind
    photo = smooth(8, 8)
    content = file_of(photo, "MPO", save_all=True, append_images=[Image.fromarray(COLOUR)])
    assert np.array_equal(pixels(content), pixels(file_of(photo, "JPEG")))


def test_progressive_is_as_baseline():
    image = smooth(40, 60)
    baseline, progressive = (pixels(file_of(image, "JPEG", progressive=value)) for value in (False, True))
    assert np.array_equal(baseline, progressive)


def test_interlaced_is_as_not_interlaced():
    for image, colour in [(COLOUR, 2), (DEEP, 2), (GRAY[..., None], 0)]:
        assert np.array_equal(pixels(png(image, colour, interlaced=True)), pixels(png(image, colour))), image.shape
    rows, interlaced = (file_of(smooth(24, 24).quantize(64), "GIF", interlace=value) for value in (0, 1))
    assert rows != interlaced
    assert np.array_equal(pixels(interlaced, image_size=24), pixels(rows, image_size=24))


def test_an_embedded_profile_is_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("JPEG", "PNG"):
        image = smooth(8, 8)
        assert np.array_equal(pixels(file_of(image, kind, icc_profile=profile)), pixels(file_of(image, kind))), kind


def test_dimensions_are_limited_before_anything_is_decoded():
    for size in ((100_000, 100_000), (1, LARGEST_PIXELS + 1)):
        with pytest.raises(TooLargeError, match=r"pixels: allowed are 89,478,485 in all"):
            decode(png(COLOUR, 2, size=size), rule())
    refuses(png(COLOUR, 2, size=(0, 8)), "not an image, or its header is damaged")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in FORMATS),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_file_is_refused_or_whole(kind, options):
    """Files may end with bytes that hold no pixels."""
    content = file_of(smooth(24, 24), kind, **options)
    whole = pixels(content)
    refused = 0
    for length in range(len(content)):
        try:
            assert np.array_equal(pixels(content[:length]), whole), length
        except BadImageError:
            refused += 1
    assert refused >= len(content) - 20


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("image", [COLOUR, np.zeros_like(COLOUR)], ids=["colour", "black"])
def test_a_png_with_fewer_rows_than_its_header_says_is_refused(image, interlaced):
    """Pillow leaves them black, which an image may also be."""
    for height in range(1, 9):
        rows = image[:height]
        assert np.array_equal(
            pixels(png(rows, 2, interlaced=interlaced)), pixels(file_of(Image.fromarray(rows), "PNG"))
        )
        lacking = png(rows, 2, size=(8, height + 1), interlaced=interlaced)
        refuses(lacking, "^(truncated: fewer rows than its header says|damaged: .*)$")


def tiff(pixels: np.ndarray, planar: bool, side: int, tiled: bool, height: int) -> bytes:
    """An uncompressed TIFF of `(H, W, 3)` in strips of `side` rows or in square tiles; its header says `height`."""
    planes = np.split(pixels, 3, axis=2) if planar else [pixels]
    columns = side if tiled else pixels.shape[1]
    blocks = [
        plane[top : top + side, left : left + columns].tobytes()
        for plane in planes
        for top in range(0, len(pixels), side)
        for left in range(0, pixels.shape[1], columns)
    ]
    lengths = [len(block) for block in blocks]
    places = [8 + sum(lengths[:number]) for number in range(len(blocks))]
    tags = {256: [pixels.shape[1]], 257: [height], 258: [8] * 3, 259: [1], 262: [2], 277: [3], 284: [1 + planar]}
    tags |= {322: [side], 323: [side], 324: places, 325: lengths} if tiled else {273: places, 278: [side], 279: lengths}
    end = 8 + sum(lengths)
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            content, values = struct.pack("<I", end + 6 + 12 * len(tags) + len(values)), values + content
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + content
    directory = struct.pack("<H", len(tags)) + entries + bytes(4) + values
    return b"II*\0" + struct.pack("<I", end) + b"".join(blocks) + directory


def test_a_compressed_tiff_is_not_refused_for_its_strips():
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        pixels(file_of(Image.fromarray(COLOUR), "TIFF", compression=compression))
    pixels(file_of(smooth(9, 9).convert("1"), "TIFF", compression="group4"))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("side", "tiled"), [(3, False), (4, False), (8, False), (16, True)])
def test_a_tiff_with_fewer_rows_than_its_header_says_is_refused(planar, side, tiled):
    image = np.tile(COLOUR, (4, 4, 1))
    content = tiff(image, planar, side, tiled, height=32)
    assert np.array_equal(pixels(content, image_size=32), image)
    more = tiff(image, planar, side, tiled, height=32 + side)
    refuses(more, "^truncated: fewer rows than its header says$", image_size=32)


def test_a_jpeg_of_endless_scans_is_refused():
    content = file_of(smooth(24, 24), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    refuses(content[:-2] + 200 * content[last:-2] + content[-2:], "a JPEG of 2.. scans: allowed are 200")


WITHOUT_RULE = [
    *((b"\0\0\0\x18ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
    *((b"\0\0\0\x18ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (file_of(Image.fromarray(COLOUR), "JPEG2000", no_jp2=True), "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a\0", "JPEG XL"),
    (b"8BPS\0\1", "Photoshop"),
    (b"%PDF-1.7", "PDF"),
    (file_of(Image.fromarray(COLOUR), "EPS"), "PostScript"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, HTML or XML"),
    (b"<!doctype html>", "SVG, HTML or XML"),
    *((file_of(Image.fromarray(COLOUR), kind), "an icon") for kind in ("ICO", "ICNS")),
    (b"\0\0\0\x18ftypcrx ", "a camera's raw file"),
    *((magic, "a camera's raw file") for magic in (b"II*\0\x10\0\0\0CR\2\0", b"FUJIFILMCCD-RAW 0201")),
    *((magic, "a camera's raw file") for magic in (b"IIRO\x08\0", b"IIRS\x08\0", b"IIU\0\x18\0")),
]


def test_a_kind_without_a_rule_is_refused_by_name():
    for content, kind in WITHOUT_RULE:
        refuses(content, f"^{kind}, which is not supported: convert it to JPEG or PNG$")
    begun = {(start, content[start : start + len(magic)]) for content, _ in WITHOUT_RULE for start, magic in REFUSED}
    assert REFUSED.keys() <= begun, "each has a case above"
    preview = file_of(smooth(8, 8), "TIFF", tiffinfo={254: 1})
    refuses(preview, "^a camera's raw file, whose first picture is a preview: convert it to JPEG or PNG$")
    lab = file_of(Image.frombytes("LAB", (8, 8), COLOUR.tobytes()), "TIFF")
    refuses(lab, "^pixels of mode LAB, which are not supported: convert it to JPEG or PNG$")


def test_anything_else_is_refused():
    refuses(b"", "^an empty file$")
    for content in (b"hello", file_of(smooth(8, 8), "TGA"), file_of(smooth(8, 8), "PCX")):
        refuses(content, "^not an image, or its header is damaged$")


def test_resizing_pads_crops_or_stretches_with_antialiasing():
    checks = np.indices((64, 128)).sum(0) % 2 * 255
    content = file_of(Image.fromarray(checks.astype(np.uint8)), "PNG")
    stretched = pixels(content, channels=1)
    assert stretched.shape == (8, 8, 1)
    assert np.abs(stretched.astype(int) - 127).max() <= 8, "aliasing would show black or white"
    padded, box = decode_in_box(content, rule(channels=1, resize="pad"))
    assert box == (0, 2, 8, 6)
    assert padded[0, 2:6].min() > 100
    assert padded[0, :2].max() == padded[0, 6:].max() == 0
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    cropped = pixels(file_of(Image.fromarray(wide), "PNG"), channels=1, resize="crop")
    assert (cropped == 200).all(), "the square in the centre"
    thin = file_of(Image.new("L", (3000, 1), 90), "PNG")
    assert (pixels(thin, channels=1, resize="pad") > 0).sum() == 8
    one = file_of(Image.new("L", (1, 1), 90), "PNG")
    assert (pixels(one, channels=1) == 90).all()


def test_margin_and_inversion():
    content = file_of(Image.fromarray(GRAY), "PNG")
    found = pixels(content, channels=1, image_size=12, margin=2, invert=True)[..., 0]
    assert np.array_equal(found, np.pad(255 - GRAY, 2))
    with pytest.raises(ValueError, match="a margin of 4 pixels leaves nothing of 8"):
        rule(margin=4)


def test_a_large_jpeg_is_shrunk_while_it_is_decoded_to_nearly_the_same_pixels():
    image = smooth(1000, 1500)
    content = file_of(image, "JPEG", quality=95)
    found = pixels(content, image_size=60, resize="crop").astype(int)
    cropped = Image.open(BytesIO(content)).crop((250, 0, 1250, 1000)).resize((60, 60), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(cropped)).mean() < 3


def test_damaged_metadata_and_trailing_bytes_change_nothing():
    content = file_of(smooth(8, 8), "JPEG", exif=oriented(1))
    broken = content.replace(b"Exif\0\0", b"Exif\0\0XX", 1)[: len(content)]
    for changed in (content + b"trailing", content.replace(b"MM\0*", b"XXXX", 1).replace(b"II*\0", b"XXXX", 1)):
        assert np.array_equal(pixels(changed), pixels(content))
    assert broken != content
