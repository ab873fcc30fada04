"""Tables fit the terminal without breaking a word: columns are left out and named, or rows become records."""

import pytest

from classifier.commands._tables import lines

HEADER = ["run", "accuracy", "code", "training, s"]
ROWS = [["bouncy-rook-769", "98.33%", "0c74e83+1f3a9d20", "341.2"], ["other", "97.21%", "0c74e83", "67.6"]]


def test_a_table_that_fits_is_whole():
    assert lines(HEADER, ROWS, 80, optional=["code"]) == [
        "run              accuracy  code              training, s",
        "bouncy-rook-769  98.33%    0c74e83+1f3a9d20  341.2",
        "other            97.21%    0c74e83           67.6",
    ]


def test_columns_are_left_out_in_turn_and_named():
    assert lines(HEADER, ROWS, 50, optional=["code", "code", "training, s"]) == [
        "run              accuracy  training, s",
        "bouncy-rook-769  98.33%    341.2",
        "other            97.21%    67.6",
        "left out at a width of 50: code",
    ]


def test_without_room_each_row_is_a_record():
    assert lines(HEADER[:2], [ROWS[0][:2]], 20) == ["run       bouncy-rook-769", "accuracy  98.33%"]


@pytest.mark.parametrize("columns", [30, 40, 55, 80, 160])
def test_no_cell_is_ever_broken(columns):
    text = "\n".join(lines(HEADER, ROWS, columns, optional=["code", "training, s"]))
    assert "bouncy-rook-769" in text
    assert "98.33%" in text
