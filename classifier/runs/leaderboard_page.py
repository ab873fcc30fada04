"""The leaderboard as one HTML file: no scripts, no fonts, nothing that a browser would have to fetch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from classifier.runs.leaderboard import LEVEL, Board, Entry

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #66727f; --faint: #e3e8ed; --paper: #fff; --line: #2f6db5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaee; --muted: #93a0ad; --faint: #323b45; --paper: #171c21; --line: #6aa3e8; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
p { color: var(--muted); max-width: 60rem; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); position: sticky; top: 0; background: var(--paper); }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--faint); }
td { white-space: nowrap; vertical-align: top; }
td.number, th.number { text-align: right; }
tr.aside { color: var(--muted); }
tr.best td { font-weight: 600; }
tr.best td.plain { font-weight: normal; }
summary { cursor: pointer; font-family: ui-monospace, monospace; }
details div { font: .85em/1.5 ui-monospace, monospace; color: var(--muted); }
svg { display: block; overflow: visible; }
.interval { stroke: var(--line); stroke-width: 2; }
.seed { fill: var(--muted); fill-opacity: .45; }
.mean { fill: var(--line); }
.scale { stroke: var(--faint); }
.aside .interval { stroke: var(--muted); }
.aside .mean { fill: var(--muted); }
"""
WIDTH, HEIGHT, EDGE = 260, 20, 6  # pixels of an entry's picture


def page(board: Board) -> str:
    """The whole document."""
    columns = [*board.columns, "parameters", "training, s"]
    heads = [("", ""), ("n", "number"), ("test accuracy", "number"), ("std", "number"), ("95% interval", ""), ("", "")]
    heads += [(name, "number") for name in columns] + [("against the best", ""), ("run", "")]
    low, high = _range(board.entries)
    rows = [_row(place, entry, board, low, high) for place, entry in enumerate(board.entries, start=1)]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in heads)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>Leaderboard</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Leaderboard</h1>
<p>{escape(legend(board))}</p>
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{"".join(rows)}</tbody>
</table>
</body>
</html>
"""


def legend(board: Board) -> str:
    """What the columns mean."""
    others = sum(entry.test_data != board.test_data for entry in board.entries)
    aside = f" {others} on other test data stand below, not comparable." if others else ""
    return (
        "Runs that differ in nothing but the seed are one row: n seeds, the mean of their test accuracy, its standard "
        "deviation and 95% interval (Student's t; none for one seed). Against the best: McNemar's test on the same "
        "images, of each row's median run that has predictions, with Holm's correction to "
        f"{LEVEL:.0%} for all tests together. Test data {board.test_data[:12]}.{aside}"
    )


def _row(place: int, entry: Entry, board: Board, low: float, high: float) -> str:
    aside = entry.test_data != board.test_data
    kind = "best" if entry.best else "aside" if aside else ""
    interval = f"{entry.low:.2%} to {entry.high:.2%}" if entry.low is not None and entry.high is not None else "-"
    cells = [
        _cell("-" if aside else str(place), "number"),
        _cell(str(len(entry.results)), "number"),
        _cell(f"{entry.mean:.2%}", "number"),
        _cell("-" if entry.std is None else f"{100 * entry.std:.2f}", "number"),
        _cell(interval),
        f"<td>{_picture(entry, low, high)}</td>",
        *(_cell(shown(name, entry.value(name)), "number plain") for name in board.columns),
        _cell(f"{entry.parameters:,}" if entry.parameters else "-", "number plain"),
        _cell(f"{entry.trained_s:.1f}" if entry.trained_s is not None else "-", "number plain"),
        _cell(verdict(entry)),
        f'<td class="plain">{_runs(entry)}</td>',
    ]
    return f'<tr class="{kind}">{"".join(cells)}</tr>\n'


def verdict(entry: Entry) -> str:
    """With the corrected p-value and on how many images the two disagree about what is right."""
    if entry.p_corrected is None:
        return entry.verdict
    return f"{entry.verdict}, p {p_value(entry.p_corrected)} ({entry.here_alone} : {entry.best_alone})"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def shown(column: str, value: str) -> str:
    """A hash by its beginning."""
    return value.removesuffix(".dir")[:8] if column == "data" else value


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>'


def _runs(entry: Entry) -> str:
    lines = "".join(
        f"<div>{escape(result.run)} seed {escape(result.seed)}: {result.accuracy:.2%}</div>" for result in entry.results
    )
    return f"<details><summary>{escape(entry.run[:8])}</summary>{lines}</details>"


def _range(entries: Sequence[Entry]) -> tuple[float, float]:
    """Of all values that are drawn."""
    values = list(_drawn(entries))
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _drawn(entries: Iterable[Entry]) -> Iterable[float]:
    for entry in entries:
        yield from (result.accuracy for result in entry.results)
        yield from (end for end in (entry.low, entry.high) if end is not None)


def _picture(entry: Entry, low: float, high: float) -> str:
    """Every seed as a dot, and the mean with its interval, on the scale of all rows."""

    def x(value: float) -> str:
        return f"{EDGE + (WIDTH - 2 * EDGE) * (value - low) / (high - low):.1f}"

    middle = HEIGHT / 2
    marks = [f'<line class="scale" x1="0" x2="{WIDTH}" y1="{middle}" y2="{middle}"/>']
    if entry.low is not None and entry.high is not None:
        marks.append(f'<line class="interval" x1="{x(entry.low)}" x2="{x(entry.high)}" y1="{middle}" y2="{middle}"/>')
    marks += [f'<circle class="seed" cx="{x(result.accuracy)}" cy="{middle}" r="3"/>' for result in entry.results]
    marks.append(f'<circle class="mean" cx="{x(entry.mean)}" cy="{middle}" r="4"/>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{entry.mean:.2%}">{"".join(marks)}</svg>'
