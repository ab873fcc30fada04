"""Tables for a terminal, without line breaks in cells. Columns that do not fit are left out and named.

If the table still does not fit, each row is printed as a record.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from textwrap import wrap

PLAIN = 160  # columns where there is no terminal
GAP = "  "
BOLD, DIM, RESET = "\033[1m", "\033[2m", "\033[0m"


def tabulate(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    optional: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print a table. `optional`: columns that may be left out, in this order. `styles`: BOLD, DIM or "" per row."""
    print("\n".join(lines(header, rows, width(), title=title, optional=optional, styles=styles)))


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN


def lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: int,
    *,
    title: str = "",
    optional: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> list[str]:
    """Format a table in lines of at most `columns` characters, or as records if its required columns do not fit."""
    hidden: list[str] = []
    table = [list(header), *map(list, rows)]
    for name in optional:
        if _wide(table, header, hidden) <= columns:
            break
        if name in header and name not in hidden:
            hidden.append(name)
    told = [_styled(title, BOLD)] if title else []
    if _wide(table, header, hidden) > columns:
        return [*told, *_records(header, rows)]
    kept = [place for place, name in enumerate(header) if name not in hidden]
    widths = [max(len(row[place]) for row in table) for place in kept]
    for number, row in enumerate(table):
        line = GAP.join(f"{row[place]:{size}}" for place, size in zip(kept, widths, strict=True)).rstrip()
        style = BOLD if number == 0 else styles[number - 1] if styles else ""
        told.append(_styled(line, style))
    if hidden:
        left_out = f"left out at a width of {columns}: {'; '.join(hidden)}"
        told += [_styled(line, DIM) for line in wrap(left_out, columns, break_long_words=False)]
    return told


def _wide(table: Sequence[Sequence[str]], header: Sequence[str], hidden: Collection[str]) -> int:
    kept = [place for place, name in enumerate(header) if name not in hidden]
    return sum(max(len(row[place]) for row in table) for place in kept) + len(GAP) * (len(kept) - 1)


def _records(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format each row as a block of lines, one value per line."""
    size, found = max(map(len, header)), []
    for row in rows:
        found += [f"{name:{size}}{GAP}{value}".rstrip() for name, value in zip(header, row, strict=True)] + [""]
    return found[:-1]


def _styled(text: str, style: str) -> str:
    return f"{style}{text}{RESET}" if style and sys.stdout.isatty() else text
