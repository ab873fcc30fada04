"""Each picture is opened again and its pixels are looked at."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from PIL import Image

from classifier.evaluation import figures
from classifier.evaluation.metrics import Predictions, calibration


def pixels(png: bytes) -> np.ndarray:
    """`(height, width, 3) uint8`."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def chunks(png: bytes) -> dict[str, bytes]:
    """The PNG's chunks by type, each with its checksum verified."""
    found, place = {}, 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        content = png[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0]
        found[kind.decode()] = content
        place += 12 + length
    return found


def mistaken(count: int, of: int, names: list[str]) -> Predictions:
    """Class 0 is predicted for every image; the first `count` are of class 1, the earlier the more confident."""
    top = np.linspace(0.9, 0.6, of)
    rest = np.repeat((1 - top[:, None]) / (len(names) - 1), len(names) - 1, axis=1)
    return Predictions(np.where(np.arange(of) < count, 1, 0), np.log(np.column_stack([top, rest])), names)


def plain_images(count: int, *colours: tuple[int, ...]) -> np.ndarray:
    """`(count, C, 32, 32) uint8`, each of one colour, in turn."""
    images = np.array([colours[number % len(colours)] for number in range(count)], dtype=np.uint8)
    return np.broadcast_to(images[:, :, None, None], (*images.shape, 32, 32)).copy()


def squares(png: bytes, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((pixels(png) == colour).all(axis=2).sum())


@pytest.mark.parametrize(("count", "limit", "shown"), [(1, 25, 1), (4, 25, 4), (7, 25, 7), (7, 3, 3), (40, 25, 25)])
def test_misclassified_shows_each_mistake_once_up_to_the_limit(count: int, limit: int, shown: int) -> None:
    png = figures.misclassified(plain_images(47, (200, 30, 90)), mistaken(count, 47, ["a", "b"]), limit)
    assert squares(png, (200, 30, 90)) == shown * 160**2  # each image pixel 5 pixels wide


def test_misclassified_shows_the_mistakes_and_not_the_hits() -> None:
    images = plain_images(5, (10, 200, 10))
    images[:2] = plain_images(2, (200, 10, 10))
    png = figures.misclassified(images, mistaken(2, 5, ["a", "b"]), 25)
    assert squares(png, (200, 10, 10)) == 2 * 160**2
    assert squares(png, (10, 200, 10)) == 0


def test_misclassified_keeps_gray_values_and_the_most_confident_is_first() -> None:
    images = plain_images(3, (77,), (178,), (30,))
    seen = pixels(figures.misclassified(images, mistaken(2, 3, ["a", "b"]), 25))
    first, second = (np.argwhere((seen == value).all(axis=2)) for value in (77, 178))
    assert first[:, 1].max() < second[:, 1].min()  # left of it
    assert (seen == 30).all(axis=2).sum() < 160**2  # the hit is not shown; some edge of a letter may have its gray


def test_misclassified_shows_images_upright() -> None:
    images = plain_images(1, (0, 0, 255))
    images[0, :, :16] = np.array([255, 0, 0])[:, None, None]
    images[0, :, :16, :16] = np.array([0, 255, 0])[:, None, None]
    seen = pixels(figures.misclassified(images, mistaken(1, 1, ["a", "b"]), 1))
    green, red, blue = (np.argwhere((seen == colour).all(axis=2)) for colour in np.eye(3, dtype=int)[[1, 0, 2]] * 255)
    assert (len(green), len(red), len(blue)) == (80 * 80, 80 * 80, 160 * 80)  # with sharp edges
    assert green[:, 0].max() < blue[:, 0].min()
    assert green[:, 1].max() < red[:, 1].min()


def test_misclassified_without_mistakes_says_so() -> None:
    images = plain_images(7, (200, 30, 90))
    none = figures.misclassified(images, mistaken(0, 7, ["a", "b"]), 25)
    assert squares(none, (200, 30, 90)) == 0
    assert (pixels(none) < 128).any()  # dark writing
    assert none != figures.misclassified(images, mistaken(0, 8, ["a", "b"]), 25)  # it says of how many


def test_misclassified_makes_room_for_long_names() -> None:
    images = plain_images(3, (200, 30, 90))
    png = figures.misclassified(images, mistaken(3, 3, ["airplane", "automobile"]), 25)
    assert squares(png, (200, 30, 90)) == 3 * 224**2


def test_misclassified_refuses_channels_that_no_picture_has() -> None:
    with pytest.raises(ValueError, match="2 channels: a picture can show 1 or 3"):
        figures.misclassified(plain_images(1, (1, 2)), mistaken(1, 1, ["a", "b"]), 1)


@pytest.mark.parametrize("classes", [2, 10, 21])
def test_confusion_colours_a_cell_by_its_share_of_the_row(classes: int) -> None:
    counts = np.zeros((classes, classes), dtype=np.int64)
    counts[0, 0] = 7  # the rest of the rows have no images
    some = pixels(figures.confusion(counts, [str(number) for number in range(classes)]))
    counts[1, 1] = 1000
    more = pixels(figures.confusion(counts, [str(number) for number in range(classes)]))
    darkest = np.array([8, 48, 107])  # of "Blues": the whole row
    dark, twice = ((np.abs(seen.astype(int) - darkest) <= 1).all(axis=2).sum() for seen in (some, more))
    assert twice > 1.4 * dark > 0


def test_confusion_colours_do_not_depend_on_the_largest_share() -> None:
    whole, half = (
        pixels(figures.confusion(np.array(counts), ["a", "b"])) for counts in ([[2, 0], [0, 2]], [[3, 1], [1, 3]])
    )
    darkest = np.array([8, 48, 107])
    of_whole, of_half = ((np.abs(seen.astype(int) - darkest) <= 1).all(axis=2).sum() for seen in (whole, half))
    assert of_whole > 10 * of_half


def test_confusion_writes_the_counts_up_to_20_classes() -> None:
    def changed(classes: int) -> bool:
        counts = np.eye(classes, dtype=np.int64) * 40
        pictures = [figures.confusion(counts * k, [str(c) for c in range(classes)]) for k in (1, 2)]
        first, second = (pixels(png)[80:] for png in pictures)  # the title, which holds the sum, is above
        return bool((first != second).any())

    assert changed(20)
    assert not changed(21)


def test_calibration_shows_over_and_underconfidence_in_their_colours() -> None:
    def colours(labels: list[int]) -> list[int]:
        top = np.full(len(labels), 0.75)
        predictions = Predictions(np.array(labels), np.log(np.stack([top, 1 - top], axis=1)), ["a", "b"])
        seen = pixels(figures.calibration(calibration(predictions, 4))).astype(int)
        seen = seen[: seen.shape[0] * 3 // 4]  # without the legend
        orange, green = (234, 147, 97), (56, 150, 113)  # over and under, on white and on the bar
        return [int((np.abs(seen - colour) <= 12).all(axis=2).sum()) for colour in (orange, green)]

    over, none = colours([0, 1, 1, 1])
    assert over > 5_000
    assert none < 50
    none, under = colours([0, 0, 0, 0])
    assert none < 50
    assert under > 5_000


def history(**columns: object) -> pd.DataFrame:
    steps = np.arange(10, 110, 10)
    epoch_end = steps % 50 == 0
    table = pd.DataFrame(
        {
            "step": steps,
            "epoch": np.where(steps > 50, 2, 1),
            "images": steps * 32,
            "learning_rate": np.linspace(0.1, 0, 10),
            "running_loss": np.linspace(2.3, 0.2, 10),
            "train_loss": np.where(epoch_end, 1.0, np.nan),
            "validation_loss": np.where(epoch_end, 1.1, np.nan),
            "validation_accuracy": np.where(epoch_end, 0.9, np.nan),
        }
    )
    return table.assign(**columns)


@pytest.mark.parametrize("column", ["running_loss", "learning_rate", "validation_loss", "validation_accuracy"])
def test_curves_draw_each_column(column: str) -> None:
    changed = history()
    changed[column] = changed[column] * np.linspace(0.5, 0.9, 10)
    assert figures.curves(changed) != figures.curves(history())


def test_curves_without_validation_have_no_panel_for_it() -> None:
    full = pixels(figures.curves(history()))
    without = pixels(figures.curves(history(validation_loss=np.nan, validation_accuracy=np.nan)))
    assert without.shape[0] < full.shape[0]
    assert without.shape[1] == full.shape[1]


def test_curves_of_a_single_row_show_its_validation() -> None:
    # One window, one epoch: a line of one point has no length, the marker is what is seen.
    one = history().iloc[[4]]
    seen = pixels(figures.curves(one)).astype(int)
    accuracy = seen[len(seen) * 2 // 5 : len(seen) * 3 // 5]  # this panel has no legend of the same colour
    assert (np.abs(accuracy - (224, 123, 57)) <= 3).all(axis=2).sum() > 20


def test_pictures_hold_no_time_and_no_program() -> None:
    for png in (
        figures.misclassified(plain_images(3, (9,)), mistaken(2, 3, ["a", "b"]), 4),
        figures.confusion(np.eye(2, dtype=np.int64), ["a", "b"]),
        figures.calibration(calibration(mistaken(2, 3, ["a", "b"]), 4)),
        figures.curves(history()),
    ):
        assert set(chunks(png)) == {"IHDR", "pHYs", "IDAT", "IEND"}


def test_names_are_not_formulas_and_matplotlibrc_changes_nothing() -> None:
    predictions, images = mistaken(2, 3, ["$x$", "$\\nonsense$"]), plain_images(3, (9,))
    expected = figures.misclassified(images, predictions, 4)
    with rc_context({"font.family": "serif", "savefig.dpi": 40, "figure.facecolor": "black", "image.cmap": "hot"}):
        assert figures.misclassified(images, predictions, 4) == expected


def test_pyplot_is_not_loaded() -> None:
    program = "import sys, classifier.evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
