"""history.csv gives back what was written."""

import pytest

from classifier.training.history import HistoryRow, read_history, write_history

HEADER = "step,epoch,images,learning_rate,running_loss,train_loss,validation_loss,validation_accuracy\n"
ROWS = [HistoryRow(10, 1, 320, 0.1, 2.3025851249694824), HistoryRow(12, 1, 340, 1 / 3, None, 0.2, 0.3, 0.97)]


def test_round_trip_is_exact(tmp_path):
    write_history(tmp_path / "history.csv", ROWS)
    assert read_history(tmp_path / "history.csv") == ROWS


def test_text(tmp_path):
    write_history(tmp_path / "history.csv", ROWS)
    assert (tmp_path / "history.csv").read_bytes() == (
        b"step,epoch,images,learning_rate,running_loss,train_loss,validation_loss,validation_accuracy\n"
        b"10,1,320,0.1,2.3025851249694824,,,\n"
        b"12,1,340,0.3333333333333333,,0.2,0.3,0.97\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        *("x,1,320,0.1,2.3,,,", "10,1", "10,1,320,0.1,nan,,,", "10,1,320,,2.3,,,", "10,1,320,0.1,,,,inf"),
        *(
            "",
            "10,1,320,0.1,2.3,,,,",
            '"10,1\n",320,0.1,2.3,,,',
            "10,1,320,0.1,\0,,,",
            "9" * 5000 + ",1,320,0.1,2.3,,,",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    write_history(tmp_path / "history.csv", ROWS)
    with (tmp_path / "history.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 4"):
        read_history(tmp_path / "history.csv")


def test_missing_names_the_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="run dvc repro train"):
        read_history(tmp_path / "history.csv")


@pytest.mark.parametrize("content", [b"", b"\n", b"step\n10\n", b"\xff\xfe", HEADER.encode(), b"x" * 1_000_000])
def test_what_is_no_history_is_named_in_one_short_line(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"history\.csv is not a history.*run dvc repro -f train") as caught:
        read_history(tmp_path / "history.csv")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_history_of_an_older_version_has_the_defaults_of_new_columns(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,epoch,images,learning_rate,train_loss\n12,1,340,0.1,0.5\n")
    assert read_history(path) == [HistoryRow(12, 1, 340, 0.1, train_loss=0.5)]


def test_a_history_of_a_newer_version_says_so(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(HEADER.replace("\n", ",gradient_norm\n") + "10,1,320,0.1,2.3,,,,1.5\n")
    with pytest.raises(
        ValueError, match=r"newer version .*\('gradient_norm'\): update the project, or run dvc repro -f"
    ):
        read_history(path)


@pytest.mark.parametrize("header", ["epoch,images,learning_rate,train_loss", HEADER.strip() + ",step"])
def test_a_header_without_the_counts_or_with_one_twice_is_no_history(tmp_path, header):
    path = tmp_path / "history.csv"
    path.write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(ValueError, match=r"history\.csv is not a history"):
        read_history(path)
