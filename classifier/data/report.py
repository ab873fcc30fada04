"""Writes `reports/data/`, the report on the data to read before training, and defines its files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.data.collection import Collection, Mask
from classifier.data.dataset import SPLITS
from classifier.data.drift import Drift
from classifier.data.duplicates import Duplicates
from classifier.data.normalization import mean_and_std
from classifier.data.pictures import Couple, Row, contact_sheet, couples, tile
from classifier.data.preprocessing import Preprocessing
from classifier.project.files import write_atomic, write_json

SHEET_ROWS, TILES = 50, (8, 16)  # classes in a sheet; images of a class, with many and with few classes
PAIRS, PAIR_SIDE = 24, 128  # pairs in a picture, pixels of an image


@dataclass(frozen=True)
class Report:
    """What reports/data/ shows."""

    collection: Collection
    preprocessing: Preprocessing
    kept: Mask
    duplicates: Duplicates
    problems: Mapping[str, str]  # path -> reason
    excluded: Mapping[str, str]  # path -> reason
    drift: Drift | None

    def write(self, folder: Path) -> dict[str, int]:
        """Write the files below and return the summary. Equal input gives equal bytes.

        - `summary.json`: images, classes, excluded, blank, exact_duplicates, near_duplicates, leaks (pairs in two
          splits)
        - `classes.csv`: class, name, train, validation, test; the number of images per class
        - `sizes.csv`: width, height, images; of the original files, in pixels
        - `modes.csv`: mode, images; of the original files, in Pillow's terms
        - `channels.csv`: split, channel, mean, std; of pixels scaled to 0..1
        - `problems.csv`: path, reason; the files that cannot be used
        - `excluded.csv`: path, reason; the images that no split holds, if there are any
        - `blank.csv`: path, split, label; the images of a single colour, if there are any
        - `duplicates.csv`: kind (exact, near), crossing, first, second, first_split, second_split, first_label,
          second_label, correlation
        - `drift.csv`: path, largest_difference; only if the pixels of images changed since the last normalization
        - `classes.png`: images of each class; `classes-2.png` and so on with more than 50 classes
        - `duplicates.png`: the pairs, those in two splits first
        """
        summary = {
            "images": int(self.kept.sum()),
            "classes": len(self.collection.class_names),
            "excluded": len(self.excluded),
            "blank": len(self.blank),
            "exact_duplicates": int(self.duplicates.pairs.exact.sum()),
            "near_duplicates": int((~self.duplicates.pairs.exact).sum()),
            "leaks": int(self.duplicates.crossing.sum()),
        }
        write_json(folder / "summary.json", summary)
        write_problems(folder, self.problems)
        for name, header, rows in self._tables():
            write_csv(folder / name, header, rows)
        for name, content in self._pictures():
            write_atomic(folder / name, content)
        return summary

    @cached_property
    def blank(self) -> npt.NDArray[np.int64]:
        """The kept images of a single colour, apart from their padding: n pixels whose squares sum to sum^2 / n."""
        originals = self.collection.originals
        sizes, same = np.unique(np.stack([originals.widths, originals.heights], 1), axis=0, return_inverse=True)
        areas = np.array([self.preprocessing.area(*size) for size in sizes.tolist()], np.float64)[same.ravel(), None]
        sums, squares = np.moveaxis(self.collection.facts.sums.astype(np.float64), 2, 0)  # (N, C) each
        return np.flatnonzero(self.kept & (areas * squares - sums**2 < areas / 2).all(1))

    def _tables(self) -> Iterable[tuple[str, Sequence[str], Iterable[Sequence[Any]]]]:
        collection, originals = self.collection, self.collection.originals
        counts, kept = collection.counts(self.kept), np.flatnonzero(self.kept)
        names = collection.class_names
        classes = [(number, name, *(counts[split][number] for split in SPLITS)) for number, name in enumerate(names)]
        yield "classes.csv", ("class", "name", *SPLITS), classes
        sizes = Counter(zip(originals.widths[kept].tolist(), originals.heights[kept].tolist(), strict=True))
        yield "sizes.csv", ("width", "height", "images"), [(*size, count) for size, count in _ranked(sizes)]
        modes = Counter(originals.modes[place] for place in kept.tolist())
        yield "modes.csv", ("mode", "images"), _ranked(modes)
        channels = []
        for number, split in enumerate(SPLITS):
            sums, pixels = collection.sums(self.kept & (collection.splits == number))
            for channel, (first, second) in enumerate(sums.tolist() if pixels else []):
                mean, std = mean_and_std(first, second, pixels)
                channels.append((split, channel, f"{mean:.6f}", f"{std:.6f}"))
        yield "channels.csv", ("split", "channel", "mean", "std"), channels
        yield (
            "duplicates.csv",
            (
                *("kind", "crossing", "first", "second", "first_split", "second_split"),
                *("first_label", "second_label", "correlation"),
            ),
            self._pairs(),
        )
        if len(self.blank):
            rows = [(originals.names[n], SPLITS[collection.splits[n]], names[collection.labels[n]]) for n in self.blank]
            yield "blank.csv", ("path", "split", "label"), rows
        if self.excluded:
            yield "excluded.csv", ("path", "reason"), self.excluded.items()
        if self.drift and self.drift.largest:
            yield "drift.csv", ("path", "largest_difference"), self.drift.largest.items()

    def _pairs(self) -> Iterable[Sequence[Any]]:
        collection, pairs = self.collection, self.duplicates.pairs
        names, classes = collection.originals.names, collection.class_names
        for number in range(len(pairs)):
            both = (int(pairs.first[number]), int(pairs.second[number]))
            yield (
                "exact" if pairs.exact[number] else "near",
                "yes" if self.duplicates.crossing[number] else "no",
                *(names[place] for place in both),
                *(SPLITS[collection.splits[place]] for place in both),
                *(classes[collection.labels[place]] for place in both),
                f"{pairs.correlation[number]:.4f}",
            )

    def _pictures(self) -> Iterable[tuple[str, bytes]]:
        collection, pairs = self.collection, self.duplicates.pairs
        names = collection.class_names
        shown = TILES[len(names) <= SHEET_ROWS]
        train = self.kept & (collection.splits == 0)
        of_class = [_sample(np.flatnonzero(train & (collection.labels == label)), shown) for label in range(len(names))]
        order = np.argsort(~self.duplicates.crossing, kind="stable")[:PAIRS]
        in_sheet = {int(place) for places in of_class for place in places}
        in_pairs = {int(place) for places in (pairs.first[order], pairs.second[order]) for place in places}
        tiles, large = {}, {}
        for place, image in collection.some(in_sheet | in_pairs):
            if place in in_sheet:
                tiles[place] = tile(image)
            if place in in_pairs:
                large[place] = tile(image, PAIR_SIDE)
        counts = collection.counts(self.kept)
        rows = [
            Row(
                name,
                ", ".join(f"{counts[split][label]:,} {split}" for split in SPLITS),
                [tiles[int(place)] for place in of_class[label]],
            )
            for label, name in enumerate(names)
        ]
        for start in range(0, len(rows), SHEET_ROWS):
            number = f"-{start // SHEET_ROWS + 1}" if start else ""
            yield (
                f"classes{number}.png",
                contact_sheet("Images of the training split", rows[start : start + SHEET_ROWS]),
            )
        yield "duplicates.png", self._couples(order, large)

    def _couples(self, order: np.ndarray, tiles: Mapping[int, Any]) -> bytes:
        collection, pairs, crossing = self.collection, self.duplicates.pairs, self.duplicates.crossing
        shown = []
        for number in order:
            both = int(pairs.first[number]), int(pairs.second[number])
            splits = " and ".join(dict.fromkeys(SPLITS[collection.splits[place]] for place in both))
            kind = "equal pixels" if pairs.exact[number] else f"correlation {pairs.correlation[number]:.3f}"
            names = collection.originals.names[both[0]], collection.originals.names[both[1]]
            shown.append(Couple((tiles[both[0]], tiles[both[1]]), names, f"{splits}: {kind}"))
        title = f"{len(pairs):,} pairs of duplicates, {int(crossing.sum()):,} of them in two splits"
        more = f"; {len(order)} are shown" if len(order) < len(pairs) else ""
        return couples(f"{title}{more}" if len(pairs) else "No exact or near duplicates", shown)


def write_problems(folder: Path, problems: Mapping[str, str]) -> None:
    """Write problems.csv."""
    write_csv(folder / "problems.csv", ("path", "reason"), problems.items())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write UTF-8 with line feeds and None as an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Most frequent first; ties in the order of their keys."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _sample(members: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the members, evenly spaced."""
    chosen: np.ndarray = members[np.linspace(0, len(members) - 1, min(count, len(members))).astype(int)]
    return chosen
