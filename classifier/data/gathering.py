"""Gathers a data set's images into a collection: those of the known sets, and those of a folder, which are decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from classifier.data.collection import Collection, Originals, Piece, held
from classifier.data.dataset import SPLITS, known_preprocessing
from classifier.data.decoding import Decoder, Facts, decode_all, joined, read_pixels
from classifier.data.formats import parse
from classifier.data.normalization import make_splits
from classifier.data.pixels import BadImageError, decode
from classifier.data.preprocessing import Preprocessing
from classifier.data.ranges import measure
from classifier.data.splits import assign_splits
from classifier.errors import UserError
from classifier.params import NormalizeParams
from classifier.project.progress import counting

SAMPLE = 200  # images by which `normalize.invert: auto` decides
GRAY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}  # Pillow's modes


class Files(Protocol):
    """`classifier.sources.images.Images`."""

    class_names: tuple[str, ...]
    listed: bool

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]: ...

    def records(self, start: int, stop: int) -> Iterator[Any]: ...

    def read(self, record: Any) -> bytes: ...


def known_set(
    dataset: str, files: Mapping[str, bytes], class_names: Sequence[str], params: NormalizeParams
) -> Collection:
    """The collection of a known set, from its original files."""
    parsed = parse(dataset, files)
    splits = make_splits(*parsed, class_names, params)
    preprocessing = known_preprocessing(splits["train"].images.shape[1])
    names = [f"{name}/{place}" for name, split in splits.items() for place in range(len(split))]
    height, width = parsed[0][0].shape[-2:]
    parts = [held(split.images, preprocessing.margin) for split in splits.values() if len(split)]
    return Collection(
        class_names=class_names,
        pieces=[piece for pieces, _ in parts for piece in pieces],
        facts=joined([facts for _, facts in parts]),
        labels=np.concatenate([split.labels for split in splits.values()]),
        splits=np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(split) for split in splits.values()]),
        originals=Originals(
            names,
            np.full(len(names), width, np.int32),
            np.full(len(names), height, np.int32),
            ["L" if preprocessing.channels == 1 else "RGB"] * len(names),
            None,
        ),
    )


def preprocessing_of(images: Files, params: NormalizeParams) -> Preprocessing:
    """The preprocessing that params ask for.

    `channels: auto` is 1 if all images are stored in gray. `invert: auto` inverts gray images with a light background.
    """
    channels: int = 0 if params.channels == "auto" else params.channels
    if not channels:
        channels = 1 if set(images.column("mode")) <= {*GRAY, None} else 3
    preprocessing = Preprocessing.model_validate(
        {
            "image_size": params.image_size,
            "margin": 0,
            "resize": params.resize,
            "channels": channels,
            "invert": params.invert is True,
        }
    )
    light = params.invert == "auto" and channels == 1 and has_light_background(images, preprocessing)
    return preprocessing.model_copy(update={"invert": True}) if light else preprocessing


def has_light_background(images: Files, preprocessing: Preprocessing) -> bool:
    """Whether most of SAMPLE evenly spaced images have a border whose mean is above half of the range."""
    stretched = preprocessing.model_copy(update={"resize": "stretch"})  # without padding
    light = []
    for place in sorted({number * len(images) // SAMPLE for number in range(SAMPLE)} if len(images) else ()):
        (record,) = images.records(place, place + 1)
        if record.problem is None:
            with suppress(BadImageError):  # `decode_folder` reports it
                pixels = decode(images.read(record), stretched)
                light.append(measure(pixels[None], 0)["border"][0] > 0.5)
    return bool(sum(light) * 2 > len(light))


@dataclass(frozen=True)
class Decoded:
    """The files of a folder after decoding."""

    pieces: list[Piece]
    facts: Facts | None  # of the K images that were decoded; None without any
    problems: dict[str, str]  # path -> reason, of the stage download and of decoding


def decode_folder(images: Files, preprocessing: Preprocessing, work: Path) -> Decoded:
    """Decode all files of a folder, on every core; `work`: the folder of the chunks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with counting("decoding images", len(images)) as advance:
        chunks = decode_all(Decoder(images, preprocessing, work), images.column("sha256"), cores, advance)
    problems = {number: reason for number, reason in enumerate(images.column("problem")) if reason is not None}
    for chunk in chunks:
        problems |= chunk.problems
    paths = images.column("path") if problems else []
    filled = [chunk for chunk in chunks if len(chunk.facts.numbers)]
    return Decoded(
        pieces=[Piece(len(chunk.facts.numbers), partial(read_pixels, chunk.path)) for chunk in filled],
        facts=joined([chunk.facts for chunk in filled]) if filled else None,
        problems={paths[number]: problems[number] for number in sorted(problems)},
    )


def folder_set(images: Files, decoded: Decoded, params: NormalizeParams) -> Collection:
    """The collection of a folder, with a split for each image."""
    if decoded.facts is None:
        raise UserError("the folder holds no image: docs/images.md says which files are images")
    numbers = decoded.facts.numbers.tolist()

    def column(name: str) -> list[Any]:
        values = images.column(name)
        return [values[number] for number in numbers]

    labels = np.array(column("label"), np.int64)
    return Collection(
        class_names=images.class_names,
        pieces=decoded.pieces,
        facts=decoded.facts,
        labels=labels,
        splits=assign_splits(
            labels,
            images.class_names,
            params,
            given=column("split"),
            groups=column("group"),
            allow_empty=images.listed,
        ),
        originals=Originals(
            names=column("path"),
            widths=np.array(column("width"), np.int32),
            heights=np.array(column("height"), np.int32),
            modes=column("mode"),
            sha256=column("sha256"),
        ),
    )
