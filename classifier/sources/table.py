"""A table of images: a CSV or Parquet file with the columns path, label and, optionally, split and group."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from unicodedata import normalize

from classifier.errors import UserError
from classifier.params import DownloadParams
from classifier.sources.layout import SPLIT_NAMES, Layout, Placed, class_order
from classifier.sources.listing import Listing

SHOWN = 50  # problems in one message
COLUMNS = ("path", "label", "split", "group")
REQUIRED = COLUMNS[:2]

Row = tuple[str, str, str, str]  # path, label, split, group; empty if the table lacks it


def lay_out_by(content: bytes, listing: Listing, params: DownloadParams) -> Layout:
    """Assign classes, splits and groups by the table; files that it does not name are left out.

    Raises UserError with all problems of the table, each with its row; row 1 of a CSV file is its header.
    """
    name = f"table {params.table}"
    by_path = {entry.path.removeprefix(listing.root): entry for entry in listing.entries}
    files: dict[str, Placed] = {}
    problems: list[str] = []
    rows = 0
    for number, (path, label, split, group) in _rows(name, content, params):
        rows += 1
        path, problem = path.removeprefix("./"), None
        if path in files:
            problem = f"path {path!r:.200} is in an earlier row too"
        elif path not in by_path:
            problem = f"path {path!r:.200} is not a file in {params.folder}" + _hint(path)
        elif not label:
            problem = "the label is empty"
        elif split and split.lower() not in SPLIT_NAMES:
            problem = f"split {split!r:.200}: allowed are train, validation and test"
        if problem:
            problems.append(f"row {number}: {problem}")
            continue
        entry = by_path[path]
        placed = (normalize("NFC", label), SPLIT_NAMES.get(split.lower()), normalize("NFC", group) or None)
        files[path] = Placed(entry, *((None, None, None) if entry.problem else placed))
    without = [file.split is None for file in files.values() if file.class_name]
    if any(without) and not all(without):
        problems.append(f"{sum(without):,} rows have no split: allowed is one in every row, or in none")
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise UserError("\n  ".join([f"{name} has {count}:", *problems[:SHOWN], *more]))
    if not rows:
        raise UserError(f"{name} has no rows: allowed is one or more")
    placed_files = [files[path] for path in by_path if path in files]
    return Layout(placed_files, class_order(placed_files, (), params))


def _hint(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        return ": paths are relative to it"
    if "\\" in path:
        return ": folders are separated by /"
    return ""


def _rows(name: str, content: bytes, params: DownloadParams) -> Iterator[tuple[int, Row]]:
    """Yield the number and the values of each row."""
    yield from (_parquet_rows if content.startswith(b"PAR1") else _csv_rows)(name, content, params)


def _csv_rows(name: str, content: bytes, params: DownloadParams) -> Iterator[tuple[int, Row]]:
    try:
        reader = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is neither Parquet nor UTF-8 text: {error}: save it as UTF-8") from None
    try:
        header = [column.strip() for column in next(reader, [])]
        places = _places(name, header, params)
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(f"{name}: row {reader.line_num} has {len(values)} values, the header {len(header)}")
            path, label, split, group = ("" if place is None else values[place] for place in places)
            yield reader.line_num, (path, label.strip(), split.strip(), group.strip())
    except csv.Error as error:
        raise UserError(f"{name}: row {reader.line_num} is not CSV: {error}") from None


def _parquet_rows(name: str, content: bytes, params: DownloadParams) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa  # 0.1 s
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(pa.BufferReader(content))
        places = _places(name, list(file.schema_arrow.names), params)
        columns = [file.schema_arrow.names[place] for place in places if place is not None]
        number = 0
        for batch in file.iter_batches(columns=columns):
            values = batch.to_pydict()
            for index in range(batch.num_rows):
                number += 1
                row = iter([values[column][index] for column in columns])
                texts = ["" if place is None else _text(next(row)) for place in places]
                yield number, (texts[0], texts[1], texts[2], texts[3])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a complete Parquet file: {' '.join(str(error).split()):.300}") from None


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _places(name: str, header: list[str], params: DownloadParams) -> list[int | None]:
    """The indices of COLUMNS in the header; None for an optional column that is missing."""
    names = [*COLUMNS[:3], params.groups if isinstance(params.groups, str) else COLUMNS[3]]
    required = {*REQUIRED, params.groups}
    if missing := [column for column in names if column not in header and column in required]:
        separator = "; values are separated by commas" if len(header) == 1 and set(header[0]) & set(";\t|") else ""
        raise UserError(
            f"{name} has no column {' and no column '.join(missing)} among {', '.join(header)[:300] or 'none'}: "
            f"allowed are {', '.join(names)}, the last two optional{separator}"
        )
    if twice := [column for column in names if header.count(column) > 1]:
        raise UserError(f"{name} has the column {twice[0]} twice")
    return [header.index(column) if column in header else None for column in names]
