"""The font of pictures, DejaVu Sans, which matplotlib ships, and the characters that it has.

A system font would give different bytes on different machines.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def font_file(*, bold: bool = False) -> Path:
    """Path of the font, without importing matplotlib."""
    matplotlib = find_spec("matplotlib")
    assert matplotlib, "a dependency of this project"
    assert matplotlib.origin, "it is a package"
    return Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


PRINTABLE = range(32, 127)  # of ASCII, which every font draws


def drawable(text: str) -> str:
    r"""The text in a line, with an escape such as `\u732b` or `\n` for each character that the font does not draw.

    Only pictures need it.
    """
    known = PRINTABLE if text.isascii() else _letters()
    return "".join(
        letter if ord(letter) in known and letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


@cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font  # 0.2 s, for the few names that need it

    return frozenset.intersection(*(frozenset(FT2Font(font_file(bold=bold)).get_charmap()) for bold in (False, True)))
