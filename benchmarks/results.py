"""Statistics of samples, limits and tables, as they are printed and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression, median
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A requirement: `value` must be at most `limit`, or at least `limit` if `at_least` is set."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        return [self.what, f"{self.value:.4g}", f"{sign} {self.limit:g}", "met" if self.met else "**missed**"]


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        return f"### {self.title}\n\n{markdown(self.header, self.rows)}"


@dataclass(frozen=True)
class Result:
    """Results of one section."""

    bars: Sequence[Bar]
    tables: Sequence[Table]

    def as_json(self) -> dict[str, Any]:
        bars = [asdict(bar) | {"met": bar.met} for bar in self.bars]
        return {"bars": bars, "tables": [asdict(table) for table in self.tables]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        bars = [Bar(**{key: value for key, value in bar.items() if key != "met"}) for bar in found["bars"]]
        return cls(bars, [Table(**table) for table in found["tables"]])


@dataclass(frozen=True)
class Line:
    """A least-squares line, and the maximum relative deviation of the points from it."""

    slope: float
    constant: float
    deviation: float


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    slope, constant = linear_regression(x, y)
    deviations = [abs(value / (constant + slope * at) - 1) for at, value in zip(x, y, strict=True)]
    return Line(slope, constant, max(deviations))


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the ratio of the medians."""
    return median(values) / median(others)


def paired(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of each round: less noisy where the machine's speed changes between rounds."""
    return median(value / other for value, other in zip(values, others, strict=True))


def summary(values: Sequence[float], digits: int = 2) -> str:
    """Format as `median (min to max)`, or as the value if there is only one."""
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format an aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    pads = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)] for row in (header, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def document(kept: dict[str, Any]) -> str:
    """Format all sections as Markdown: date and machine, all bars, then the tables."""
    results = [Result.from_json(found) for found in kept.values()]
    sections: dict[str, list[str]] = {}
    for name, found in kept.items():
        sections.setdefault(found["measured"], []).append(name)
    measured = [
        f"`make bench`: {'' if len(sections) == 1 else ', '.join(names) + ': '}{when_and_where}"
        for when_and_where, names in sections.items()
    ]
    parts = [*measured, bars(kept)]
    parts += [table.markdown() for result in results for table in result.tables]
    return "\n\n".join(filter(None, parts)) + "\n"


def bars(kept: dict[str, Any]) -> str:
    """Format the bars of all sections as one table; empty if there are none."""
    rows = [[*bar.row(), str(found["rounds"])] for found in kept.values() for bar in Result.from_json(found).bars]
    return markdown(["what", "measured", "bar", "", "rounds"], rows) if rows else ""
