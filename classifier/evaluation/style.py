"""Style of the project's figures, and their rendering to PNG bytes: equal input gives equal bytes.

Figures are built without pyplot: its global state keeps figures alive and selects an interactive backend.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from matplotlib import colormaps, style
from matplotlib.figure import Figure

from classifier.project import colours
from classifier.project.lettering import drawable

DPI = 150
INK, MUTED, FAINT = colours.INK, colours.MUTED, colours.FAINT
BLUE, ORANGE, GREEN = colours.BLUE, colours.ORANGE, colours.GREEN
SHARES = colormaps["Blues"]  # of 0..1
LONGEST = 22  # letters of a name
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class name may contain "$"
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.12,  # inches
    "figure.constrained_layout.h_pad": 0.12,
}

P = ParamSpec("P")


def png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Decorate a function that draws a figure: apply STYLE and return a PNG without timestamp or software version."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with style.context(["default", STYLE]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a text that was not elided
            file = io.BytesIO()
            draw(*args, **kwargs).savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()

    return drawn


def elided(name: str, longest: int = LONGEST) -> str:
    """A name as one drawable line. A longer name loses its start: its end tells nested classes and files apart."""
    line = drawable(name)
    return line if len(line) <= longest else f"\N{HORIZONTAL ELLIPSIS}{line[1 - longest :]}"
