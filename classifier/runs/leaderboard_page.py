"""The leaderboard as one self-contained HTML file, without scripts."""

from __future__ import annotations

from base64 import b64encode
from html import escape

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from classifier.evaluation.style import BLUE, MUTED, png
from classifier.runs.leaderboard import LEVEL, Board, Entry

DRAWN = 40  # entries in the picture
STYLES = [
    {"selector": "", "props": "border-collapse: collapse; font-variant-numeric: tabular-nums"},
    {
        "selector": "th, td",
        "props": "text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e3e8ed",
    },
    {"selector": "th", "props": "color: #66727f"},
    {"selector": "td", "props": "white-space: nowrap; vertical-align: top"},
]
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>Leaderboard</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; margin: 2rem }} p {{ max-width: 60rem }}</style>
</head>
<body>
<h1>Leaderboard</h1>
<p>{legend}</p>
<img alt="Test accuracy of every entry" width="800" src="data:image/png;base64,{picture}">
{table}
</body>
</html>
"""


def page(board: Board) -> str:
    """The HTML document. A row's run expands to the runs of all seeds."""
    rows = board.table().reset_index(names="").reset_index(drop=True)
    text = rows.columns.drop("run")
    rows["run"] = [_details(entry) for entry in board.entries]

    def emphasis(row: pd.Series[str]) -> list[str]:
        entry = board.entries[int(str(row.name))]
        return ["font-weight: 600" if entry.best else "" if board.ranks(entry) else "color: #66727f"] * len(row)

    table = (
        rows.style.set_uuid("board")
        .hide(axis="index")
        .format(escape="html", subset=text)
        .format_index(escape="html", axis="columns")
        .apply(emphasis, axis="columns")
        .set_table_styles(STYLES)  # type: ignore[arg-type]
        .to_html()
    )
    return PAGE.format(legend=escape(legend(board)), picture=b64encode(picture(board)).decode(), table=table)


def _details(entry: Entry) -> str:
    lines = "".join(
        f"<div>{escape(each.run)} seed {escape(each.seed)}: {each.accuracy:.2%}</div>" for each in entry.results
    )
    return f"<details><summary>{escape(f'{entry.run[:8]} {entry.name}')}</summary>{lines}</details>"


def legend(board: Board) -> str:
    """Explain the columns."""
    others = sum(not board.ranks(entry) for entry in board.entries)
    aside = f" Rows on other test data ({others}) are listed last and not compared." if others else ""
    return (
        "A row combines the runs that differ only in the seed: n seeds, the mean of their test accuracy, its standard "
        "deviation and 95% interval (Student's t; none for one seed). Against the best: McNemar's test on the same "
        "images, of each row's median run that has predictions, with Holm's correction to "
        f"{LEVEL:.0%} for all tests together. Test data {board.test_data[:12]}.{aside}"
    )


@png
def picture(board: Board) -> Figure:
    """Plot the best entries: each seed as a dot, and the mean with its interval."""
    entries = [entry for entry in board.entries if board.ranks(entry)][:DRAWN]
    figure = Figure(figsize=(8, 1 + 0.22 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(entries, start=1):
        seeds = [result.accuracy for result in entry.results]
        axes.plot(seeds, [place] * len(seeds), "o", color=MUTED, alpha=0.5, markersize=4)
        if entry.low is not None and entry.high is not None:
            axes.plot([entry.low, entry.high], [place, place], color=BLUE)
        axes.plot(entry.mean, place, "o", color=BLUE, markersize=6)
    axes.set(ylim=(len(entries) + 0.6, 0.4), xlabel="test accuracy")
    axes.set_yticks(range(1, len(entries) + 1), [entry.label for entry in entries], size=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return figure
