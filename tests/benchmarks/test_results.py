"""The benchmarks' own arithmetic, and how results are written."""

import json

import pytest

from benchmarks.results import Bar, Result, Table, document, line, markdown, paired, ratio, summary


def test_ratio_is_that_of_the_medians() -> None:
    assert ratio([1.0, 100.0, 3.0], [2.0, 2.0, 0.1]) == 1.5


def test_paired_ratio_is_the_median_of_each_rounds() -> None:
    assert paired([2.0, 30.0, 9.0], [1.0, 10.0, 10.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])


def test_spread_shows_median_and_range() -> None:
    assert summary([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert summary([1.234], 1) == "1.2"


def test_line_through_points_on_one() -> None:
    fitted = line([1, 2, 4, 8], [7.0, 9.0, 13.0, 21.0])
    assert (fitted.slope, fitted.constant) == pytest.approx((2, 5))
    assert fitted.deviation == pytest.approx(0)


def test_deviation_is_the_largest_share_of_the_line() -> None:
    fitted = line([0, 1, 2], [1.0, 1.0, 4.0])  # 0.5 + 1.5 x: 1 is twice what the line says at 0
    assert fitted.deviation == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "at_least", "met"), [(1.0, False, True), (1.01, False, False), (1.0, True, True), (0.99, True, False)]
)
def test_bar_includes_its_limit(value: float, at_least: bool, met: bool) -> None:
    bar = Bar("what", value, 1.0, at_least)
    assert bar.met is met
    assert bar.row()[-1] == ("met" if met else "**missed**")


def test_markdown_aligns_columns() -> None:
    assert markdown(["a", "value"], [["long", "1"]]) == "| a    | value |\n| ---- | ----: |\n| long |     1 |"


def test_document_survives_json() -> None:
    result = Result([Bar("speed", 0.5, 1.0)], [Table("Title", ["a", "b"], [["x", "y"]])])
    kept = json.loads(json.dumps({"one": {"measured": "today", "rounds": 5, **result.as_json()}}))
    bars = markdown(["what", "measured", "bar", "", "rounds"], [["speed", "0.5", "≤ 1", "met", "5"]])
    table = markdown(["a", "b"], [["x", "y"]])
    assert document(kept) == f"`make bench`: today\n\n{bars}\n\n### Title\n\n{table}\n"


def test_document_says_what_was_measured_when() -> None:
    kept = {
        name: {"measured": day, **Result((), ()).as_json()}
        for name, day in zip("abc", ("1st", "2nd", "1st"), strict=True)
    }
    assert document(kept) == "`make bench`: a, c: 1st\n\n`make bench`: b: 2nd\n"
