from __future__ import annotations

import pandas as pd
import pytest

from classifier.sources.layout import Layout
from classifier.sources.listing import Entry, Listing
from classifier.sources.table import SHOWN, lay_out_by
from tests.photos import download_params

FILES = ("a.jpg", "deep/b.jpg", "deep/c.jpg", "labels.csv", "spare.jpg")


def laid_out(content: str | bytes, files: tuple[str, ...] = FILES, root: str = "", **values) -> Layout:
    listing = Listing([Entry(root + name) for name in sorted(files)], [], {}, root)
    params = download_params("photos", table="labels.csv", **values)
    return lay_out_by(content.encode() if isinstance(content, str) else content, listing, params)


def placed(layout: Layout) -> list[tuple[str, str | None, str | None, str | None]]:
    return [(file.entry.path, file.class_name, file.split, file.group) for file in layout.files]


def test_path_and_label_are_enough_and_other_files_are_left_out():
    layout = laid_out("path,label\n./deep/b.jpg,10\na.jpg,9\n")
    assert placed(layout) == [("a.jpg", "9", None, None), ("deep/b.jpg", "10", None, None)]
    assert layout.class_names == ["9", "10"]


def test_split_and_group_in_any_order_of_columns_with_quotes_and_a_byte_order_mark():
    text = '\ufeffgroup,note,label,path,split\r\np1,"a, ""b""","big, cat",a.jpg,Train\r\np2,,dog,deep/b.jpg,VAL\r\n'
    text += "p3,, dog ,deep/c.jpg,test\r\n"
    assert placed(laid_out(text)) == [
        ("a.jpg", "big, cat", "train", "p1"),
        ("deep/b.jpg", "dog", "validation", "p2"),
        ("deep/c.jpg", "dog", "test", "p3"),
    ]


def test_another_column_may_name_the_group():
    layout = laid_out("path,label,group,patient\na.jpg,x,1,p\ndeep/b.jpg,y,2,\n", groups="patient")
    assert [file.group for file in layout.files] == ["p", None]


def test_parquet_gives_the_same(tmp_path):
    path = tmp_path / "labels.parquet"
    rows = {"path": ["a.jpg", "deep/b.jpg"], "label": [10, 9], "split": ["train", "test"], "group": ["p", None]}
    pd.DataFrame(rows).to_parquet(path)
    layout = laid_out(path.read_bytes())
    assert placed(layout) == [("a.jpg", "10", "train", "p"), ("deep/b.jpg", "9", "test", None)]
    assert layout.class_names == ["9", "10"]


def test_paths_are_those_within_the_folder_that_holds_everything():
    layout = laid_out("path,label\na.jpg,x\ndeep/b.jpg,y\n", root="photos/")
    assert [file.entry.path for file in layout.files] == ["photos/a.jpg", "photos/deep/b.jpg"]


def test_all_problems_come_together_with_their_rows():
    rows = ["a.jpg,x,train", "a.jpg,x,train", "gone.jpg,x,train", "/etc/passwd,x,train", "../a.jpg,x,train"]
    rows += ["deep\\b.jpg,y,train", "deep/b.jpg,,train", "deep/c.jpg,y,tset", "spare.jpg,y,"]
    with pytest.raises(ValueError, match=r"^table labels\.csv has 8 problems:") as caught:
        laid_out("\n".join(["path,label,split", *rows]))
    assert str(caught.value).splitlines()[1:] == [
        "  row 3: path 'a.jpg' is in an earlier row too",
        "  row 4: path 'gone.jpg' is not a file in photos",
        "  row 5: path '/etc/passwd' is not a file in photos: paths are relative to it",
        "  row 6: path '../a.jpg' is not a file in photos: paths are relative to it",
        "  row 7: path 'deep\\\\b.jpg' is not a file in photos: folders are separated by /",
        "  row 8: the label is empty",
        "  row 9: split 'tset': allowed are train, validation and test",
        "  1 rows have no split: allowed is one in every row, or in none",
    ]


def test_a_long_list_of_problems_is_cut():
    text = "path,label\n" + "".join(f"gone{number}.jpg,x\n" for number in range(SHOWN + 7))
    with pytest.raises(ValueError, match=f"has {SHOWN + 7} problems") as caught:
        laid_out(text)
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN + 2
    assert lines[-1] == "  and 7 more"


@pytest.mark.parametrize(
    ("content", "values", "problem"),
    [
        ("", {}, "has no column path and no column label among none: allowed are path, label, split, group, the last"),
        ("path,class\na.jpg,x\n", {}, "has no column label among path, class"),
        ("path;label\na.jpg;x\n", {}, "values are separated by commas"),
        ("path,label\n", {}, "has no rows: allowed is one or more"),
        ("path,label,path\na.jpg,x,b\n", {}, "has the column path twice"),
        ("path,label\na.jpg,x,y\n", {}, "row 2 has 3 values, the header 2"),
        ("path,label\n'a,b',x\n", {}, "row 2 has 3 values, the header 2"),
        ('path,label\n"a.jpg,x\n', {}, "row 2 is not CSV: unexpected end of data"),
        ("path,label\na.jpg,x\n", {"groups": "patient"}, "has no column patient among path, label"),
        (b"path,label\n\xff.jpg,x\n", {}, "is neither Parquet nor UTF-8 text: .*: save it as UTF-8"),
        (b"PAR1 and more", {}, "is not a complete Parquet file"),
        ("path,label\na.jpg,x\n", {}, "has a single class, 'x'"),
    ],
)
def test_what_is_no_table_is_named(content, values, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        laid_out(content, **values)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_problem_has_no_class():
    listing = Listing([Entry("a", problem="is encrypted"), Entry("b"), Entry("c")], [], {})
    layout = lay_out_by(b"path,label\na,x\nb,x\nc,y\n", listing, download_params("photos", table="t"))
    assert placed(layout) == [("a", None, None, None), ("b", "x", None, None), ("c", "y", None, None)]
