from __future__ import annotations

from unicodedata import normalize

import pytest

from classifier.sources.layout import Layout, lay_out, natural
from classifier.sources.listing import Entry, Listing
from tests.photos import download_params


def laid_out(*names: str, empty: tuple[str, ...] = (), root: str = "", **values) -> Layout:
    entries = [Entry(name) for name in sorted(names)]
    return lay_out(Listing(entries, list(empty), {}, root), download_params("photos", **values))


def placed(layout: Layout) -> dict[str, tuple[str | None, str | None, str | None]]:
    return {file.entry.path: (file.class_name, file.split, file.group) for file in layout.files}


def problems(layout: Layout) -> dict[str, str]:
    return {file.entry.path: file.entry.problem for file in layout.files if file.entry.problem}


def test_a_folder_per_class_in_natural_order():
    layout = laid_out("10/a", "9/a", "2/b", "2/a")
    assert layout.class_names == ["2", "9", "10"]
    assert placed(layout) == {
        "10/a": ("10", None, None),
        "2/a": ("2", None, None),
        "2/b": ("2", None, None),
        "9/a": ("9", None, None),
    }


def test_natural_order_is_total_and_the_same_for_any_order_of_the_folders():
    names = ["a", "a1", "a01", "a2", "a10", "A", "é", "1", "01", "", "1a", "10", "9"]
    backwards = names[::-1]
    assert sorted(names, key=natural) == sorted(backwards, key=natural)
    assert sorted(names, key=natural)[:6] == ["", "01", "1", "1a", "9", "10"]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val", "VALIDATION"])
def test_folders_of_splits_with_one_number_for_a_class_in_all_of_them(validation):
    layout = laid_out("Train/cat/1", "Train/dog/1", f"{validation}/dog/1", "test/cat/1")
    assert layout.class_names == ["cat", "dog"]
    assert placed(layout) == {
        "Train/cat/1": ("cat", "train", None),
        "Train/dog/1": ("dog", "train", None),
        f"{validation}/dog/1": ("dog", "validation", None),
        "test/cat/1": ("cat", "test", None),
    }


def test_a_nested_class_has_its_whole_path_as_name():
    layout = laid_out("animals/cat/1", "animals/1", "plants/rose/red/1")
    assert layout.class_names == ["animals", "animals/cat", "plants/rose/red"]
    assert laid_out("train/animals/cat/1", "train/plants/rose/1").class_names == ["animals/cat", "plants/rose"]


def test_the_folder_around_everything_in_an_archive_names_nothing():
    layout = laid_out("photos/train/cat/1", "photos/train/dog/1", root="photos/")
    assert placed(layout) == {
        "photos/train/cat/1": ("cat", "train", None),
        "photos/train/dog/1": ("dog", "train", None),
    }


@pytest.mark.parametrize(
    ("level", "names", "expected"),
    [
        (
            -1,
            ("cat/clip 1/1", "cat/clip 2/1", "dog/clip 3/1"),
            {("cat", "clip 1"), ("cat", "clip 2"), ("dog", "clip 3")},
        ),
        (
            2,
            ("cat/clip 1/1", "cat/clip 2/1", "dog/clip 3/1"),
            {("cat", "clip 1"), ("cat", "clip 2"), ("dog", "clip 3")},
        ),
        (1, ("p1/mole/1", "p1/nevus/1", "p2/mole/1"), {("mole", "p1"), ("nevus", "p1"), ("mole", "p2")}),
        (2, ("a/p1/x/1", "a/p2/y/1"), {("a/x", "p1"), ("a/y", "p2")}),
    ],
)
def test_a_level_of_folders_names_the_group(level, names, expected):
    layout = laid_out(*names, groups=level)
    assert {(file.class_name, file.group) for file in layout.files} == expected
    assert not problems(layout)


@pytest.mark.parametrize(
    ("level", "names"),
    [
        (1, ("p1/a/mole", "p2/a/mole", "p3/a/nevus")),
        (2, ("a/p1/mole", "a/p2/mole", "a/p3/nevus")),
        (-1, ("a/mole/p1", "a/mole/p2", "a/nevus/p3")),
        (-2, ("a/p1/mole", "a/p2/mole", "a/p3/nevus")),
    ],
)
@pytest.mark.parametrize("splits", [("train", "train", "train"), ("train", "Test", "train")])
@pytest.mark.parametrize("root", ["", "photos/"])
def test_levels_are_counted_below_the_splits(level, names, splits, root):
    """As without them: neither train/ nor the folder around everything in an archive is a level."""
    paths = [f"{root}{split}/{name}/1" for split, name in zip(splits, names, strict=True)]
    known = [("a/mole", "p1"), ("a/mole", "p2"), ("a/nevus", "p3")]
    expected = {
        path: (class_name, split.lower(), group)
        for path, split, (class_name, group) in zip(paths, splits, known, strict=True)
    }
    assert placed(laid_out(*paths, root=root, groups=level)) == expected
    shallow = laid_out(f"{root}train/x/1", *paths, root=root, groups=level)
    assert list(problems(shallow)) == [f"{root}train/x/1"]


def test_a_file_that_its_folders_do_not_place_is_named():
    layout = laid_out("README.md", "cat/1", "dog/1", "dog/clip/1")
    assert problems(layout) == {"README.md": "is not in a class folder"}
    split = laid_out("train/1.jpg", "train/cat/1", "train/dog/1")
    assert problems(split) == {"train/1.jpg": "is not in a class folder"}
    grouped = laid_out("cat/1", "cat/a/1", "dog/b/1", groups=2)
    assert problems(grouped) == {"cat/1": "has no folder at level 2, which names its group"}
    assert problems(laid_out("cat/1", "cat/a/1", "dog/b/1", groups=1))["cat/1"] == "is not in a class folder"


def test_class_names_are_the_same_in_both_forms_of_unicode():
    composed, decomposed = "café", normalize("NFD", "café")
    layout = laid_out(f"train/{composed}/1", f"test/{decomposed}/1", "train/tea/1")
    assert layout.class_names == [composed, "tea"]
    listed = laid_out(f"{decomposed}/1", "tea/1", classes=["tea", decomposed])
    assert listed.class_names == ["tea", composed]


def test_a_list_orders_the_classes_and_allows_empty_ones():
    layout = laid_out("a/1", "b/1", empty=("c",), classes=["c", "b", "d", "a"])
    assert layout.class_names == ["c", "b", "d", "a"]


def test_upper_and_lower_case_are_different_classes():
    assert laid_out("A/1", "a/1").class_names == ["A", "a"]


@pytest.mark.parametrize(
    ("names", "values", "problem"),
    [
        ((), {}, "photos holds no images in class folders: docs/images.md"),
        (("1.jpg", "2.jpg"), {}, "shows how to arrange them; the first of 2 files, '1.jpg', is not in a class folder"),
        (("a/1", "b/1"), {"groups": 2}, "the first of 2 files, 'a/1', has no folder at level 2"),
        (("cat/1",), {}, "photos has a single class, 'cat': allowed are two or more"),
        (("a/1", "b/1"), {"empty": ("c 10", "c 9")}, "classes without images: 'c 9', 'c 10': add images, remove"),
        (("train/a/1", "train/b/1"), {"empty": ("test/c",)}, "classes without images: 'c'"),
        (("a/1", "b/1"), {"classes": ["a", "c"]}, "download.classes lacks 'b', of which photos has images"),
        (("a/1", "b/1"), {"empty": ("d",), "classes": ["a", "b"]}, "download.classes lacks 'd'"),
        (("train/a/1", "car/1"), {}, "the folders 'train' are splits, 'car' are not: remove or move these, or list"),
        (("val/a/1", "valid/a/1", "train/a/1"), {}, "the folders 'val', 'valid' are the same split: keep one"),
        (("Train/a/1", "train/b/1"), {}, "the folders 'Train', 'train' are the same split"),
        (("val/a/1", "test/b/1"), {}, "found the folders 'test', 'val', but no train/: add it"),
        (("a\n/1", "b/1"), {}, r"class names 'a\\n': allowed are printable characters"),
    ],
)
def test_folders_that_cannot_be_told_are_named(names, values, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        laid_out(*names, **values)
    assert "\n" not in str(caught.value)


def test_a_class_may_be_named_like_a_split_if_all_are_listed():
    assert laid_out("train/1", "car/1", classes=["car", "train"]).class_names == ["car", "train"]
