"""Each picture is opened again and its pixels are looked at."""

import io
import struct
import zlib

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from classifier.evaluation import figures, gallery, robustness, tables
from classifier.evaluation.corruptions import KINDS
from classifier.evaluation.metrics import calibration
from classifier.evaluation.style import SHARES, elided
from tests.evaluation.samples import history, images_of, noisy_predictions, predictions_of
from tests.processes import run_without


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


def plain_images(count: int, *colours: tuple[int, ...], size: int = 32) -> np.ndarray:
    """`(count, C, size, size) uint8`, each of one colour, in turn."""
    images = np.array([colours[number % len(colours)] for number in range(count)], dtype=np.uint8)
    return np.broadcast_to(images[:, :, None, None], (*images.shape, size, size)).copy()


def squares(png: bytes, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((pixels(png) == colour).all(axis=2).sum())


def misclassified(
    images: np.ndarray, wrong: int, names: tuple[str, ...] = ("a", "b"), limit: int = 25, paths=None
) -> bytes:
    """The gallery of a test split whose first `wrong` images are mistaken for the class after theirs."""
    predictions = predictions_of(np.arange(len(images)) % 2, names, wrong=range(wrong))
    table = tables.misclassified(predictions, limit, paths)
    return gallery.misclassified(images[table["index"]], table, wrong, len(images))


@pytest.mark.parametrize(
    ("count", "limit", "shown", "side"),
    [(1, 25, 1, 480), (4, 25, 4, 192), (7, 25, 7, 192), (7, 3, 3, 256), (40, 25, 25, 160)],
)
def test_misclassified_shows_each_mistake_once_up_to_the_limit(count: int, limit: int, shown: int, side: int) -> None:
    png = misclassified(plain_images(47, (200, 30, 90)), count, limit=limit)
    assert squares(png, (200, 30, 90)) == shown * side**2  # image pixels are whole numbers of pixels wide


@pytest.mark.parametrize("count", [2, 5, 7, 25])
def test_misclassified_fills_its_width(count: int) -> None:
    seen = pixels(misclassified(plain_images(count, (200, 30, 90)), count))
    columns = np.flatnonzero((seen == (200, 30, 90)).all(axis=2).any(axis=0))
    assert columns[0] == 36
    assert columns[-1] > seen.shape[1] - 36 - 8


@pytest.mark.parametrize(("size", "side"), [(9, 153), (48, 144), (200, 160), (500, 160)])
def test_misclassified_shows_images_of_any_size(size: int, side: int) -> None:
    png = misclassified(plain_images(25, (200, 30, 90), size=size), 25)
    assert squares(png, (200, 30, 90)) == 25 * side**2


def test_misclassified_shows_the_mistakes_and_not_the_hits() -> None:
    images = plain_images(5, (10, 200, 10))
    images[:2] = plain_images(2, (200, 10, 10))
    png = misclassified(images, 2)
    assert squares(png, (200, 10, 10)) > 2 * 160**2
    assert squares(png, (10, 200, 10)) == 0


def test_misclassified_keeps_gray_values_and_their_order() -> None:
    images = plain_images(3, (77,), (178,), (30,))
    seen = pixels(misclassified(images, 2))
    first, second = (np.argwhere((seen == value).all(axis=2)) for value in (77, 178))
    assert first[:, 1].max() < second[:, 1].min()  # left of it
    assert (seen == 30).all(axis=2).sum() < 160**2  # the hit is not shown; some edge of a letter may have its gray


def test_misclassified_shows_images_upright() -> None:
    images = plain_images(1, (0, 0, 255))
    images[0, :, :16] = np.array([255, 0, 0])[:, None, None]
    images[0, :, :16, :16] = np.array([0, 255, 0])[:, None, None]
    seen = pixels(misclassified(images, 1))
    green, red, blue = (np.argwhere((seen == colour).all(axis=2)) for colour in np.eye(3, dtype=int)[[1, 0, 2]] * 255)
    assert (len(green), len(red), len(blue)) == (240 * 240, 240 * 240, 480 * 240)  # with sharp edges
    assert green[:, 0].max() < blue[:, 0].min()
    assert green[:, 1].max() < red[:, 1].min()


def test_misclassified_without_mistakes_says_so() -> None:
    none = misclassified(plain_images(7, (200, 30, 90)), 0)
    assert squares(none, (200, 30, 90)) == 0
    assert (pixels(none) < 128).any()  # dark writing
    assert none != misclassified(plain_images(8, (200, 30, 90)), 0)  # it says of how many


def test_misclassified_writes_the_paths() -> None:
    images = plain_images(2, (200, 30, 90))
    with_paths, others = (misclassified(images, 2, paths=[f"{name}/1.jpg", "b.jpg"]) for name in "ab")
    assert with_paths != others
    assert pixels(with_paths).shape[0] == pixels(misclassified(images, 2)).shape[0] + 22


def test_misclassified_makes_room_for_long_names() -> None:
    short, long = (
        pixels(misclassified(plain_images(25, (200, 30, 90)), 25, names=names))
        for names in [("cat", "dog"), ("animals/mammals/cat", "animals/mammals/dog")]
    )
    assert long.shape[1] > short.shape[1]
    assert long.shape[0] > short.shape[0]


def test_an_elided_name_keeps_its_end_and_is_one_line() -> None:
    assert elided("cat") == "cat"
    assert elided("animals/mammals/cat", 8) == "\u2026als/cat"
    assert len(elided("x" * 99)) == 22
    assert elided("a\nb\x1b") == r"a\nb\x1b"


def test_letters_that_the_font_lacks_are_escaped_so_that_names_stay_different() -> None:
    assert elided("größe/кот/γάτα") == "größe/кот/γάτα"
    assert elided("\u732b") == r"\u732b"
    assert elided("\u72ac-\U0001f436") == r"\u72ac-\U0001f436"


def test_misclassified_refuses_channels_that_no_picture_has() -> None:
    with pytest.raises(ValueError, match="2 channels: a picture can show 1 or 3"):
        misclassified(plain_images(1, (1, 2)), 1)


def test_robustness_has_a_cell_for_each_strength_and_one_for_the_original() -> None:
    table = robustness.table(["blur", "contrast"], np.ones((10, 4), dtype=bool), 0.95)
    seen = pixels(gallery.robustness(table, 1.0, plain_images(1, (200, 30, 90))[0]))
    assert (seen == (200, 30, 90)).all(axis=2).sum() == 2 * 6 * 96**2  # blur and contrast change no flat image
    assert (seen == np.round(np.array(SHARES(1.0)[:3]) * 255)).all(axis=2).sum() > 12 * 500


def test_robustness_draws_each_kind_and_says_when_nothing_was_measured() -> None:
    def drawn(kinds: list[str], size: int = 32) -> np.ndarray:
        table = robustness.table(kinds, np.zeros((5 * len(kinds), 4), dtype=bool), 0.95)
        return pixels(gallery.robustness(table, 0.5, images_of(1, 3, size)[0]))

    assert drawn(list(KINDS)).shape[0] > 7 * 96 + drawn(["blur"]).shape[0]
    assert drawn(list(KINDS), 200).shape == drawn(list(KINDS), 32).shape
    assert (drawn([]) < 128).any()


@pytest.mark.parametrize("classes", [2, 21, pytest.param(50, marks=pytest.mark.slow)])
def test_confusion_colours_a_cell_by_its_share_of_the_row(classes: int) -> None:
    def dark(labels: list[int]) -> int:
        names = [str(number) for number in range(classes)]
        seen = pixels(figures.confusion(predictions_of(np.array(labels), names)))
        return int((np.abs(seen.astype(int) - (8, 48, 107)) <= 1).all(axis=2).sum())  # of "Blues": the whole row

    assert dark([0] * 7 + [1] * 1000) > 1.4 * dark([0] * 7) > 0


def test_confusion_colours_do_not_depend_on_the_largest_share() -> None:
    labels = np.array([0, 0, 1, 1])
    whole, half = (pixels(figures.confusion(predictions_of(labels, ["a", "b"], wrong))) for wrong in ([], [0, 2]))
    darkest = np.array([8, 48, 107])
    of_whole, of_half = ((np.abs(seen.astype(int) - darkest) <= 1).all(axis=2).sum() for seen in (whole, half))
    assert of_whole > 10 * of_half


@pytest.mark.parametrize("classes", [2, 20, pytest.param(50, marks=pytest.mark.slow)])
def test_confusion_writes_the_counts(classes: int) -> None:
    labels, names = np.arange(classes), [str(number) for number in range(classes)]
    first, second = (pixels(figures.confusion(predictions_of(np.tile(labels, times), names))) for times in (4, 5))
    assert (first[80:] != second[80:]).any()  # the title, which holds the sum, is above


@pytest.mark.parametrize("classes", [51, 1000])
def test_confusion_of_many_classes_shows_those_that_are_confused_most(classes: int) -> None:
    labels = np.repeat(np.arange(classes), 3)
    names = [f"class {number}" for number in range(classes)]
    few = predictions_of(labels, names, wrong=[3, 4, 27])  # twice 1 -> 2, once 9 -> 10
    assert figures._most_confused(few, 30) == [1, 2, 9, 10]
    assert figures._most_confused(few, 3) == [1, 2, 9]
    assert figures._most_confused(predictions_of(labels, names), 30) == [*range(30)]
    seen = pixels(figures.confusion(few))
    assert seen.shape[0] < 900
    many = predictions_of(labels, names, wrong=range(0, len(labels), 2))
    assert pixels(figures.confusion(many)).shape[0] <= 13 * 150


def test_calibration_has_a_bar_of_accuracy_and_a_line_of_confidence_in_their_colours() -> None:
    def bar_and_line(wrong: int) -> tuple[int, int]:
        """Heights in the upper chart, from the bottom of the picture."""
        predictions = predictions_of(np.zeros(100, dtype=np.int64), ["a", "b"], range(wrong), top=0.75)
        seen = pixels(figures.calibration(calibration(predictions, 4), None, None)).astype(int)
        rows = [
            np.flatnonzero((np.abs(seen - colour) <= 2).all(axis=2).any(axis=1))
            for colour in ((47, 109, 181), (224, 123, 57))
        ]
        blue, orange = (found[found < seen.shape[0] * 0.9] for found in rows)  # without the legend
        return seen.shape[0] - int(blue[0]), seen.shape[0] - int(orange[0])

    (high, line), (low, same) = bar_and_line(0), bar_and_line(80)
    assert line == same  # confidence is 75% in both
    assert high > line > low


def test_calibration_counts_the_images_of_each_bin() -> None:
    few, many = (
        figures.calibration(calibration(predictions_of(np.zeros(n, dtype=np.int64), ["a", "b"]), 4), None, None)
        for n in (3, 4)
    )
    assert few != many


def test_calibration_with_a_temperature_is_twice_as_wide() -> None:
    bins = calibration(noisy_predictions(50, ["a", "b"]), 10)
    one, two = (pixels(figures.calibration(bins, *more)) for more in ((None, None), (bins, 1.5)))
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)


@pytest.mark.parametrize("column", ["running_loss", "learning_rate", "validation_loss", "validation_accuracy"])
def test_curves_draw_each_column(column: str) -> None:
    changed = history()
    changed[column] = changed[column] * np.linspace(0.5, 0.9, 10)
    assert figures.curves({0: changed}, 0) != figures.curves({0: history()}, 0)


def test_curves_without_validation_have_no_panel_for_it() -> None:
    full = pixels(figures.curves({0: history()}, 0))
    without = pixels(figures.curves({0: history().assign(validation_loss=np.nan, validation_accuracy=np.nan)}, 0))
    assert without.shape[0] < full.shape[0]
    assert without.shape[1] == full.shape[1]


def test_curves_of_a_single_row_show_its_validation() -> None:
    # One window, one epoch: a line of one point has no length, the marker is what is seen.
    seen = pixels(figures.curves({0: history().iloc[[4]]}, 0)).astype(int)
    accuracy = seen[len(seen) * 2 // 5 : len(seen) * 3 // 5]  # this panel has no legend of the same colour
    assert (np.abs(accuracy - (224, 123, 57)) <= 3).all(axis=2).sum() > 20


def test_curves_of_a_loss_that_spans_a_decade_have_a_logarithmic_axis() -> None:
    def height(values: np.ndarray) -> float:
        """Of the middle of the running loss's line, as a share of the range from its lowest to its highest row."""
        table = history().assign(running_loss=values, validation_loss=np.nan, validation_accuracy=np.nan)
        seen = pixels(figures.curves({0: table}, 0)).astype(int)
        blue = (np.abs(seen - (47, 109, 181)) <= 3).all(axis=2)
        blue[:, int(blue.shape[1] * 0.62) :] = False  # the legend
        rows = [np.flatnonzero(column).mean() for column in blue.T if column.any()]
        return (rows[-1] - rows[len(rows) // 2]) / (rows[-1] - rows[0])

    assert height(np.geomspace(2.0, 0.002, 10)) == pytest.approx(0.5, abs=0.02)  # a straight line
    assert height(np.linspace(2.0, 0.4, 10)) == pytest.approx(0.5, abs=0.02)  # also: this axis is linear
    assert height(np.append(np.geomspace(2.0, 0.002, 9), 0.0)) < 0.3  # zero is on no logarithmic axis


def test_curves_of_several_seeds_have_a_band() -> None:
    def band(*scales: float) -> int:
        seen = pixels(figures.curves(dict(enumerate(map(history, scales))), 0)).astype(int)
        return int((np.abs(seen - (203, 218, 236)) <= 6).all(axis=2).sum())  # a quarter of blue on white

    assert band(1.0) < 1_000
    assert band(1.0, 1.0) < 1_000
    assert band(0.9, 1.0, 1.3) > 10_000


def test_pictures_hold_no_time_and_no_program() -> None:
    predictions = noisy_predictions(9, ["a", "b"])
    table = robustness.table(["blur"], np.ones((5, 9), dtype=bool), 0.95)
    for png in (
        misclassified(plain_images(3, (9,)), 2),
        gallery.robustness(table, 1.0, plain_images(1, (9,))[0]),
        figures.confusion(predictions),
        figures.calibration(calibration(predictions, 4), None, None),
        figures.curves({0: history()}, 0),
    ):
        assert set(chunks(png)) == {"IHDR", "pHYs", "IDAT", "IEND"}
    assert set(chunks(gallery.png_of(gallery.thumbnail(images_of(1)[0], 64)))) <= {"IHDR", "PLTE", "IDAT", "IEND"}


def test_names_are_not_formulas_and_matplotlibrc_changes_nothing() -> None:
    def drawn() -> bytes:
        return misclassified(plain_images(3, (9,)), 2, names=("$x$", "$\\nonsense$"))

    expected = drawn()
    with rc_context({"font.family": "serif", "savefig.dpi": 40, "figure.facecolor": "black", "image.cmap": "hot"}):
        assert drawn() == expected


def test_names_in_scripts_without_a_font_are_drawn_as_boxes_without_a_warning() -> None:
    assert misclassified(plain_images(3, (9,)), 2, names=("\u732b", "\u72ac"))


def test_pyplot_is_not_loaded() -> None:
    run_without(["matplotlib.pyplot"], "import classifier.evaluation.report")
