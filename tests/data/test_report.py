from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classifier.data.collection import Collection, Originals, held
from classifier.data.duplicates import Duplicates, Pairs, find_duplicates
from classifier.data.pictures import Couple, Row, contact_sheet, couples, tile
from classifier.data.preprocessing import Preprocessing
from classifier.data.report import Report


def report(classes: int, per_class: int = 3, images: np.ndarray | None = None, **values) -> Report:
    """Of these images, or of noise with two equal images; the splits take turns."""
    count = classes * per_class
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
        images[1] = images[0]
    pieces, facts = held(images, 0)
    splits = (np.arange(count) % 3).astype(np.int8)
    collection = Collection(
        class_names=[f"class {number}, with a long name that does not fit" for number in range(classes)],
        pieces=pieces,
        facts=facts,
        labels=np.repeat(np.arange(classes), per_class),
        splits=splits,
        originals=Originals(
            [f"a,b/{number}.png" for number in range(count)],
            np.full(count, 9, np.int32),
            np.arange(count, dtype=np.int32) // 4,
            ["L", *["RGB"] * (count - 1)],
            None,
        ),
    )
    found = find_duplicates(facts.digests, facts.thumbs, splits)
    given = {"kept": np.ones(count, bool), "duplicates": found, "problems": {}, "excluded": {}, "drift": None}
    known = Preprocessing(image_size=8, margin=0, resize="stretch", channels=3, invert=False)
    return Report(collection, known, **given | values)


def test_the_tables_hold_what_is_kept(tmp_path):
    kept = np.ones(12, bool)
    kept[5] = False
    metrics = report(4, kept=kept, problems={"é,\n.png": "damaged"}, excluded={"a": "b"}).write(tmp_path)
    assert metrics == json.loads((tmp_path / "summary.json").read_text())
    assert (metrics["images"], metrics["classes"], metrics["excluded"], metrics["leaks"]) == (11, 4, 1, 1)
    classes = pd.read_csv(tmp_path / "classes.csv")
    assert classes[["train", "validation", "test"]].values.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert pd.read_csv(tmp_path / "problems.csv").values.tolist() == [["é,\n.png", "damaged"]]
    assert pd.read_csv(tmp_path / "sizes.csv").values.tolist() == [[9, 0, 4], [9, 2, 4], [9, 1, 3]]
    assert pd.read_csv(tmp_path / "modes.csv").values.tolist() == [["RGB", 10], ["L", 1]]
    assert pd.read_csv(tmp_path / "duplicates.csv")[["first", "second"]].values.tolist() == [["a,b/0.png", "a,b/1.png"]]
    channels = pd.read_csv(tmp_path / "channels.csv")
    assert channels[["split", "channel"]].values.tolist()[:3] == [["train", 0], ["train", 1], ["train", 2]]


@pytest.mark.parametrize(("classes", "pages"), [(2, 1), (50, 1), (51, 2), (120, 3)])
def test_a_sheet_has_fifty_classes_at_most(tmp_path, classes, pages):
    report(classes).write(tmp_path)
    sheets = sorted(path.name for path in tmp_path.glob("classes*.png"))
    assert sheets == sorted(["classes.png", *(f"classes-{page}.png" for page in range(2, pages + 1))])


def test_equal_data_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        report(3).write(tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_blank_images_have_a_single_colour_apart_from_padding(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), np.uint8)
    images[[0, 1, 2, 3]] = np.array([0, 255, 7, 9], np.uint8)[:, None, None, None]
    images[4] = images[5] = 0
    images[4, :, 2:6] = 200  # a strip of 8x4 with its padding
    images[5, :, ::2, ::2] = 255
    images[2, 2, 5, 5] = 8
    found = report(3, 3, images)
    found.collection.originals.widths[:] = 8
    found.collection.originals.heights[:] = np.where(np.arange(9) == 4, 4, 8)
    found = replace(found, preprocessing=found.preprocessing.model_copy(update={"resize": "pad"}))
    found.write(tmp_path)
    expected = [
        ["a,b/0.png", "train"],
        ["a,b/1.png", "validation"],
        ["a,b/3.png", "train"],
        ["a,b/4.png", "validation"],
    ]
    assert pd.read_csv(tmp_path / "blank.csv")[["path", "split"]].values.tolist() == expected


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


def test_an_image_is_shown_with_its_own_pixels():
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    shown = opened(contact_sheet("one", [Row("class", "1 train", [tile(image)])]))
    enlarged = image.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
    assert any(np.array_equal(shown[72:136, left : left + 64], enlarged) for left in range(shown.shape[1] - 63))
    gray = opened(couples("pair", [Couple((tile(image[:1], 64), tile(image[:1], 64)), ("a", "b"), "equal")]))
    assert np.array_equal(gray[72:136, 24:88, 1], image[0].repeat(2, 0).repeat(2, 1))


def test_a_set_without_duplicates_says_so():
    assert opened(couples("No exact or near duplicates", [])).shape[0] < 120


def coloured(count: int) -> np.ndarray:
    """Images of a single colour each, which tells their numbers: red 3 * number, green 255, blue 0."""
    colours = np.array([(3 * number, 255, 0) for number in range(count)], np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours[:, :, None, None], (count, 3, 8, 8)))


def numbers_in(path: Path) -> list[tuple[int, ...]]:
    """The numbers of the images of `coloured` in a picture, from left to right, line by line."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    lines = [dict.fromkeys((row[(row[:, 1:] == (255, 0)).all(1), 0] // 3).tolist()) for row in picture]
    return [line for line in dict.fromkeys(map(tuple, lines)) if line]


def test_a_sheet_shows_training_images_of_each_class_in_the_order_of_the_classes(tmp_path):
    """Class `k` has the images 6k to 6k + 5, of which every third is in train. By name, class 10 comes before 2."""
    report(12, 6, coloured(72)).write(tmp_path)
    assert numbers_in(tmp_path / "classes.png") == [(start, start + 3) for start in range(0, 72, 6)]


def test_the_pairs_of_the_table_are_shown_those_in_two_splits_first(tmp_path):
    first, second = np.array([0, 4, 9, 2, 7]), np.array([3, 8, 12, 10, 13])
    crossing = first % 3 != second % 3
    pairs = Pairs(first, second, np.ones(5), np.arange(5) < 2)
    report(3, 6, coloured(18), duplicates=Duplicates(pairs, crossing, first[crossing])).write(tmp_path)
    table = pd.read_csv(tmp_path / "duplicates.csv").sort_values("crossing", ascending=False, kind="stable")
    assert table["crossing"].tolist() == ["yes", "yes", "no", "no", "no"]
    listed = [int(Path(name).stem) for name in table[["first", "second"]].to_numpy().ravel()]
    assert listed == [4, 8, 2, 10, 0, 3, 9, 12, 7, 13]
    assert [number for line in numbers_in(tmp_path / "duplicates.png") for number in line] == listed
