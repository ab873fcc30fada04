"""Pictures of a data set, drawn with Pillow: importing matplotlib would take longer than all of them.

Equal images give equal bytes, with equal versions of Pillow and the font.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from classifier.data.preprocessing import Pixels
from classifier.project.colours import FAINT, INK, MUTED
from classifier.project.lettering import drawable, font_file

TILE, GAP, MARGIN = 64, 4, 24  # pixels
LABEL_WIDTH, TITLE_HEIGHT = 260, 72


@dataclass(frozen=True)
class Row:
    """A row of a contact sheet: a title, a line about it, and tiles."""

    title: str
    about: str
    tiles: Sequence[Image.Image]


@dataclass(frozen=True)
class Couple:
    """Two images side by side, with a line about each and one about both."""

    tiles: tuple[Image.Image, Image.Image]
    names: tuple[str, str]
    about: str


def tile(image: Pixels, side: int = TILE) -> Image.Image:
    """An image `(C, H, W)` at a height and width of `side`: not interpolated if that is a multiple of its own."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")
    whole = side % picture.width == 0
    return picture.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)


def contact_sheet(title: str, rows: Sequence[Row]) -> bytes:
    """A row per class, as PNG."""
    columns = max((len(row.tiles) for row in rows), default=0)
    width = MARGIN + LABEL_WIDTH + max(columns, 4) * (TILE + GAP) + MARGIN
    picture, draw = _sheet(width, TITLE_HEIGHT + len(rows) * (TILE + GAP) + MARGIN, title)
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + number * (TILE + GAP)
        draw.text((MARGIN, top + 12), _shortened(row.title, 15, LABEL_WIDTH - 16), INK, _font(15, bold=True))
        draw.text((MARGIN, top + 36), _shortened(row.about, 12, LABEL_WIDTH - 16), MUTED, _font(12))
        for place, each in enumerate(row.tiles):
            picture.paste(each, (MARGIN + LABEL_WIDTH + place * (TILE + GAP), top))
    return _png(picture)


def couples(title: str, pairs: Sequence[Couple], columns: int = 3) -> bytes:
    """Pairs of images with their names, as PNG."""
    side = pairs[0].tiles[0].width if pairs else 2 * TILE
    width, height = 2 * side + GAP, side + 64
    rows = -(-len(pairs) // columns)
    sheet = MARGIN + columns * (width + MARGIN)
    picture, draw = _sheet(sheet, TITLE_HEIGHT + rows * (height + GAP) + MARGIN, title)
    for number, pair in enumerate(pairs):
        left = MARGIN + number % columns * (width + MARGIN)
        top = TITLE_HEIGHT + number // columns * (height + GAP)
        for place, each in enumerate(pair.tiles):
            picture.paste(each, (left + place * (side + GAP), top))
        for line, (text, colour) in enumerate([(pair.about, INK), (pair.names[0], MUTED), (pair.names[1], MUTED)]):
            draw.text((left, top + side + 4 + 18 * line), _shortened(text, 12, width), colour, _font(12))
    return _png(picture)


def _sheet(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 20), title, INK, _font(20, bold=True))
    draw.line((MARGIN, TITLE_HEIGHT - 14, width - MARGIN, TITLE_HEIGHT - 14), FAINT, 1)
    return picture, draw


def _png(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG", compress_level=3)
    return stream.getvalue()


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(bold=bold), size)


def _shortened(text: str, size: int, width: int) -> str:
    """The text, or its beginning and end with an ellipsis, in at most `width` pixels."""
    text, font = drawable(text), _font(size, bold=True)
    if font.getlength(text) <= width:
        return text
    kept = max(2, int(len(text) * width / font.getlength(text)) - 2)
    while kept > 2 and font.getlength(f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}") > width:
        kept -= 1
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
